"""DPO on real pairs: fledge against TRL's DPOTrainer, in pairs per second and in memory.

Both train equal weights (the 26M preset, written by fledge and read by transformers) on equal pairs: fledge reads, renders and
encodes the conversations, and the opponent gets these tokens. Pairs count once: the passes of the reference and of the policy
belong to the same seconds, as in a run of one epoch. fledge computes the reference's log-probabilities before, without a second
model, and the prompt of a pair once for both answers, as its stages do. TRL runs as it ships, and at its best: the fastest of
several ways, each tried first. With --quick neither compiles anything, and sequences are half as long.

Memory is the highest resident size of a process of its own that takes a few steps, less its size before the model is loaded,
when the libraries of both are loaded already.
The losses of both on the same pairs, step by step from the same start and at the same rate, are `loss_curves`.
Real pairs are read from $FLEDGE_DATA or ../shared/data; without them, from the quickstart's world.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import data_folder, options, report
from opponent import clock, comparison, fastest, load_libraries_aside, memories, resident, resident_at_start, take_turns
from training import Training, fresh, packed, world_file

from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.model.decoder import Decoder
from fledge.model.eager import force_eager
from fledge.model.loading import load_model
from fledge.model.protocol import eval_mode
from fledge.objective import DPOObjective
from fledge.objective.preference import PAIR, by_pair, sequence_log_probabilities
from fledge.recipe import Recipe, recipe_from_dict
from fledge.tokenizer import Tokenizer, load_tokenizer

UNIT = "pairs/s"
FILES = ("dpo_zh_demo.json", "dpo_en_demo.json")
BETA, RATE = 0.1, 1e-5
MEMORY_STEPS, CURVE_RATE = 3, 0.003
Rows = list[dict[str, list[int]]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured: packed rows of a step, positions of a sequence, layers; steps of a round and rounds; steps of the
    loss curves; whether compiling is tried; trials of each of the opponent's ways."""

    rows: int = 2
    context: int = 512
    layers: int = 8
    steps: int = 3
    rounds: int = 5
    curve_steps: int = 6
    compiles: bool = True
    trials: int = 2


QUICK = Size(context=256, layers=2, steps=2, rounds=1, curve_steps=2, compiles=False, trials=1)


@dataclass(frozen=True)
class Work:
    """The seconds of some steps, and their pairs and tokens."""

    seconds: float
    pairs: int
    tokens: int

    @property
    def speed(self) -> float:
        """Pairs a second."""
        return self.pairs / self.seconds


def make_recipe(size: Size, folder: Path) -> Recipe:
    """The 26M preset on pairs, with AdamW at a constant rate, which TRL gets as well."""
    real = data_folder() / "llamafactory"
    train = [str(real / name) for name in FILES] if real.exists() else [world_file("preference", folder)]
    stage = {
        "kind": "preference",
        "beta": BETA,
        "data": {"train": train, "validation": 0.0, "max_seq_len": size.context, "clean": {"decontaminate": False}},
        "batch": {"micro_batch_size": size.rows},
        "duration": "100 steps",
        "optimizer": {"name": "adamw", "learning_rate": RATE, "weight_decay": 0.0, "betas": [0.9, 0.999]},
        "schedule": {"name": "constant", "warmup": 0},
    }
    model = {"num_hidden_layers": size.layers, "max_position_embeddings": size.context}
    runtime = {"compile": "auto" if size.compiles else False}
    return recipe_from_dict({"preset": "26m", "model": model, "runtime": runtime, "stages": {"dpo": stage}})


def as_rows(examples: Examples) -> Rows:
    """Every pair in TRL's form: tokens of the prompt, which both sequences begin with, and of the two completions."""
    sides = []
    for start, stop in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        span = slice(int(start), int(stop))
        tokens = np.asarray(examples.tokens[span], np.int64).tolist()
        learned = np.flatnonzero(np.asarray(examples.weights[span]) > 0)
        sides.append((tokens[: learned[0]], tokens[learned[0] : learned[-1] + 1]))  # TRL learns all that follows the prompt
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in zip(sides[::PAIR], sides[1::PAIR], strict=True)
    ]


def some_rows(data: PackedDataset) -> Rows:
    """As many pairs as the opponent needs, of all files alike."""
    rows = as_rows(data.examples)
    return [rows[number] for number in np.random.default_rng(0).permutation(len(rows))[:64]]


class Fledge:
    """DPO of fledge: the reference's log-probabilities of a batch, computed by a frozen copy of the start, then a step."""

    def __init__(self, recipe: Recipe, data: PackedDataset, model: Decoder, reference: Decoder | None) -> None:
        """`reference`: None where all log-probabilities are computed by the model itself before it learns."""
        pairs = data.examples.count
        table = torch.zeros(pairs, PAIR)
        self.reference = reference
        self.training = Training(
            recipe, "dpo", data, model, objective=DPOObjective(loss_type="sigmoid", beta=BETA, reference=table)
        )
        self.table = table
        if reference is not None:
            self.training.decision.apply(reference)
            reference.eval().requires_grad_(False)

    def score(self, model: Decoder, batch: Any) -> None:
        """Write the log-probabilities of a batch into the table of the reference."""
        with force_eager(), torch.no_grad(), eval_mode(model):  # as stages do it
            self.table[list(batch.examples)] = by_pair(sequence_log_probabilities(model, batch)[0], batch)

    def __call__(self, steps: int) -> Work:
        """Take some steps; the reference's pass of each batch counts."""
        pairs = tokens = 0
        started = time.perf_counter()
        for _ in range(steps):
            step = self.training.loader.rebuild(self.training.step)
            for batch in step.batches:
                if self.reference is not None:
                    self.score(self.reference, batch)
            learned = self.training.learn()
            pairs += sum(len(batch.examples) for batch in learned.batches)
            tokens += learned.num_tokens
        return Work(time.perf_counter() - started, pairs, tokens)


class Opponent:
    """TRL's DPOTrainer on tokens. `accumulation` divides the pairs of a step into as many micro-batches."""

    def __init__(self, folder: Path, rows: Rows, *, pairs: int, steps: int, accumulation: int, **how: Any) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        seconds: list[float] = []

        class OnTokens(DPOTrainer):
            before = 0.0  # seconds of the reference's passes, which precede the steps

            def _prepare_dataset(self, dataset: Any, *positional: object, **named: object) -> Any:
                return dataset

            def _precompute_ref_logps(self, dataset: Any, *positional: Any, **named: Any) -> Any:
                started = time.perf_counter()
                done = super()._precompute_ref_logps(dataset, *positional, **named)
                self.before = time.perf_counter() - started
                return done

        self.seconds, self.pairs, self.accumulation, self.calls = seconds, pairs, accumulation, 0
        self.output = tempfile.TemporaryDirectory()
        arguments = DPOConfig(
            self.output.name, per_device_train_batch_size=pairs // accumulation, gradient_accumulation_steps=accumulation,
            max_steps=steps + 1, max_length=None, beta=BETA, learning_rate=RATE, lr_scheduler_type="constant", weight_decay=0.0,
            use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, **how,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.trainer = OnTokens(
            model, args=arguments, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[clock(seconds)],
        )  # fmt: skip
        self.before = self.trainer.before / len(rows)  # of a pair

    def how(self) -> dict[str, Any]:
        """The arguments that decide speed, as the trainer has them."""
        names = ("bf16", "gradient_checkpointing", "torch_compile", "precompute_ref_log_probs", "padding_free")
        return {name: getattr(self.trainer.args, name, None) for name in names} | {
            "gradient_accumulation_steps": self.accumulation,
            "per_device_train_batch_size": self.trainer.args.per_device_train_batch_size,
        }

    def __call__(self) -> Work:
        """Train a few steps on other pairs than before; all but the first count."""
        self.seconds.clear()
        self.calls += 1
        self.trainer.train_dataset = data = self.trainer.train_dataset.shuffle(seed=self.calls)
        self.trainer.train()
        pairs = self.pairs * (len(self.seconds) - 1)
        length = statistics.mean(len(row["prompt_ids"]) * 2 + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in data)
        return Work(sum(self.seconds[1:]) + self.before * pairs, pairs, round(pairs * length))


PLAIN = {"bf16": True, "gradient_checkpointing": False}
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {  # whether pairs go one by one, and the arguments
    "padded": (False, PLAIN),
    "pair by pair": (True, PLAIN),
    "pair by pair, reference before": (True, {**PLAIN, "precompute_ref_log_probs": True, "precompute_ref_batch_size": 1}),
    "pair by pair, compiled": (True, {**PLAIN, "torch_compile": True}),
    "pair by pair, float32": (True, {"bf16": False, "gradient_checkpointing": False}),
}


def loss_curves(data: PackedDataset, folder: Path, opponent: Opponent, steps: int) -> dict[str, list[float]]:
    """The mean loss of the same pairs in both, before each of a few updates from the same start, in float32. Updates are plain
    gradient descent: Adam would make much of rounding where gradients are nearly 0. `opponent` has not trained yet."""
    rows = as_rows(data.examples)
    ours, trainer = load_model(folder), opponent.trainer
    objective = DPOObjective(loss_type="sigmoid", beta=BETA, reference=load_model(folder).eval())
    models: dict[str, Any] = {"fledge": ours.train(), "TRL": trainer.model.train()}
    optimizers = {name: torch.optim.SGD(model.parameters(), CURVE_RATE) for name, model in models.items()}
    curves: dict[str, list[float]] = {name: [] for name in models}
    for step in range(steps):
        batch = data.batch(step % 2, 1)
        theirs = trainer.data_collator([rows[number] for number in batch.examples])
        losses = {
            "fledge": objective(ours, batch).loss / len(batch.examples),
            "TRL": trainer._compute_loss(trainer.model, theirs, False),
        }
        for name, loss in losses.items():
            loss.backward()
            curves[name].append(round(loss.item(), 6))
            optimizers[name].step()
            optimizers[name].zero_grad()
    return curves


def measure_memory(who: str, way: str, folder: Path, size: Size, pairs: int) -> int:
    """Take a few steps in this process and return how far its resident size rose from that before the model was loaded."""
    recipe, data = prepare(size, folder, load_tokenizer(folder))
    rows_of_opponent = some_rows(data)
    before = resident_at_start()
    if who == "fledge":
        model = load_model(folder)
        assert isinstance(model, Decoder)
        fledge = Fledge(recipe, data, model, None)
        for step in range(MEMORY_STEPS):
            for batch in fledge.training.loader.rebuild(step).batches:
                fledge.score(model, batch)
        fledge(MEMORY_STEPS)
        fledge.training.loader.close()
    else:
        one_by_one, arguments = WAYS[way]
        accumulation = pairs if one_by_one else 1
        Opponent(folder, rows_of_opponent, pairs=pairs, steps=MEMORY_STEPS, accumulation=accumulation, **arguments)()
    return resident("VmHWM") - before


def prepare(size: Size, folder: Path, tokenizer: Tokenizer | None = None) -> tuple[Recipe, PackedDataset]:
    """The recipe and the packed pairs, which share their prompts; without a `tokenizer`, one is trained, and written to
    `folder` with the model."""
    recipe = make_recipe(size, folder / "world")
    data, used = packed(recipe, "dpo", tokenizer)
    if tokenizer is None:
        model = fresh(recipe, used.vocab_size)
        model.save_pretrained(folder, bos=None, eos=sorted(used.stop_ids), pad=used.pad)
        used.save(folder)
    return recipe, data.sharing_beginnings()


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, with --quick 1)")
    parser.add_argument("--steps", type=int, help="steps in each (default 3, with --quick 2)")
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else Size()
    load_libraries_aside()
    steps, rounds = chosen.steps or size.steps, chosen.rounds or size.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, data = prepare(size, folder)
        policy, reference = load_model(folder), load_model(folder)
        assert isinstance(policy, Decoder) and isinstance(reference, Decoder)
        fledge = Fledge(recipe, data, policy, reference)
        rows, pairs = some_rows(data), max(1, round(size.rows * data.examples.count / data.packed_rows_in(1)))

        def make(accumulation: int, **how: Any) -> Opponent:
            return Opponent(folder, rows, pairs=pairs, steps=steps, accumulation=accumulation, **how)

        shipped = make(1)  # the first step of each call does not count
        if not chosen.quick:
            shipped()
        names = list(WAYS)[:2] if chosen.quick else list(WAYS)
        ways = {name: partial(make, pairs if WAYS[name][0] else 1, **WAYS[name][1]) for name in names}
        way, best, tried = fastest(ways, UNIT, digits=2, trials=size.trials)
        fledge(1 if chosen.quick else steps)
        contenders: dict[str, Callable[[], Work]] = {"fledge": lambda: fledge(steps), "as_shipped": shipped, "best": best}
        works = take_turns(contenders, rounds, UNIT, digits=2)
        fledge.training.loader.close()
        curves = loss_curves(data, folder, make(1, bf16=False, gradient_checkpointing=False), size.curve_steps)
        common = (folder, size, pairs)
        peak = memories(measure_memory, {"fledge": ("fledge", "", *common), "best": ("TRL", way, *common)})
    report(
        {
            **comparison(works),
            "memory_ratio": round(peak["fledge"] / peak["best"], 3),
            "memory_bytes": peak,
            "loss_curves": curves,
            "pairs_per_second": {n: round(statistics.median(work.speed for work in ws), 2) for n, ws in works.items()},
            "tokens_of_a_pair": {n: round(sum(w.tokens for w in ws) / sum(w.pairs for w in ws)) for n, ws in works.items()},
            "fledge": {"decision": fledge.training.decision.as_dict()},
            "as_shipped": shipped.how(),
            "best": {"is": way, "how": best.how(), "tried_pairs_per_second": tried},
            "pairs_of_a_step": pairs,
            "saved_by_shared_prompts": round(data.shareable_share, 3),
            "steps_per_round": steps,
            "rounds": rounds,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
