"""What a build tells about rows that it uses: keys and columns that nothing reads, rows for validation."""

from pathlib import Path

import pytest

from fledge.data.report import DataReport
from fledge.data.row_events import MAX_REASONS, OTHER
from fledge.errors import FledgeError
from fledge.recipe import recipe_from_dict
from fledge.tokenizer import Tokenizer
from tests.support.chat_rows import TURNS
from tests.support.sources import jsonl, prepare, read, row


def test_unread_columns_and_unknown_keys_are_told_once_for_each_source(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [{"id": n, "messages": [{**TURNS[0], "content": f"q {n}"}, {**TURNS[1], "score": n}]} for n in range(30)]
    rows += [{**row(f"question {n}", "a"), "lang": "en"} for n in range(12)]
    file = jsonl(tmp_path / "a.jsonl", rows)
    data = prepare("sft", file, chatml)
    (source,) = data.report.sources
    assert dict(source.unread_columns) == {"id": 30, "lang": 12}
    assert source.noticed["key 'score' of turns is not read"] == 30
    assert DataReport.from_dict(data.report.as_dict()).as_dict() == data.report.as_dict()
    lines = data.report.lines()
    assert lines == [
        "a.jsonl: 42 rows, 42 used",
        f"  30 × key 'score' of turns is not read, first at {file}:1 (turn 2: score: 0)",
        "  columns that nothing reads: id (30 rows), lang (12 rows)",
    ]


def test_many_unknown_keys_are_counted_together(tmp_path: Path) -> None:
    rows = [{"messages": [TURNS[0], {**TURNS[1], f"key {n}": n + 1}]} for n in range(3 * MAX_REASONS)]
    (source,) = read("sft", jsonl(tmp_path / "a.jsonl", rows)).report.sources
    assert len(source.noticed) == MAX_REASONS + 1
    assert source.noticed[OTHER] == 2 * MAX_REASONS


def test_a_share_that_takes_every_row_for_validation_is_the_error(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "one.jsonl", [row("q", "a")])
    with pytest.raises(FledgeError) as caught:
        read("sft", one, validation=0.02)
    assert caught.value.text() == (
        "stages.x.data.validation: the only usable row went to validation; none is left to train on\n"
        "  → write validation: 0, or add rows"
    )
    assert len(list(read("sft", one, validation=0).items())) == 1
    with pytest.raises(FledgeError, match="all 2 usable rows went to validation"):
        read("sft", jsonl(tmp_path / "two.jsonl", [row("q", "a"), row("r", "b")]), validation=0.999)


def test_a_home_directory_in_any_path_of_a_recipe_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    stage = {
        "kind": "sft",
        "init_from": "~/start",
        "data": {"train": [{"path": "~/a.jsonl"}]},
        "prompt_tests": {"prompts": "~/p.yaml"},
    }
    tree = {
        "output": "~/runs",
        "built_dataset": "~/built",
        "tokenizer": {"path": "~/tokenizer"},
        "model": {"path": "~/model"},
        "alerts": {"file": "~/alerts.jsonl"},
        "stages": {"x": stage},
    }
    recipe = recipe_from_dict(tree)
    tests = recipe.stages["x"].prompt_tests
    assert tests is not None
    paths = [recipe.output, recipe.built_dataset, recipe.tokenizer.path, recipe.model.path, recipe.alerts.file, tests.prompts]
    paths += [recipe.stages["x"].init_from, recipe.stages["x"].data.train[0].path]
    assert all(path and path.startswith("/home/me/") for path in paths)
