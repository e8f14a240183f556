"""Several ranks communicate, share rows, and train as a single process does."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fledge.checkpoint.checkpoint import load_optimizer_state, save_checkpoint
from fledge.checkpoint.find import latest_checkpoint, verify
from fledge.checkpoint.state import TrainState
from fledge.data import PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.objective import CausalLMObjective
from fledge.optim.ema import COUNT, PREFIX
from fledge.optim.muon import Muon
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import PretrainStage
from fledge.training.batch_loader import BatchLoader
from fledge.training.batch_source import DatasetSource
from fledge.training.rank_consistency import CHECK_INTERVAL, MAX_IDENTICAL_STEPS, RankConsistencyCheck
from fledge.training.train_step import TrainStep
from fledge.training.trainable import TrainableModel
from fledge.training.validation import ValidationSet, validate
from tests.support.decoders import make_decoder
from tests.support.packed import dpo, pack, pack_pairs, random_pairs, random_sequences
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")
LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]
STEPS, RATE = 8, 0.002
MIXTURE = {"num_experts": 3, "num_experts_per_tok": 2, "load_balancing": "bias", "router_z_loss_coef": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "muon, head of its own": {"optimizer": "muon", "model": {"qk_norm": True, "tie_word_embeddings": False}},
    "mixture": {
        "optimizer": "muon",
        "model": {
            "qk_norm": True,
            "moe": {"num_experts": 3, "num_experts_per_tok": 2, "load_balancing": "bias", "router_z_loss_coef": 0.0},
        },
    },
    "computed again": {"optimizer": "adamw", "recompute": 1},
    "preferences": {"optimizer": "adamw", "pairs": True},
}


def _data(pairs: bool) -> PackedDataset:
    return pack_pairs(random_pairs(30)) if pairs else pack(random_sequences(LENGTHS * 3), packed_length=40)


class Run:
    """A model in training on one rank or several. Six rows per step: four ranks cannot share them evenly."""

    def __init__(self, ranks: DistributedContext, sharded: bool, optimizer: str, pairs: bool = False, **more: Any) -> None:
        model = make_decoder(num_hidden_layers=3, **more.get("model", {})).train()
        model.activation_checkpoint_every = more.get("recompute", 0)
        self.data, self.horizon = (
            _data(pairs),
            TrainingHorizon(
                steps=STEPS, rows=6 * STEPS - 5, micro_batch_size=3, gradient_accumulation_steps=2, initial_accumulation_steps=2
            ),
        )
        objective = dpo(torch.zeros(30, 2), sft_loss_weight=0.3) if pairs else CausalLMObjective()
        self.validation = ValidationSet(self.data, objective, 20)
        rates = {"name": optimizer, "learning_rate": RATE, "betas": (0.9, 0.95), "weight_decay": 0.1}
        values = {"kind": "pretrain", "data": {"train": "x"}, "optimizer": rates, "ema": {"decay": 0.9, "start_fraction": 0.0}}
        stage = PretrainStage.model_validate(values)
        self.ranks, self.model = ranks, model
        self.trainable = TrainableModel(model, stage, STEPS, CPU, "fp32", ranks=ranks, is_sharded=sharded)
        for built in self.trainable.optimizers:
            if isinstance(built, Muon):
                built.dtype = torch.float32  # else bfloat16, whose rounding hides what is looked for
        optimizers = self.trainable.optimizers
        self.train_step = TrainStep(model, objective, optimizers, max_grad_norm=1.0, seed=7, ranks=ranks)
        source = DatasetSource(self.data, self.horizon, 3, objective.normalizer, ranks=ranks)
        self.loader = BatchLoader(source, STEPS, CPU, ranks)
        self.rank_check, self.state = RankConsistencyCheck(ranks, model), TrainState()

    def train(self, steps: int) -> list[list[float]]:
        """Loss, gradient norm, and how far the attention moved, of each step from where it is."""
        metrics = []
        for step in range(self.state.step, steps):
            output = self.train_step(self.loader.batch(step)[0], RATE, log_details=True)
            self.trainable.update_ema(step)
            self.state.step = step + 1
            self.rank_check.check_step(output.batch, step + 1)
            metrics.append([float(output.loss), float(output.grad_norm), float(output.update_ratios["attention"])])
            self.metrics = {name: float(value) for name, value in output.metrics.items()}
        return metrics

    def measured(self) -> dict[str, Any]:
        """Validation metrics of the averaged weights."""
        with self.trainable.averaged():
            return validate(self.model, self.validation, 3, ranks=self.ranks)

    def weights(self) -> dict[str, torch.Tensor]:
        """Full weights on rank 0, both current and averaged."""
        models = self.trainable.snapshot(self.state).models
        return {f"{kind} {name}": tensor for kind, weights in models.items() for name, tensor in weights.items()}


def train_variants(ranks: DistributedContext, parallel: str, folder: str) -> dict[str, Any]:
    """Train every variant; rank 0 writes the weights into the folder."""
    results = {}
    for name, variant in VARIANTS.items():
        run = Run(ranks, parallel == "fsdp", **variant)
        results[name] = [run.train(STEPS), run.measured(), run.metrics]
        weights = run.weights()
        if ranks.is_main_process:
            save_file(weights, Path(folder) / f"{name}.safetensors")
        run.loader.close()
    return results


def _assert_same_steps(metrics: list[list[float]], expected: list[list[float]]) -> None:
    differences = (torch.tensor(metrics) - torch.tensor(expected)).abs()
    assert differences[:, 0].max() < 1e-5  # of the loss
    assert (differences[:, 1:] / torch.tensor(expected)[:, 1:]).max() < 2e-4


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Results and weights of the variants, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return train_variants(DistributedContext(), "ddp", str(folder)), folder


FOUR_DDP, FOUR_FSDP = (pytest.param(4, parallel, marks=pytest.mark.slow) for parallel in ("ddp", "fsdp"))


@pytest.mark.parametrize(("size", "parallel"), [(2, "ddp"), (2, "fsdp"), FOUR_DDP, FOUR_FSDP])
def test_several_ranks_learn_the_same_weights_as_one_process(
    size: int, parallel: str, single_process: Any, tmp_path: Path
) -> None:
    """Losses, norms, metrics, evaluations and weights agree on all ranks, however unevenly the rows are shared."""
    expected, folder = single_process
    for results in run_ranks(size, train_variants, parallel, str(tmp_path)):
        for name in VARIANTS:
            (steps, measured, metrics), (steps_alone, measured_alone, metrics_alone) = results[name], expected[name]
            _assert_same_steps(steps, steps_alone)
            assert measured == pytest.approx(measured_alone, rel=1e-4), name
            assert metrics == pytest.approx(metrics_alone, rel=1e-4) and bool(metrics) == (name == "preferences")
    for name in VARIANTS:
        unsharded, shared = load_file(folder / f"{name}.safetensors"), load_file(tmp_path / f"{name}.safetensors")
        assert set(unsharded) == set(shared)
        for key, tensor in unsharded.items():
            assert (tensor - shared[key]).abs().max() < 2e-4, (name, key)  # of steps of RATE: Adam divides by tiny numbers


def exchange(ranks: DistributedContext) -> list[Any]:
    """The results of every collective operation on this rank."""
    tensors = [torch.full((3, 2), float(ranks.rank)), torch.arange(4.0) * ranks.rank]
    ranks.all_reduce_(tensors)
    value = {"rank": ranks.rank, "text": "空" * (1 + ranks.rank), "infinite": None}
    group = ranks.new_group()
    return [
        ranks.all_reduce_sum([1.0, ranks.rank]),
        ranks.all_reduce_max([float(ranks.rank)]),
        ranks.all_gather_object(value),
        ranks.broadcast_object(value),
        [tensor.tolist() for tensor in tensors],
        group.broadcast_object([ranks.rank]),
    ]


def test_collective_operations_give_every_rank_the_same_result() -> None:
    first, second, third = run_ranks(3, exchange)
    assert first == second == third
    values = [{"rank": rank, "text": "空" * (1 + rank), "infinite": None} for rank in range(3)]
    assert first[:4] == [[3.0, 3.0], [2.0], values, values[0]]
    assert first[4] == [[[3.0, 3.0]] * 3, [0.0, 3.0, 6.0, 9.0]] and first[5] == [0]


def test_a_single_process_does_not_communicate() -> None:
    ranks = DistributedContext()
    assert (
        not ranks.is_distributed
        and ranks.is_main_process
        and ranks.all_reduce_sum([1.5]) == [1.5]
        and ranks.broadcast_object("x") == "x"
        and ranks.all_gather_object(2) == [2]
    )


@given(st.integers(0, 10_000), st.integers(0, 300), st.integers(1, 33))
def test_shard_ranges_cover_every_row_once_in_nearly_equal_parts(first: int, count: int, size: int) -> None:
    ranges = [DistributedContext(rank, size).shard_range(first, first + count) for rank in range(size)]
    assert ranges[0][0] == first and ranges[-1][1] == first + count
    assert all(one[1] == two[0] for one, two in pairwise(ranges))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_micro_batches_respect_the_requested_size_and_need_minimal_padding(micro: int, accumulation: int, size: int) -> None:
    horizon = TrainingHorizon(
        steps=2,
        rows=2 * micro * accumulation,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        initial_accumulation_steps=accumulation,
    )
    if horizon.global_batch_rows < size:
        with pytest.raises(FledgeError, match="cannot share"):
            _source(horizon, micro, DistributedContext(0, size))
        return
    actual = _source(horizon, micro, DistributedContext(0, size)).micro_batch_size
    most = -(-horizon.global_batch_rows // size)
    assert 1 <= actual <= micro and actual * -(-most // actual) - most < -(-most // actual)


def _source(horizon: TrainingHorizon, micro: int, ranks: DistributedContext) -> DatasetSource:
    return DatasetSource(_data(False), horizon, micro, lambda batch: batch.weight, ranks=ranks)


def train_with_drift(ranks: DistributedContext, parallel: str) -> list[Any]:
    """The weights of rank 1 change without an update after step 3."""
    run = Run(ranks, parallel == "fsdp", **VARIANTS["mixture"])
    run.train(3)
    if ranks.rank == 1:
        with torch.no_grad():
            tensor = next(buffer for name, buffer in run.model.state_dict().items() if "bias" in name)
            tensor[0] += 1e-6
    try:
        run.train(STEPS)
    except FledgeError as error:
        return [run.state.step, error.what]
    return [None, None]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_weights_that_drift_apart_between_ranks_are_detected(parallel: str) -> None:
    """Sharded tensors exist once and cannot drift. Replicated tensors can: here the bias of a router."""
    for step, what in run_ranks(2, train_with_drift, parallel):
        assert step is not None and 3 < step <= 3 + CHECK_INTERVAL
        assert "process 1 does not hold the weights of process 0" in what and "bias" in what


def train_on_identical_rows(ranks: DistributedContext, how: str) -> list[Any]:
    """Train two ranks that both read the rows of rank 0."""
    run = Run(ranks, False, "adamw")
    if how == "share":
        run.loader.ranks.shard_range = lambda first, stop: DistributedContext(0, 2).shard_range(first, stop)  # type: ignore[method-assign]
    else:
        batch = run.data.batch
        run.data.batch = lambda first, *resume_and_finish: batch(first - first % 6, *resume_and_finish)  # type: ignore[method-assign]
    try:
        run.train(STEPS)
    except FledgeError as error:
        return [run.state.step, error.what]
    return [None, None]


@pytest.mark.parametrize(("how", "message"), [("share", "did not share the rows"), ("read", "read the same rows")])
def test_ranks_that_read_identical_rows_are_detected(how: str, message: str) -> None:
    for step, what in run_ranks(2, train_on_identical_rows, how):
        assert step is not None and step <= MAX_IDENTICAL_STEPS and message in what


def begin_with_different_weights(ranks: DistributedContext) -> str:
    """The error at the start of training with weights that differ between ranks."""
    run = Run(ranks, False, "adamw")
    with torch.no_grad():
        run.model.norm.weight[0] += ranks.rank * 1e-6
    try:
        run.rank_check.check_start(0)
    except FledgeError as error:
        return error.what
    return ""


def test_weights_that_differ_between_ranks_at_the_start_are_detected() -> None:
    assert all("after step 0 (first difference: norm.weight)" in what for what in run_ranks(2, begin_with_different_weights))


def _write_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    model = make_decoder(num_hidden_layers=3, **VARIANTS["mixture"]["model"])
    model.save_pretrained(folder, bos=None, eos=[1], pad=0, weights=weights)


def train_half_and_save(ranks: DistributedContext, parallel: str, folder: str) -> list[Any]:
    """Train four steps and save a checkpoint."""
    run = Run(ranks, parallel == "fsdp", **VARIANTS["mixture"])
    run.train(4)
    snapshot = run.trainable.snapshot(run.state)
    if ranks.is_main_process or snapshot.sharded:
        path, size = save_checkpoint(Path(folder), snapshot, _write_model, ranks if snapshot.sharded else None)
        return [str(path), size]
    return ["", 0]


def resume_and_finish(ranks: DistributedContext, parallel: str, folder: str) -> list[Any]:
    """Train the remaining steps from the checkpoint."""
    run = Run(ranks, parallel == "fsdp", **VARIANTS["mixture"])
    checkpoint = latest_checkpoint(Path(folder))
    assert checkpoint is not None
    run.trainable.restore(checkpoint[0], checkpoint[1])
    run.state = checkpoint[1]
    return [run.train(STEPS), run.measured()]


RESUMES = [("4 fsdp", "2 fsdp"), ("4 fsdp", "1 ddp"), ("4 ddp", "2 fsdp"), ("1 ddp", "2 ddp")]


@pytest.mark.parametrize(("saved", "resumed"), RESUMES)
def test_checkpoint_resumes_with_any_number_of_ranks_and_parallelism(
    saved: str, resumed: str, single_process: Any, tmp_path: Path
) -> None:
    """The remaining steps equal those of an uninterrupted run, whatever number of ranks and parallelism saved and resumed."""

    def run_with(what: str, body: Any) -> Any:
        size, parallel = what.split()
        return (
            [body(DistributedContext(), parallel, str(tmp_path))]
            if size == "1"
            else run_ranks(int(size), body, parallel, str(tmp_path))
        )

    path, _ = run_with(saved, train_half_and_save)[0]
    assert verify(Path(path)) is None
    steps, measured, _ = single_process[0]["mixture"]
    for result in run_with(resumed, resume_and_finish):
        _assert_same_steps(result[0], steps[4:])
        assert result[1] == pytest.approx(measured, rel=1e-4)


def test_sharded_checkpoint_holds_the_tensors_of_an_unsharded_one(tmp_path: Path) -> None:
    """The shards of four ranks together equal the checkpoint of one process."""
    run_ranks(4, train_half_and_save, "fsdp", str(tmp_path / "sharded"))
    train_half_and_save(DistributedContext(), "ddp", str(tmp_path / "unsharded"))
    sharded, unsharded = (load_optimizer_state(tmp_path / name / "step-00000004") for name in ("sharded", "unsharded"))
    assert set(sharded) == set(unsharded) and COUNT in unsharded and any(name.startswith(PREFIX) for name in unsharded)
    for name, tensor in unsharded.items():
        assert sharded[name].dtype == tensor.dtype and (sharded[name] - tensor).abs().max() < 1e-4, name
    files = {path.name: load_file(path) for path in (tmp_path / "sharded").glob("*/state/optimizer/*.safetensors")}
    assert len(files) == 4 and all(tensors for tensors in files.values())
