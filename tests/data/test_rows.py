"""Every format and schema is recognised; every row that cannot be used has a reason and a place."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from fledge.data.items import Conversation, Document, Preference
from fledge.errors import FledgeError
from fledge.tokenizer import Message
from tests.data.sources import items, jsonl, read

Q, A = Message("user", "q"), Message("assistant", "a")
S = Message("system", "s")
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
FROM_GOOD, FROM_BAD = ({"from": "gpt", "value": text} for text in ("good", "bad"))
FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("row", [{"prompt": "q", "response": "a"}, {"messages": TURNS}, {"conversations": FROM}])
def test_the_same_row_is_the_same_item_in_every_format(tmp_path: Path, ending: str, row: dict) -> None:
    file = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        jsonl(file, [row, row])
    elif ending == "json":
        file.write_text(json.dumps([row, row]), encoding="utf-8")
    else:
        parquet.write_table(pa.Table.from_pylist([row, row]), file)
    assert items("sft", file) == [Conversation((Q, A))] * 2


@pytest.mark.parametrize(
    ("documents", "texts", "places"),
    [
        ("line", ["one", "two ", "three"], [":1", ":2", ":5"]),
        ("paragraph", ["one\ntwo ", "three"], [":1", ":5"]),
        ("file", ["one\ntwo \n\n \nthree"], [""]),
    ],
)
def test_a_text_file_is_read_by_line_paragraph_or_whole(tmp_path: Path, documents: str, texts: list, places: list) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo \n\n \nthree\n", encoding="utf-8")
    found = read("pretrain", [{"path": str(tmp_path / "a.txt"), "documents": documents}]).train
    assert [place.item for place in found] == [Document(text) for text in texts]
    assert [place.where for place in found] == [f"{tmp_path / 'a.txt'}{place}" for place in places]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "response": "a"}, (Q, A)),
        ({"question": "q", "answer": "a"}, (Q, A)),
        ({"query": "q", "completion": "a", "id": 3}, (Q, A)),
        ({"instruction": "q", "output": "a"}, (Q, A)),
        ({"instruction": "q", "input": "", "output": "a", "history": [], "system": ""}, (Q, A)),
        ({"instruction": "q", "input": "x", "output": "a"}, (Message("user", "q\nx"), A)),
        ({"instruction": "q", "output": "a", "system": "s"}, (S, Q, A)),
        (
            {"instruction": "q", "output": "a", "history": [["q1", "a1"]], "system": "s"},
            (S, Message("user", "q1"), Message("assistant", "a1"), Q, A),
        ),
        ({"messages": TURNS}, (Q, A)),
        ({"messages": TURNS, "system": "s"}, (S, Q, A)),
        ({"conversations": [{"from": "system", "value": "s"}, *FROM], "system": "ignored"}, (S, Q, A)),
        ({"conversations": [*FROM, *FROM]}, (Q, A, Q, A)),
        ({"messages": TURNS[:1], "response": "a"}, (Q, A)),
    ],
)
def test_every_schema_of_conversations_is_recognised(tmp_path: Path, row: dict, expected: tuple) -> None:
    assert items("sft", jsonl(tmp_path / "a.jsonl", [row])) == [Conversation(expected)]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, (Q,)),
        ({"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"}, (Message("user", "q\nx"),)),
        ({"prompt": "q", "system": "s", "chosen": "good", "rejected": "bad"}, (S, Q)),
        ({"conversations": FROM[:1], "chosen": FROM_GOOD, "rejected": FROM_BAD}, (Q,)),
        ({"prompt": TURNS[:1], "chosen": [GOOD], "rejected": [BAD]}, (Q,)),
        ({"prompt": "q", "chosen": GOOD, "rejected": "bad"}, (Q,)),
    ],
)
def test_every_schema_of_preferences_is_recognised(tmp_path: Path, row: dict, prompt: tuple) -> None:
    assert items("preference", jsonl(tmp_path / "a.jsonl", [row])) == [Preference(prompt, "good", "bad")]


@pytest.mark.parametrize(("extra", "head"), [({}, ()), ({"prompt": "q"}, ()), ({"system": "s"}, (S,))])
def test_whole_conversations_bring_their_own_prompt_whatever_else_the_row_says(
    tmp_path: Path, extra: dict, head: tuple
) -> None:
    before = [*TURNS, {"role": "user", "content": "more"}]
    pair = {name: [*before, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    found = items("preference", jsonl(tmp_path / "a.jsonl", [{**extra, **pair}]))
    assert found == [Preference((*head, Q, A, Message("user", "more")), "chosen", "rejected")]


def test_named_columns_win_and_several_are_joined(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"t": "title", "b": ["x", "y"], "text": "no", "prompt": "no", "q": "q", "z": "a"}])
    source = {"path": str(file), "columns": {"text": ["t", "b"], "prompt": "q", "response": "z"}}
    assert items("pretrain", source) == [Document("title\nx\ny")]
    assert items("sft", source) == [Conversation((Q, A))]
    other = jsonl(tmp_path / "b.jsonl", [{"text": "has no t"}, {"t": "title", "b": []}])
    found = read("pretrain", {**source, "path": str(other)})
    assert [place.item for place in found.train] == [Document("title")]
    assert found.ledger.sources[0].dropped == {"column missing": 1}


def test_the_stage_gives_a_system_prompt_to_those_that_bring_none(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "response": "a"}, {"prompt": "q", "response": "a", "system": "own"}])
    first, second = items("sft", file, system="s")
    assert first == Conversation((S, Q, A))
    assert second == Conversation((Message("system", "own"), Q, A))


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("pretrain", b"{not json", "invalid JSON"),
        ("pretrain", b'{"text": "\xff"}', "not UTF-8"),
        ("pretrain", "just text", "not an object"),
        ("pretrain", [1], "not an object"),
        ("pretrain", {"text": 3}, "wrong type"),
        ("pretrain", {"text": ["a", 3]}, "wrong type"),
        ("pretrain", {"text": " \n"}, "empty text"),
        ("pretrain", {"body": "x"}, "no known column"),
        ("pretrain", {"text": None}, "no known column"),
        ("sft", {"prompt": "q", "response": " "}, "empty answer"),
        ("sft", {"prompt": " ", "response": "a"}, "empty question"),
        ("sft", {"prompt": "q", "response": None}, "no answer"),
        ("sft", {"prompt": "q", "response": {"a": 1}}, "wrong type"),
        ("sft", {"prompt": 3, "response": "a"}, "wrong type"),
        ("sft", {"text": "a"}, "no known column"),
        ("sft", {"messages": []}, "no turns"),
        ("sft", {"messages": "hello"}, "wrong type"),
        ("sft", {"messages": ["hello"]}, "wrong type"),
        ("sft", {"messages": [{"role": "user"}]}, "wrong type"),
        ("sft", {"messages": [{"role": "wizard", "content": "q"}, TURNS[1]]}, "unknown role"),
        ("sft", {"messages": [{"role": ["user"], "content": "q"}, TURNS[1]]}, "unknown role"),
        ("sft", {"messages": [{"content": "q"}, TURNS[1]]}, "unknown role"),
        ("sft", {"messages": [TURNS[1], TURNS[0]]}, "roles out of order"),
        ("sft", {"messages": [TURNS[0], TURNS[0], TURNS[1]]}, "roles out of order"),
        ("sft", {"messages": [*TURNS, {"role": "system", "content": "s"}]}, "roles out of order"),
        ("sft", {"messages": [{"role": "system", "content": "s"}]}, "no turns"),
        ("sft", {"messages": [*TURNS, TURNS[0]]}, "no answer"),
        ("sft", {"prompt": "q", "response": "a", "history": [["q"]]}, "wrong type"),
        ("sft", {"prompt": "q", "response": "a", "history": [["q", None]]}, "wrong type"),
        ("sft", {"prompt": "q", "response": "a", "history": "q"}, "wrong type"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": ""}, "empty answer"),
        ("preference", {"prompt": "q", "chosen": "a"}, "no known column"),
        ("preference", {"chosen": "a", "rejected": "b"}, "no known column"),
        ("preference", {"prompt": TURNS, "chosen": "a", "rejected": "b"}, "prompt ends with an answer"),
        ("preference", {"prompt": "q", "chosen": TURNS[:1], "rejected": "b"}, "no answer"),
        ("preference", {"prompt": "q", "chosen": TURNS, "rejected": "b"}, "prompts differ"),
        ("preference", {"chosen": TURNS, "rejected": [{"role": "user", "content": "other"}, TURNS[1]]}, "prompts differ"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_dropped_with_its_reason_and_line(
    tmp_path: Path, kind: str, row: Any, reason: str
) -> None:
    good = {"text": "t", "prompt": "q", "response": "a", "chosen": "c", "rejected": "r"}
    found = read(kind, jsonl(tmp_path / "a.jsonl", [good, b"  ", row, good]))
    account = found.ledger.sources[0]
    assert len(found.train) == 2
    assert (account.rows, dict(account.dropped)) == (3, {reason: 1})
    assert account.noted[reason][0]["where"] == f"{tmp_path / 'a.jsonl'}:3"


def test_the_place_of_a_wrong_role_counts_the_system_turn(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, TURNS[1]]}
    account = read("sft", jsonl(tmp_path / "a.jsonl", [{"messages": TURNS}, row])).ledger.sources[0]
    assert account.noted["roles out of order"][0]["detail"] == "turn 2 is assistant, expected user"


def test_text_that_is_not_utf8_is_dropped_not_garbled(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("好\n".encode() + b"\xff\xfe\n" + "坏\n".encode())
    found = read("pretrain", tmp_path / "a.txt")
    assert [place.item for place in found.train] == [Document("好"), Document("坏")]
    assert found.ledger.sources[0].dropped == {"not UTF-8": 1}


def test_a_folder_and_a_glob_are_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        jsonl(tmp_path / name, [{"text": name}])
    (tmp_path / "c.txt").write_text("c.txt", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not data", encoding="utf-8")
    names = ["a.jsonl", "b.jsonl", "c.txt"]
    assert items("pretrain", tmp_path) == [Document(name) for name in names]
    assert items("pretrain", str(tmp_path / "*.jsonl")) == [Document(name) for name in names[:2]]
    assert items("pretrain", [str(tmp_path / "c.txt"), str(tmp_path / "a.jsonl")]) == [Document("c.txt"), Document("a.jsonl")]
    assert read("pretrain", f"{tmp_path}/").ledger.sources[0].name == tmp_path.name


def test_max_rows_is_counted_over_all_files_of_a_source(tmp_path: Path) -> None:
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(3)])
    found = items("pretrain", [{"path": str(tmp_path), "max_rows": 4}])
    assert found == [Document(text) for text in ("a0", "a1", "a2", "b0")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, b"", "there is no file"),
        ("a.csv", b"x,y", "its ending is not one of .jsonl, .json, .txt, .parquet"),
        ("a.jsonl", b"", "holds no rows: the file is empty"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.json", b"", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.txt", b"\n\n", "holds no rows"),
        ("a.parquet", b"", "holds no rows"),
        ("a.parquet", b"PAR1 no PAR1", "not a readable Parquet file"),
        ("a.json", b'{"text": "x"}', "expected a JSON array"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}', "then name the file .jsonl"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_clear_error(tmp_path: Path, name: str | None, content: bytes, said: str) -> None:
    path = tmp_path / (name or "nowhere.jsonl")
    if name:
        path.write_bytes(content)
    with pytest.raises(FledgeError) as caught:
        read("pretrain", path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "stages.x.data.train.0" in str(caught.value) or str(path) in (caught.value.where or "")


def test_a_broken_json_array_names_its_line_in_any_script(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"text": "春眠不觉晓，处处闻啼鸟"},\n{"text": }\n]\n\n\n\n', encoding="utf-8")
    with pytest.raises(FledgeError, match=r"a\.json:3: not valid JSON"):
        read("pretrain", tmp_path / "a.json")


def test_a_missing_validation_source_is_named_by_its_own_key(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(FledgeError, match=r"stages\.x\.data\.validation\.0: there is no file"):
        read("pretrain", file, validation=str(tmp_path / "gone.jsonl"))
