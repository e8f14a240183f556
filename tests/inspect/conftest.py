"""A small recipe with three kinds of stages on its own files, and the `fledge data` command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.cli import main
from fledge.tokenizer import Tokenizer
from tests.support.sources import jsonl

Fledge = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fledge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fledge:
    """Runs `fledge data …` at 100 columns: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["data", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tokenizer_folder(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    chatml.save(folder)
    return folder


@pytest.fixture(scope="session")
def tree(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The recipe as plain values."""
    folder = tmp_path_factory.mktemp("rows")
    poems = [{"text": f"Poem {n}: the quick brown fox jumps over {n} lazy dogs."} for n in range(12)]
    jsonl(folder / "poems.jsonl", poems)
    talks = [
        {"instruction": f"What is {n} plus 1?", "input": "", "output": f"{n} plus 1 is {n + 1}, friend."} for n in range(20)
    ]
    talks[3]["output"] = "It is written at great length: " + "word " * 200
    talks += [talks[0], {"instruction": "x", "input": "", "output": ""}]
    talks.append({"instruction": "Tidy", "input": "", "output": "caf\u0065\u0301 is written so\r\n\r\n\r\nindeed"})
    jsonl(folder / "talks.jsonl", [*talks, b"{broken"])
    pairs = [{"prompt": f"{n}?", "chosen": f"yes, {n} it is", "rejected": f"no, not {n} at all"} for n in range(8)]
    jsonl(folder / "pairs.jsonl", pairs)

    def stage(name: str, **data: Any) -> dict[str, Any]:
        return {"data": {"train": str(folder / f"{name}.jsonl"), "validation": 0, "max_seq_len": 96, **data}}

    return {
        "name": "inspected",
        "output": str(folder / "runs"),
        "tokenizer": {"path": str(tokenizer_folder)},
        "stages": {"pretrain": stage("poems"), "sft": stage("talks", validation=0.2), "dpo": stage("pairs")},
    }


@pytest.fixture(scope="session")
def folder(tree: dict[str, Any]) -> Path:
    """The folder of the recipe's data files."""
    return Path(tree["stages"]["sft"]["data"]["train"]).parent


@pytest.fixture(scope="session")
def recipe(tree: dict[str, Any], folder: Path) -> Path:
    """The file of the recipe."""
    return write(folder / "recipe.yaml", tree)


@pytest.fixture(scope="session")
def built(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built data of the recipe."""
    from fledge.build_dataset import build
    from fledge.recipe import load_recipe

    out = tmp_path_factory.mktemp("built") / "data"
    build(load_recipe([str(recipe)]), out, None, lambda _: None)
    return out


def write(path: Path, values: dict[str, Any]) -> Path:
    """Write a recipe file."""
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path
