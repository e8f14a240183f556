import json
from pathlib import Path

import pytest

from fledge.doctor_bench.group_data import (
    conversation,
    divided,
    fitting,
    is_chinese,
    labelled,
    pair,
    prompt_of,
    write_group_data,
)
from fledge.doctor_bench.setup import read_rows


def test_rows_are_divided_without_a_prompt_in_two_places() -> None:
    rows = [{"text": f"text {number % 70}"} for number in range(200)]
    found = divided(rows, 3)
    prompts = [prompt_of(row) for part in found for row in part]
    assert len(prompts) == len(set(prompts)) == 70
    assert len(found.validation) == len(found.test) == 8
    assert divided(rows, 3) == found != divided(rows, 4)


def test_texts_are_shortened_to_whole_sentences() -> None:
    assert fitting("One sentence. " * 40, 0.5).endswith("sentence.")
    assert len(fitting("One sentence. " * 40, 0.5)) <= 120
    assert fitting("short", 0.5) == "short"
    assert fitting("x" * 500, 0.5) == ""
    assert conversation("x" * 500, "An answer.") is None
    assert pair("Why?", "Because.", "Because.") is None


def test_labels_come_from_pairs() -> None:
    pairs = [{"messages": [{"role": "user", "content": "a"}], "chosen": "good", "rejected": "bad"}] * 2
    rows = labelled(pairs)
    assert [(row["messages"][-1]["content"], row["label"]) for row in rows] == [("good", True), ("bad", False)]


def test_a_world_is_written_in_one_language(tmp_path: Path) -> None:
    write_group_data("small world", 3, "zh", tmp_path)
    for name in ("pretrain", "base", "sft", "chat", "preference", "kto", "prompts"):
        for split in ("", ".validation", ".test"):
            rows = read_rows(tmp_path / f"{name}{split}.jsonl")
            assert rows and all(is_chinese(row) for row in rows)
    own, start = ({json.dumps(row) for row in read_rows(tmp_path / f"{name}.jsonl")} for name in ("sft", "chat"))
    assert not own & start


@pytest.mark.parametrize("source", ["instructions", "questions", "articles"])
def test_real_rows_fit(source: str, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEDGE_DATA", str(shared_data))
    write_group_data(source, 1, "zh+en", tmp_path)
    rows = read_rows(tmp_path / "sft.jsonl")
    assert len(rows) > 300
    assert max(sum(len(turn["content"]) for turn in row["messages"]) for row in rows) <= 260
    assert len(read_rows(tmp_path / "preference.jsonl")) > 100
