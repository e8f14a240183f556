"""What the runs of a group share, made once: rows, tokenizers, start models."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.doctor_bench.group_data import write_group_data
from fledge.doctor_bench.groups import Group
from fledge.doctor_bench.setup import read_rows
from fledge.run.directory import resolve_model_path

START_SEED = 11
STARTS = {"base": ("pretrain", "base"), "half": ("sft", "chat"), "chat": ("sft", "chat")}
"""Name of a start model → kind of the stage that makes it, and its rows. All but `base` start from `base`."""
TEMPLATES = {False: "chatml", True: "seq2seq"}  # by whether it is for an encoder–decoder
Log = Callable[[str], None]


@dataclass(frozen=True)
class GroupFolder:
    """The folder of a group: `data/`, `tokenizer/`, `starts/`."""

    group: Group
    root: Path

    def rows(self, name: str, split: str = "train") -> Path:
        """The file of rows of a split."""
        return self.root / "data" / f"{name}{'' if split == 'train' else f'.{split}'}.jsonl"

    def tokenizer(self, is_encoder_decoder: bool = False) -> Path:
        """The folder of the group's tokenizer, with the template for one kind of model."""
        return self.root / "tokenizer" / TEMPLATES[is_encoder_decoder]

    def start(self, name: str) -> Path:
        """The directory of a start model."""
        return resolve_model_path(str(self.root / "starts" / name))

    def rate(self, shape: str) -> float:
        """The learning rate of a healthy run of a shape; 0 before `make` has found it."""
        file = self._rates
        return float(json.loads(file.read_text(encoding="utf-8"))[shape]) if file.exists() else 0.0

    @property
    def _rates(self) -> Path:
        return self.root / "rates.json"

    def make(self, log: Log) -> None:
        """Make what is not there yet."""
        if not (self.root / "data" / "done").exists():
            write_group_data(self.group.source, self.group.data_seed, self.group.languages, self.root / "data")
            (self.root / "data" / "done").write_text("")
        self._train_tokenizers(log)
        for name in self._needed_starts():
            if not (self.root / "starts" / name / "summary.json").exists():
                log(f"{self.group.name}: training the start model {name} …")
                self._train_start(name)
        if not self._rates.exists():
            self._find_rates()

    def _find_rates(self) -> None:
        """Write the learning rates that the planner derives for the healthy runs."""
        from fledge.doctor_bench.recipes import healthy_setup
        from fledge.prepare import Preparation
        from fledge.recipe import recipe_from_dict
        from fledge.run.console import silent

        rates = {}
        for shape in self.group.shapes:
            setup = healthy_setup(self, shape, 1, self.root / "planned" / shape)
            preparation = Preparation(recipe_from_dict(setup.recipe), silent)
            rates[shape] = preparation.prepare(shape, preparation.tokenizer()).plan.learning_rate
        self._rates.write_text(json.dumps(rates), encoding="utf-8")

    def _needed_starts(self) -> list[str]:
        from fledge.doctor_bench.shapes import SHAPES

        needed = {SHAPES[shape].start for shape in self.group.shapes} - {None}
        return [name for name in STARTS if name in needed or (name == "base" and needed)]

    def _train_tokenizers(self, log: Log) -> None:
        from fledge.run.console import silent
        from fledge.tokenizer import train_tokenizer
        from fledge.tokenizer.saving import save_tokenizer

        for kind, template in TEMPLATES.items():
            folder = self.tokenizer(kind)
            if (folder / "tokenizer_config.json").exists():
                continue
            texts = (text for name in ("base", "chat") for row in read_rows(self.rows(name)) for text in texts_of(row))
            folder.parent.mkdir(parents=True, exist_ok=True)
            save_tokenizer(train_tokenizer(texts, self.group.vocab_size, template, [], silent), folder, replace=True)

    def _train_start(self, name: str) -> None:
        from fledge.doctor_bench.recipes import NO_CLEANING, RUNTIME
        from fledge.doctor_bench.shapes import CONTEXT
        from fledge.pipeline import Pipeline
        from fledge.recipe import recipe_from_dict
        from fledge.run import Console

        kind, rows = STARTS[name]
        model: Mapping[str, Any] = self.group.model if name == "base" else {"path": str(self.start("base"))}
        stage = {
            "kind": kind,
            "data": {
                "train": str(self.rows(rows)), "validation": str(self.rows(rows, "validation")), "max_seq_len": CONTEXT,
                "clean": NO_CLEANING,
            },
            "batch": {"micro_batch_size": 8},
            "optimizer": {"name": "adamw", "learning_rate": "auto"},
            "schedule": {"name": "cosine", "warmup": 0.1, "min_lr": "5%"},
            "duration": f"{self.group.start_steps[name]} steps",
            "evaluation": {"every_steps": 100, "max_packed_rows": 16},
        }  # fmt: skip
        tree = {
            "name": name, "output": str(self.root / "starts"), "seed": START_SEED, "runtime": RUNTIME, "model": dict(model),
            "tokenizer": {"path": str(self.tokenizer())}, "stages": {kind: stage},
        }  # fmt: skip
        Pipeline(recipe_from_dict(tree), Console(quiet=True)).run()


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row that a tokenizer is trained on."""
    return [row["text"]] if "text" in row else [turn["content"] for turn in row["messages"]]


def group_facts(folder: GroupFolder) -> dict[str, Any]:
    """Numbers of rows, for the report."""
    files = sorted((folder.root / "data").glob("*.jsonl"))
    return {file.name.removesuffix(".jsonl"): len(read_rows(file)) for file in files}


def write_facts(folder: GroupFolder) -> None:
    """Write `facts.json` beside the data."""
    (folder.root / "facts.json").write_text(json.dumps(group_facts(folder)), encoding="utf-8")
