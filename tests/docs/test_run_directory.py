"""docs/run-directory.md names every file that a run writes, and every key in it."""

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import markdown, tiny_run

DOCUMENT = markdown.ROOT / "docs" / "run-directory.md"
DATA_DOCUMENT = markdown.ROOT / "docs" / "data.md"
ENGINE_DOCUMENT = markdown.ROOT / "docs" / "engine.md"
CASES = "- {prompt: 你是谁？, expect: {contains: [雏鹰]}}\n- {prompt: hello, expect: {lacks: [zzz]}}\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes every kind of file on one CPU: three stages, averaged weights, prompt tests, a mixture of sources."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "prompts.yaml").write_text(CASES, encoding="utf-8")
    tree = tiny_run.tree(folder / "world", folder / "runs", logging={"every_steps": 2})
    for name in ("sft", "dpo"):
        tree["stages"][name]["prompt_tests"] = {"prompts": str(folder / "prompts.yaml"), "every_steps": 3, "max_new_tokens": 4}
    pretrain = tree["stages"]["pretrain"]
    pretrain["ema"] = {"decay": 0.9}
    texts = folder / "more.txt"
    texts.write_text("A cat met a dog, and they went for a long walk.\nThen it rained.\n" * 3, encoding="utf-8")
    pretrain["data"]["train"] = [pretrain["data"]["train"], {"path": str(texts), "repeat": 2}]
    return Pipeline(recipe_from_dict(tree), Console(quiet=True)).run()


def spans(*documents: Path) -> set[str]:
    """Everything in backticks; and the words in a list such as `rewards/chosen`, `rewards/rejected`."""
    return {span for document in documents for _, span in markdown.code_spans(document)}


def listed_files() -> list[str]:
    """The files of the trees at the top of the two documents, and those that the text names, as patterns."""
    texts = [block.text for block in (*markdown.blocks(DOCUMENT), *markdown.blocks(DATA_DOCUMENT)) if block.language == ""]
    words = {word for text in texts for word in re.split(r"[\s(),;]+", text)} | spans(DOCUMENT, DATA_DOCUMENT)
    patterns = [re.sub(r"X{3,}|<\w+>|…", "*", word).rpartition("/")[2] for word in words]
    return [pattern for pattern in patterns if "." in pattern and re.sub(r"[*.]|json", "", pattern)]


def test_every_file_of_a_run_is_in_the_documents(run: Path) -> None:
    patterns = listed_files()
    assert not any(fnmatch.fnmatch(name, pattern) for name in ("machine.json", "notes.jsonl") for pattern in patterns)
    unnamed = sorted(
        {
            str(file.relative_to(run))
            for file in run.rglob("*")
            if file.is_file() and not any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
        }
        - {str(file.relative_to(run)) for name in ("fingerprint", "done", "*.json") for file in run.rglob(f"data/keep/{name}")}
        - {str(file.relative_to(run)) for file in run.rglob("data/tokenizer/fingerprint")}  # marks of the build, and counts
    )
    assert unnamed == []


def test_every_event_and_each_of_its_keys_is_in_the_table(run: Path) -> None:
    table = {
        kind: set(markdown.ticked(row.text))
        for row in markdown.tables(DOCUMENT)
        if "events.jsonl" in row.headings and "kind" in row.cells
        for kind in markdown.ticked(row.cells["kind"])
    }
    unnamed = set()
    for file in run.glob("*/events.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            known = table.get(event["kind"], set())
            for key in set(event) - {"kind", "step"}:
                if not any(fnmatch.fnmatch(key, re.sub(r"<\w+>", "*", name)) for name in known) and not _is_measure(key):
                    unnamed.add(f"{event['kind']}: {key}")
    assert sorted(unnamed) == []
    assert {"start", "step", "system", "startup", "eval", "prompt_tests", "checkpoint"} <= set(table)


def _is_measure(key: str) -> bool:
    """Whether an event `eval` has this measure of the table of eval/before.json with its prefix."""
    measures = {
        name for row in markdown.tables(DOCUMENT) if "measure" in row.cells for name in markdown.ticked(row.cells["measure"])
    }
    return key.startswith("eval/") and key.removeprefix("eval/") in measures


def test_units_and_meaning_of_every_figure_of_a_step_are_in_the_engine_document(run: Path) -> None:
    known = {re.sub(r"\*$", "", span) for span in spans(ENGINE_DOCUMENT)}
    keys = {
        key
        for file in run.glob("*/events.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
        if (event := json.loads(line))["kind"] in ("step", "system")
        for key in set(event) - {"kind", "step"}
    }
    assert sorted(key for key in keys if key not in known and not key.startswith(("train/rewards/", "train/logps/"))) == []


def _keys(value: Any, deep: bool) -> set[str]:
    """The keys of a mapping; with `deep`, of everything in it."""
    if isinstance(value, list):
        return set().union(*(_keys(one, deep) for one in value)) if deep else set()
    if not isinstance(value, dict):
        return set()
    inner = set().union(*(_keys(one, deep) for one in value.values())) if deep else set()
    return set(value) | inner


@pytest.mark.parametrize(
    ("name", "deep"),
    [
        ("environment.json", False), ("summary.json", True), ("*/plan.json", False), ("*/compute.json", True),
        ("*/result.json", False), ("*/eval/after.json", True), ("*/checkpoints/last/state/trainer.json", False),
        ("*/checkpoints/last/manifest.json", False),
    ],
)  # fmt: skip
def test_every_key_of_a_file_is_in_the_document(run: Path, name: str, deep: bool) -> None:
    files = list(run.glob(name))
    assert files
    known = spans(DOCUMENT)
    patterns = {re.sub(r"<\w+>|(?<=_)N(?=_)", "*", span) for span in known}
    assert not any(fnmatch.fnmatch("never_written", pattern) for pattern in patterns)
    keys = {key for file in files for key in _keys(json.loads(file.read_text(encoding="utf-8")), deep)}
    assert sorted(key for key in keys if not any(fnmatch.fnmatch(key, pattern) for pattern in patterns)) == []


def test_every_key_of_the_data_report_is_in_the_document(run: Path) -> None:
    known, unnamed = spans(DOCUMENT), set()
    for file in run.glob("*/data_report.json"):
        report = json.loads(file.read_text(encoding="utf-8"))
        sections = [report, *report["sources"], report["train"], report["validation"], *_mixture(report)]
        unnamed |= {key for section in sections for key in section} - known
    assert sorted(unnamed) == []


def _mixture(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in _as_list(report["mixture"]) if isinstance(one, dict)]


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in (inner if isinstance(inner, list) else [inner])]
    return value or []
