"""Small data and a small model for the recipes of the critic, and their findings."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from fledge.data import StageDataset
from fledge.findings import Finding
from fledge.plan.critic import plan_findings
from fledge.prepare import Preparation
from fledge.recipe import Recipe, recipe_from_dict
from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support.decoders import make_decoder
from tests.support.sources import jsonl

RECIPES = Path(__file__).parent / "critic_recipes"
WORDS = tuple(word for line in ("the small bird keeps a red box by the lake and reads one letter", "every day two old men sing")
              for word in line.split(" "))  # fmt: skip


def _sentence(number: int, length: int) -> str:
    """Words that differ with the number."""
    return " ".join(WORDS[(number * (k + 3) + k * k) % len(WORDS)] for k in range(length))


def _chats(first: int, count: int) -> Iterator[dict[str, str]]:
    for number in range(first, first + count):
        yield {"prompt": f"What of {number}?", "response": f"{number}: {_sentence(number, 10 + number % 5)}."}


def _pairs(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"What of {number}?", "chosen": _sentence(number, 8), "rejected": f"{_sentence(number + 7, 6)} no"}


def _labels(count: int, bad: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"prompt": f"What of {number}?", "response": _sentence(number, 8), "label": number % bad != 0}


def write_data(folder: Path) -> None:
    """The files that the recipes name, a tokenizer, and a model of width 64 with this tokenizer."""
    jsonl(folder / "texts.jsonl", ({"text": f"{n} {_sentence(n, 25 + n % 20)}."} for n in range(400)))
    jsonl(folder / "words.jsonl", ({"text": " ".join(f"{_name(n * 12 + k)}" for k in range(12))} for n in range(400)))
    for name, first, count in (("chats", 0, 300), ("dozen", 0, 12), ("many", 0, 3000), ("chats.validation", 9000, 60),
                               ("three", 9500, 3)):  # fmt: skip
        jsonl(folder / f"{name}.jsonl", _chats(first, count))
    jsonl(folder / "pairs.jsonl", _pairs(240))
    jsonl(folder / "labels.jsonl", _labels(240, 2))
    jsonl(folder / "skewed.jsonl", _labels(240, 10))
    texts = [f"{row['prompt']} {row['response']}" for row in _chats(0, 300)]
    save_model(folder / "model", texts, 400, width=64).save(folder / "tokenizer")


def save_model(folder: Path, texts: list[str], vocab_size: int, width: int) -> Tokenizer:
    """Write a small model of 512 positions and a tokenizer that was trained on these texts; returns the tokenizer."""
    tokenizer = train_tokenizer(texts, vocab_size)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "max_position_embeddings": 512}
    model = make_decoder(0, vocab=tokenizer.vocab_size, **sizes)
    model.save_pretrained(folder, bos=None, eos=sorted(tokenizer.stop_ids), pad=tokenizer.pad)
    tokenizer.save(folder)
    return tokenizer


def _name(number: int) -> str:
    """A word of its own for each number."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = []
    for _ in range(3):
        number, rest = divmod(number, len(consonants) * len(vowels))
        syllables.append(consonants[rest % len(consonants)] + vowels[rest // len(consonants)])
    return "".join(syllables)


def entries(file: str) -> dict[str, dict[str, Any]]:
    """The recipes of a file: name -> base, changes, findings."""
    return yaml.safe_load((RECIPES / file).read_text(encoding="utf-8"))


@cache
def _bases() -> dict[str, Any]:
    return entries("bases.yaml")


def changed(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with other values of dotted keys."""
    tree = copy.deepcopy(tree)
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        section = tree
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    return tree


def recipe_of(entry: dict[str, Any], patch: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """The recipe of an entry, with a patch."""
    return recipe_from_dict(changed(tree_of(entry), patch))


def tree_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The recipe of an entry."""
    return changed(_bases()[entry["base"]], entry.get("set", {}))


class Critic:
    """Findings of recipes; data that several recipes share is built once."""

    def __init__(self) -> None:
        self._data: dict[str, StageDataset] = {}
        self._tokenizers: dict[str, Tokenizer] = {}

    def findings(self, recipe: Recipe, gpu: tuple[int, int] | None = None, cpu_has_bf16: bool | None = None) -> list[Finding]:
        """The findings of all stages of a recipe. `gpu`: compute capability of the GPU that would train it; `cpu_has_bf16`:
        whether the CPU that would multiplies bf16."""
        preparation, found = Preparation(recipe, lambda text: None), list[Finding]()
        tokenizer = self._tokenizer(recipe, preparation)
        for name, stage in recipe.stages.items():
            key = f"{stage.kind} {stage.data!r} {preparation.seed(name)} {tokenizer.fingerprint()}"
            if key not in self._data:
                self._data[key] = preparation.stage_data(name, tokenizer)
            prepared = preparation.prepare(name, tokenizer, self._data[key])
            planned = preparation.planned(name, tokenizer, prepared.data, prepared.stage, prepared.plan)
            assert prepared.warnings == [one for one in plan_findings(planned) if one.severity != "info"]
            found += plan_findings(replace(planned, capability=gpu, cpu_has_bf16=cpu_has_bf16))
        return found

    def _tokenizer(self, recipe: Recipe, preparation: Preparation) -> Tokenizer:
        key = repr((recipe.tokenizer, recipe.model.path, [stage.data for stage in recipe.stages.values()]))
        if key not in self._tokenizers:
            self._tokenizers[key] = preparation.tokenizer()
        return self._tokenizers[key]
