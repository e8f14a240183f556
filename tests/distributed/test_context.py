"""Processes that train together: they tell each other the same, share every row, and learn what one alone would."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fledge.checkpoint.checkpoint import TrainState, latest_checkpoint, load_optimizer_state, save_checkpoint, verify
from fledge.data import PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.model.pretrained import save_pretrained
from fledge.objective import CausalLMObjective
from fledge.optim.ema import COUNT, PREFIX
from fledge.optim.muon import Muon
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import PretrainStage
from fledge.train.batch_loader import BatchLoader
from fledge.train.rank_consistency import CHECK_INTERVAL, MAX_IDENTICAL_STEPS, RankConsistencyCheck
from fledge.train.train_step import TrainStep
from fledge.train.trainable import TrainableModel
from fledge.train.validation import ValidationSet, validate
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
    return pack_pairs(random_pairs(30)) if pairs else pack(random_sequences(LENGTHS * 3), row_length=40)


class Run:
    """A learner with its feed and its updater, among other ranks or alone. Windows of six rows: four ranks cannot share them
    evenly."""

    def __init__(self, ranks: DistributedContext, divided: bool, optimizer: str, pairs: bool = False, **more: Any) -> None:
        model = make_decoder(num_hidden_layers=3, **more.get("model", {})).train()
        model.activation_checkpoint_every = more.get("recompute", 0)
        self.data, self.extent = _data(pairs), TrainingHorizon(STEPS, 6 * STEPS - 5, 3, 2, 2)
        objective = dpo(torch.zeros(30, 2), sft_loss_weight=0.3) if pairs else CausalLMObjective()
        self.validation = ValidationSet(self.data, objective, 20)
        rates = {"name": optimizer, "learning_rate": RATE, "betas": (0.9, 0.95), "weight_decay": 0.1}
        values = {"kind": "pretrain", "data": {"train": "x"}, "optimizer": rates, "ema": {"decay": 0.9, "start_fraction": 0.0}}
        stage = PretrainStage.model_validate(values)
        self.ranks, self.model = ranks, model
        self.learner = TrainableModel(model, stage, STEPS, CPU, "fp32", ranks, divided)
        for built in self.learner.optimizers:
            if isinstance(built, Muon):
                built.dtype = torch.float32  # else bfloat16, whose rounding hides what is looked for
        self.updater = TrainStep(model, objective, self.learner.optimizers, 1.0, 7, ranks=ranks)
        self.feed = BatchLoader(self.data, self.extent, 3, objective.normalizer, CPU, ranks)
        self.proof, self.state = RankConsistencyCheck(ranks, model), TrainState()

    def train(self, steps: int) -> list[list[float]]:
        """Loss, gradient norm, and how far the attention moved, of each step from where it is."""
        found = []
        for step in range(self.state.step, steps):
            update = self.updater(self.feed.window(step)[0], RATE, log_details=True)
            self.learner.update_ema(step)
            self.state.step = step + 1
            self.proof.after(update.window, step + 1)
            found.append([float(update.loss), float(update.norm), float(update.groups["attention"])])
            self.metrics = {name: float(value) for name, value in update.metrics.items()}
        return found

    def measured(self) -> dict[str, Any]:
        with self.learner.averaged():
            return validate(self.model, self.validation, 3, ranks=self.ranks)

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole, on the first rank: as they are, and averaged."""
        models = self.learner.snapshot(self.state).models
        return {f"{kind} {name}": tensor for kind, weights in models.items() for name, tensor in weights.items()}


def train_variants(ranks: DistributedContext, parallel: str, folder: str) -> dict[str, Any]:
    """Every variant; the first rank leaves its weights in the folder."""
    found = {}
    for name, variant in VARIANTS.items():
        run = Run(ranks, parallel == "fsdp", **variant)
        found[name] = [run.train(STEPS), run.measured(), run.metrics]
        weights = run.weights()
        if ranks.is_main_process:
            save_file(weights, Path(folder) / f"{name}.safetensors")
        run.feed.close()
    return found


def _assert_same_steps(found: list[list[float]], expected: list[list[float]]) -> None:
    differences = (torch.tensor(found) - torch.tensor(expected)).abs()
    assert differences[:, 0].max() < 1e-5  # of the loss
    assert (differences[:, 1:] / torch.tensor(expected)[:, 1:]).max() < 2e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("alone")
    return train_variants(DistributedContext(), "ddp", str(folder)), folder


@pytest.mark.parametrize(("size", "parallel"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_ranks_learn_what_one_process_learns(size: int, parallel: str, alone: Any, tmp_path: Path) -> None:
    """The same losses, norms, metrics, evaluations and weights, for all ranks, however unevenly they share the rows."""
    expected, folder = alone
    for found in run_ranks(size, train_variants, parallel, str(tmp_path)):
        for name in VARIANTS:
            (steps, measured, metrics), (steps_alone, measured_alone, metrics_alone) = found[name], expected[name]
            _assert_same_steps(steps, steps_alone)
            assert measured == pytest.approx(measured_alone, rel=1e-4), name
            assert metrics == pytest.approx(metrics_alone, rel=1e-4) and bool(metrics) == (name == "preferences")
    for name in VARIANTS:
        whole, shared = load_file(folder / f"{name}.safetensors"), load_file(tmp_path / f"{name}.safetensors")
        assert set(whole) == set(shared)
        for key, tensor in whole.items():
            assert (tensor - shared[key]).abs().max() < 2e-4, (name, key)  # of steps of RATE: Adam divides by tiny numbers


def exchange(ranks: DistributedContext) -> list[Any]:
    tensors = [torch.full((3, 2), float(ranks.rank)), torch.arange(4.0) * ranks.rank]
    ranks.all_reduce_(tensors)
    given = {"rank": ranks.rank, "text": "空" * (1 + ranks.rank), "infinite": None}
    apart = ranks.new_group()
    return [
        ranks.all_reduce_sum([1.0, ranks.rank]),
        ranks.all_reduce_max([float(ranks.rank)]),
        ranks.all_gather_object(given),
        ranks.broadcast_object(given),
        [tensor.tolist() for tensor in tensors],
        apart.broadcast_object([ranks.rank]),
    ]


def test_ranks_are_told_the_same() -> None:
    first, second, third = run_ranks(3, exchange)
    assert first == second == third
    given = [{"rank": rank, "text": "空" * (1 + rank), "infinite": None} for rank in range(3)]
    assert first[:4] == [[3.0, 3.0], [2.0], given, given[0]]
    assert first[4] == [[[3.0, 3.0]] * 3, [0.0, 3.0, 6.0, 9.0]] and first[5] == [0]


def test_one_process_needs_no_others() -> None:
    ranks = DistributedContext()
    assert (
        ranks.alone
        and ranks.is_main_process
        and ranks.all_reduce_sum([1.5]) == [1.5]
        and ranks.broadcast_object("x") == "x"
        and ranks.all_gather_object(2) == [2]
    )


@given(st.integers(0, 10_000), st.integers(0, 300), st.integers(1, 33))
def test_every_row_is_shared_once(first: int, count: int, size: int) -> None:
    shares = [DistributedContext(rank, size).shard_range(first, first + count) for rank in range(size)]
    assert shares[0][0] == first and shares[-1][1] == first + count
    assert all(one[1] == two[0] for one, two in pairwise(shares))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_micro_batches_are_no_larger_than_asked_and_not_emptier_than_need_be(micro: int, accumulation: int, size: int) -> None:
    extent = TrainingHorizon(2, 2 * micro * accumulation, micro, accumulation, accumulation)
    if extent.global_batch_rows < size:
        with pytest.raises(FledgeError, match="cannot share"):
            _feed(extent, micro, DistributedContext(0, size))
        return
    made = _feed(extent, micro, DistributedContext(0, size)).micro
    most = -(-extent.global_batch_rows // size)
    assert 1 <= made <= micro and made * -(-most // made) - most < -(-most // made)


def _feed(extent: TrainingHorizon, micro: int, ranks: DistributedContext) -> BatchLoader:
    return BatchLoader(_data(False), extent, micro, lambda batch: batch.weight, CPU, ranks)


def drift(ranks: DistributedContext, parallel: str) -> list[Any]:
    """Rank 1's weights move by themselves after step 3."""
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
def test_weights_that_drift_apart_are_noticed(parallel: str) -> None:
    """What is divided cannot drift: there is only one of it. What every rank has can, here the bias of a router."""
    for step, what in run_ranks(2, drift, parallel):
        assert step is not None and 3 < step <= 3 + CHECK_INTERVAL
        assert "process 1 does not hold the weights of process 0" in what and "bias" in what


def same_rows(ranks: DistributedContext, how: str) -> list[Any]:
    """Both ranks read the rows of the first one."""
    run = Run(ranks, False, "adamw")
    if how == "share":
        run.feed.ranks.shard_range = lambda first, stop: DistributedContext(0, 2).shard_range(first, stop)  # type: ignore[method-assign]
    else:
        batch = run.data.batch
        run.data.batch = lambda first, *rest: batch(first - first % 6, *rest)  # type: ignore[method-assign]
    try:
        run.train(STEPS)
    except FledgeError as error:
        return [run.state.step, error.what]
    return [None, None]


@pytest.mark.parametrize(("how", "said"), [("share", "did not share the rows"), ("read", "read the same rows")])
def test_ranks_that_read_the_same_are_noticed(how: str, said: str) -> None:
    for step, what in run_ranks(2, same_rows, how):
        assert step is not None and step <= MAX_IDENTICAL_STEPS and said in what


def other_start(ranks: DistributedContext) -> str:
    run = Run(ranks, False, "adamw")
    with torch.no_grad():
        run.model.norm.weight[0] += ranks.rank * 1e-6
    try:
        run.proof.begin(0)
    except FledgeError as error:
        return error.what
    return ""


def test_weights_that_differ_at_the_start_are_noticed() -> None:
    assert all("after step 0 (first difference: norm.weight)" in what for what in run_ranks(2, other_start))


def _write_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    model = make_decoder(num_hidden_layers=3, **VARIANTS["mixture"]["model"])
    save_pretrained(model, folder, bos=None, eos=[1], pad=0, weights=weights)


def half(ranks: DistributedContext, parallel: str, folder: str) -> list[Any]:
    """Four steps, and a checkpoint."""
    run = Run(ranks, parallel == "fsdp", **VARIANTS["mixture"])
    run.train(4)
    snapshot = run.learner.snapshot(run.state)
    if ranks.is_main_process or snapshot.divided:
        path, size = save_checkpoint(Path(folder), snapshot, _write_model, ranks if snapshot.divided else None)
        return [str(path), size]
    return ["", 0]


def rest(ranks: DistributedContext, parallel: str, folder: str) -> list[Any]:
    """The other steps, from the checkpoint."""
    run = Run(ranks, parallel == "fsdp", **VARIANTS["mixture"])
    found = latest_checkpoint(Path(folder))
    assert found is not None
    run.learner.restore(found[0], found[1])
    run.state = found[1]
    return [run.train(STEPS), run.measured()]


WAYS = [("4 fsdp", "2 fsdp"), ("4 fsdp", "1 ddp"), ("4 ddp", "2 fsdp"), ("1 ddp", "2 ddp")]


@pytest.mark.parametrize(("saved", "resumed"), WAYS)
def test_a_checkpoint_of_some_ranks_is_one_of_others(saved: str, resumed: str, alone: Any, tmp_path: Path) -> None:
    """Saved by so many ranks in this way, and resumed by others in that way: the rest is as if nothing had happened."""

    def among(what: str, body: Any) -> Any:
        size, parallel = what.split()
        return (
            [body(DistributedContext(), parallel, str(tmp_path))]
            if size == "1"
            else run_ranks(int(size), body, parallel, str(tmp_path))
        )

    path, _ = among(saved, half)[0]
    assert verify(Path(path)) is None
    steps, measured, _ = alone[0]["mixture"]
    for found in among(resumed, rest):
        _assert_same_steps(found[0], steps[4:])
        assert found[1] == pytest.approx(measured, rel=1e-4)


def test_parts_of_a_checkpoint_are_the_whole_of_it(tmp_path: Path) -> None:
    """What four ranks have written in parts is what one process would have written."""
    run_ranks(4, half, "fsdp", str(tmp_path / "parts"))
    half(DistributedContext(), "ddp", str(tmp_path / "whole"))
    parts, whole = (load_optimizer_state(tmp_path / name / "step-00000004") for name in ("parts", "whole"))
    assert set(parts) == set(whole) and COUNT in whole and any(name.startswith(PREFIX) for name in whole)
    for name, tensor in whole.items():
        assert parts[name].dtype == tensor.dtype and (parts[name] - tensor).abs().max() < 1e-4, name
    kept = {path.name: load_file(path) for path in (tmp_path / "parts").glob("*/state/optimizer/*.safetensors")}
    assert len(kept) == 4 and all(tensors for tensors in kept.values())
