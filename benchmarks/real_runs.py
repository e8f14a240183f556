"""Whole runs of `fledge train` on real text, for the benchmarks that compare losses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import data_folder

from fledge.run.events import read_events


def real_text(quick: bool) -> list[dict[str, Any]]:
    """Sources of 20 MB and more (Tang poems, Wikipedia, web pages, plays, word problems); with `quick` only some poems."""
    data = data_folder()
    if not (data / "poetry").exists():
        raise SystemExit(f"this benchmark needs real text, and there is none in {data}: set FLEDGE_DATA")
    poems = {"path": str(data / "poetry"), "name": "poems", "columns": {"text": ["title", "author", "paragraphs"]}}
    if quick:
        return [{**poems, "max_samples": 4000}]
    return [
        poems,
        {"path": str(data / "llamafactory" / "wiki_demo.txt")},
        {"path": str(data / "llamafactory" / "c4_demo.jsonl")},
        {"path": str(data / "shakespeare"), "documents": "paragraph"},
        {"path": str(data / "gsm8k"), "columns": {"text": ["question", "answer"]}},
    ]


def fledge(*words: str) -> None:
    """Run a command of fledge in a process of its own."""
    subprocess.run([sys.executable, "-m", "fledge.cli", *words], check=True)


def trained(file: Path, folder: Path, built: Path) -> list[dict[str, Any]]:
    """The events of the pretraining of a recipe; a run that is not finished is trained or resumed first."""
    if not (folder / "summary.json").exists():
        resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
        fledge("train", str(file), "--built_dataset", str(built), *resume)
    return list(read_events(folder / "pretrain" / "events.jsonl"))
