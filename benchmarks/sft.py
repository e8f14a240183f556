"""SFT speed on real chats of all lengths: fledge against TRL's SFTTrainer, in useful tokens per second.

Both train equal weights (the 26M preset, written by fledge and read by transformers) on equal sequences: fledge reads,
renders and encodes the conversations, and the opponent gets these tokens with labels on the answers (TRL keeps the
labels of a data set), so template, tokenizer and assistant-only loss are equal by construction. 16 rows of at most
512 tokens make a step. TRL runs as it ships (its own defaults for precision, checkpointing and padding), and at its best: the
fastest of several ways to pack, with bf16, without gradient checkpointing, and with torch.compile, each tried first.

Useful tokens are all tokens but padding; supervised tokens have a weight in the loss. Seconds count whole steps; the
first of each call is left out. Real chats are read from $FLEDGE_DATA or ../shared/data; without them, from the quickstart's
world.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import data_folder, options, report
from opponent import clock, comparison, fastest, take_turns
from training import Training, fresh, packed, world_file

from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.model.decoder import Decoder
from fledge.recipe import Recipe, recipe_from_dict
from fledge.tokenizer import Tokenizer

UNIT = "useful tokens/s"
FILES = ("alpaca_zh_demo.json", "alpaca_en_demo.json", "glaive_toolcall_en_demo.json")


@dataclass(frozen=True)
class Work:
    """The seconds of some steps and their numbers of tokens."""

    seconds: float
    useful: int
    supervised: int
    computed: int  # positions, padding included

    @property
    def speed(self) -> float:
        """Useful tokens a second."""
        return self.useful / self.seconds


def make_recipe(rows: int, context: int, layers: int, folder: Path) -> Recipe:
    """The 26M preset on chats."""
    real = data_folder() / "llamafactory"
    train = [str(real / name) for name in FILES] if real.exists() else [world_file("sft", folder)]
    stage = {
        "data": {"train": train, "validation": 0.0, "max_seq_len": context},
        "batch": {"micro_batch_size": rows},
        "duration": "100 steps",
    }
    model = {"num_hidden_layers": layers}
    return recipe_from_dict({"preset": "26m", "model": model, "stages": {"sft": {**stage, "schedule": {"warmup": 5}}}})


def fledge_works(training: Training, steps: int) -> Work:
    """Train some steps with fledge."""
    started = time.perf_counter()
    batches = [training.learn() for _ in range(steps)]
    seconds = time.perf_counter() - started
    computed = sum(micro_batch.input_ids.numel() for batch in batches for micro_batch in batch.batches)
    targets = sum(batch.num_target_tokens for batch in batches)
    return Work(seconds, sum(batch.num_tokens for batch in batches), targets, computed)


def as_rows(examples: Examples) -> list[dict[str, list[int]]]:
    """Every sequence with its labels in TRL's form: −100 where the loss has no weight. (The model shifts the labels.)"""
    rows = []
    for start, stop in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        span = slice(int(start), int(stop))
        tokens, weights = np.asarray(examples.tokens[span], np.int64), np.asarray(examples.weights[span])
        rows.append({"input_ids": tokens.tolist(), "labels": np.where(weights > 0, tokens, -100).tolist()})
    return rows


class Counting:
    """A collator that counts useful, supervised and computed tokens of each batch."""

    def __init__(self, collate: Callable[[list], dict[str, Any]]) -> None:
        self.collate, self.counts = collate, []

    def __call__(self, rows: list) -> dict[str, Any]:
        """The collated batch, after its tokens are counted."""
        batch = self.collate(rows)
        mask = batch.get("attention_mask")
        useful = batch["input_ids"].numel() if mask is None else int(mask.sum())
        self.counts.append((useful, int((batch["labels"] != -100).sum()), batch["input_ids"].numel()))
        return batch


class Opponent:
    """TRL's SFTTrainer. `accumulation` divides the rows of a step into as many micro-batches; `adapter`: settings of PEFT's
    LoraConfig, None to train the weights; `dtype`: of the weights."""

    def __init__(
        self,
        folder: Path,
        rows: list,
        *,
        context: int,
        micro: int,
        steps: int,
        accumulation: int,
        adapter: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        **how: Any,
    ) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        self.accumulation, self.seconds, self.calls = accumulation, [], 0
        self.output = tempfile.TemporaryDirectory()
        arguments = SFTConfig(
            self.output.name, per_device_train_batch_size=micro // accumulation, gradient_accumulation_steps=accumulation,
            max_steps=steps + 1, max_length=context, use_cpu=True, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, **how,
        )  # fmt: skip
        self.trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), arguments,
            train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[clock(self.seconds)],
            peft_config=None if adapter is None else _lora_config(adapter),
        )  # fmt: skip
        self.counting = Counting(self.trainer.data_collator)
        self.trainer.data_collator = self.counting

    def how(self) -> dict[str, Any]:
        """The arguments that decide speed, as the trainer has them."""
        names = ("bf16", "packing", "padding_free", "gradient_checkpointing", "torch_compile")
        values = {name: getattr(self.trainer.args, name) for name in names}
        strategy = self.trainer.args.packing_strategy if values["packing"] else None
        return {
            **values,
            "packing_strategy": strategy,
            "gradient_accumulation_steps": self.accumulation,
            "optim": str(self.trainer.args.optim),
        }

    def __call__(self) -> Work:
        """Train a few steps on other rows than before; returns the seconds and the tokens of all but the first step."""
        self.seconds.clear()
        self.counting.counts.clear()
        self.calls += 1  # other rows in each call: by itself the trainer would begin with the same ones
        self.trainer.train_dataset = self.trainer.train_dataset.shuffle(seed=self.calls)
        self.trainer.train()
        counts = self.counting.counts[self.accumulation : len(self.seconds) * self.accumulation]
        useful, supervised, computed = (sum(column) for column in zip(*counts, strict=True))
        return Work(sum(self.seconds[1:]), useful, supervised, computed)


def _lora_config(settings: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **settings)


PACKED = {"packing": True, "bf16": True, "gradient_checkpointing": False}
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {  # whether rows go one by one, and the arguments
    "padded": (False, {"bf16": True, "gradient_checkpointing": False}),
    "packed": (False, PACKED),
    "packed, row by row": (True, PACKED),
    "packed, row by row, compiled": (True, {**PACKED, "torch_compile": True}),
    "cut and joined, compiled": (False, {**PACKED, "packing_strategy": "wrapped", "torch_compile": True}),
}


def ways_of(
    make: Callable[..., Opponent], micro: int, ways: Mapping[str, tuple[bool, dict[str, Any]]] = WAYS
) -> dict[str, Callable[[], Opponent]]:
    """The opponent in each way. `micro`: rows of a step."""
    return {name: partial(make, micro if one_by_one else 1, **how) for name, (one_by_one, how) in ways.items()}


def summary(works: list[Work]) -> dict[str, Any]:
    """Speeds, and the counts of tokens behind them."""
    speeds = [work.speed for work in works]
    return {
        "useful_tokens_per_second": round(statistics.median(speeds)),
        "range": [round(min(speeds)), round(max(speeds))],
        "supervised_tokens_per_second": round(statistics.median(work.supervised / work.seconds for work in works)),
        "useful_share": round(sum(work.useful for work in works) / sum(work.computed for work in works), 3),
        "useful_tokens": sum(work.useful for work in works),
    }


def prepare(rows: int, context: int, layers: int, folder: Path) -> tuple[Recipe, PackedDataset, Tokenizer, Decoder]:
    """Data, tokenizer and model, the last two also as files in `folder`."""
    recipe = make_recipe(rows, context, layers, folder / "world")
    data, tokenizer = packed(recipe, "sft")
    model = fresh(recipe, tokenizer.vocab_size)
    model.save_pretrained(folder, bos=None, eos=sorted(tokenizer.stop_ids), pad=tokenizer.pad)
    tokenizer.save(folder)
    return recipe, data, tokenizer, model


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, with --quick 2)")
    parser.add_argument("--steps", type=int, help="steps in each (default 3, with --quick 2)")
    chosen = parser.parse_args()
    rows, context, layers = (4, 256, 2) if chosen.quick else (16, 512, 8)
    steps, rounds = chosen.steps or (2 if chosen.quick else 3), chosen.rounds or (2 if chosen.quick else 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, data, _, model = prepare(rows, context, layers, folder)
        fledge, sequences = Training(recipe, "sft", data, model), as_rows(data.examples)

        def make(accumulation: int, **arguments: Any) -> Opponent:
            return Opponent(folder, sequences, context=context, micro=rows, steps=steps, accumulation=accumulation, **arguments)

        shipped = make(1)
        shipped()
        way, best, tried = fastest(ways_of(make, rows), UNIT)
        fledge_works(fledge, steps)
        works = take_turns({"fledge": lambda: fledge_works(fledge, steps), "as_shipped": shipped, "best": best}, rounds, UNIT)
    fledge.loader.close()
    report(
        {
            **comparison(works),
            "fledge": {**summary(works["fledge"]), "decision": fledge.decision.as_dict()},
            "as_shipped": {**summary(works["as_shipped"]), "how": shipped.how()},
            "best": {**summary(works["best"]), "is": way, "how": best.how(), "tried_useful_tokens_per_second": tried},
            "batch": [rows, context],
            "sequences": len(sequences),
            "steps_per_round": steps,
            "rounds": rounds,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
