"""Entries of a dataset_info.json are read as LLaMA-Factory reads them; what is out of reach is told by file and entry."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, PreferencePair
from fledge.data.parsing.registry import resolve
from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from fledge.tokenizer import Message
from tests.support.parsing import parse_row

KEY = "stages.x.data.train.0"
SHAREGPT_TURNS = {"role": "from", "content": "value"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "call", "system": "system"}
OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
Q, A = Message("user", "q"), Message("assistant", "a")


def registry(folder: Path, **entries: Any) -> str:
    """Write a dataset_info.json with these entries; returns its path."""
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return str(file)


def one(folder: Path, entry: Any, **keys: Any) -> Source:
    """The source of an entry."""
    (source,) = resolve(Source(registry=registry(folder, mine=entry), name="mine", **keys), KEY)
    return source


def error_of(folder: Path, entry: Any, **keys: Any) -> str:
    """The message of the error for this entry."""
    with pytest.raises(FledgeError) as caught:
        one(folder, entry, **keys)
    assert caught.value.where == KEY
    assert str(folder / "dataset_info.json") in caught.value.what
    assert "'mine'" in caught.value.what
    return str(caught.value)


def test_source_without_a_registry_resolves_to_itself() -> None:
    source = Source(path="a.jsonl", max_rows=3)
    assert resolve(source, KEY) == [source]


# -- where --------------------------------------------------------------------------------------------------------------


def test_file_is_relative_to_the_registry_which_may_be_given_by_its_folder(tmp_path: Path) -> None:
    assert one(tmp_path, {"file_name": "sub/a.json"}).path == str(tmp_path / "sub" / "a.json")
    assert one(tmp_path, {"file_name": "/else/where.json"}).path == "/else/where.json"
    assert one(tmp_path, {"file_name": "a.json", "split": "train", "file_sha1": ""}).name == "mine"
    assert resolve(Source(registry=str(tmp_path), name="mine"), KEY)[0].path == str(tmp_path / "a.json")


def test_hub_takes_precedence_over_other_locations(tmp_path: Path) -> None:
    entry = {"hf_hub_url": "org/set", "ms_hub_url": "x", "script_url": "y", "file_name": "z", "subset": "en", "split": "test"}
    source = one(tmp_path, entry)
    assert (source.hub, source.subset, source.split, source.path) == ("org/set", "en", "test", None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ms_hub_url": "x", "file_name": "a.json"}, "fledge does not support ms_hub_url"),
        ({"om_hub_url": "x"}, "fledge does not support om_hub_url"),
        ({"script_url": "x", "file_name": "a.json"}, "fledge does not support script_url"),
        ({"cloud_file_name": "s3://x"}, "fledge does not support cloud_file_name"),
        ({"hf_hub_url": "x", "folder": "python"}, "does not support folder 'python' with hf_hub_url"),
        ({"hf_hub_url": "x", "revision": "v2"}, "does not support revision 'v2' with hf_hub_url"),
        ({"file_name": "a.json", "subset": "en"}, "does not support subset 'en' with file_name"),
        ({"file_name": "a.json", "split": "train[:10%]"}, "does not support split 'train[:10%]' with file_name"),
        ({"formatting": "alpaca"}, "it has neither file_name nor hf_hub_url"),
        ({"file_name": ["a.json"]}, "file_name is not text"),
        ({"file_name": "a\0.json"}, "file_name is not text"),
        ({"file_name": "a.json", "formatting": "chatml"}, "formatting is 'chatml'\n  → it is one of alpaca, sharegpt, openai"),
        ({"file_name": "a.json", "ranking": "yes"}, "ranking is neither true nor false"),
        ({"file_name": "a.json", "num_samples": 0}, "num_samples is not a whole number above 0"),
        ({"file_name": "a.json", "num_samples": True}, "num_samples is not a whole number above 0"),
        ({"file_name": "a.json", "num_sample": 3}, "unknown key 'num_sample'\n  → did you mean 'num_samples'?"),
        ({"file_name": "a.json", "columns": {"promt": "x"}}, "columns has an unknown key 'promt'\n  → did you mean 'prompt'?"),
        ({"file_name": "a.json", "tags": {"role": "x"}}, "tags has an unknown key 'role'\n  → did you mean 'role_tag'?"),
        ({"file_name": "a.json", "columns": {"prompt": 3}}, "columns.prompt is not text"),
        ({"file_name": "a.json", "columns": "prompt"}, "columns is str, not a JSON object"),
        ({"file_name": "a.json", "columns": {"response": "x"}}, "its columns do not name prompt"),
        ({"file_name": "a.json", "formatting": "sharegpt", "columns": {"tools": "x"}}, "its columns do not name messages"),
        ({"file_name": "a.json", "columns": {"prompt": "p", "images": "image"}}, "it has images; fledge trains on text only"),
        ("a.json", "it is str, not a JSON object"),
    ],
)
def test_unsupported_or_invalid_entry_is_reported_with_file_and_entry(tmp_path: Path, entry: Any, message: str) -> None:
    assert message in error_of(tmp_path, entry)


def test_unknown_entry_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    file = registry(tmp_path, identity={"file_name": "a"}, alpaca_en={"file_name": "b"})
    with pytest.raises(FledgeError, match=r"train\.0: the registry '.*' has no entry 'identty'\n  → did you mean 'identity'\?"):
        resolve(Source(registry=file, name="alpaca_en,identty"), KEY)
    with pytest.raises(FledgeError, match="it has 2 entries, the first: identity, alpaca_en"):
        resolve(Source(registry=file, name="zzz"), KEY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (None, "there is no registry"),
    ],
)
def test_unreadable_registry_is_one_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "dataset_info.json"
    if content is not None:
        file.write_bytes(content)
    for path in (str(file), f"{file}\0"):
        with pytest.raises(FledgeError) as caught:
            resolve(Source(registry=path, name="a"), KEY)
        assert str(caught.value).startswith(f"{KEY}: ")
        assert message in str(caught.value) or "\0" in path


# -- what the rows are --------------------------------------------------------------------------------------------------


def sft(source: Source, row: dict) -> tuple:
    """The messages of a row read by an SFT stage."""
    item = parse_row(row, source, "sft")
    assert isinstance(item, Conversation)
    return item.messages


def test_alpaca_without_columns_uses_its_three_default_columns(tmp_path: Path) -> None:
    source = one(tmp_path, {"file_name": "a.json"})
    row = {
        "instruction": "q",
        "input": "x",
        "output": "a",
        "prompt": "no",
        "history": [["no", "no"]],
        "system": "no",
        "label": False,
    }
    assert sft(source, row) == (Message("user", "q\nx"), A)
    assert sft(source, {"instruction": "q", "output": "a"}) == (Q, A)
    assert parse_row(row, source, "pretrain") == Document("q\nx")


def test_alpaca_with_columns_uses_only_these(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "response": "out", "history": "h", "system": None}
    source = one(tmp_path, {"file_name": "a.json", "columns": columns})
    row = {"instruction": "q", "input": "no", "out": "a", "output": "no", "h": [["q1", "a1"]], "system": "no", "tools": "no"}
    assert sft(source, row) == (Message("user", "q1"), Message("assistant", "a1"), Q, A)
    columns = {"prompt": "q", "query": "x", "response": "output", "system": "system", "tools": "tools"}
    source = one(tmp_path, {"file_name": "a.json", "columns": columns})
    row = {"q": "q", "x": "x", "output": "a", "system": "s", "tools": [{"name": "f"}]}
    item = parse_row(row, source, "sft")
    assert item == Conversation((Message("system", "s"), Message("user", "q\nx"), A), '[{"name": "f"}]')
    assert sft(source, {"q": "q", "x": "", "output": "a"}) == (Q, A)


def test_document_of_an_alpaca_entry_is_the_prompt(tmp_path: Path) -> None:
    source = one(tmp_path, {"file_name": "a.txt", "columns": {"prompt": "body"}})
    assert parse_row({"body": "b", "text": "no"}, source, "pretrain") == Document("b")
    with pytest.raises(RowError, match="no answer"):
        parse_row({"body": "b", "output": "no"}, source, "sft")


def test_ranking_has_two_columns_or_one_list_of_two(tmp_path: Path) -> None:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    source = one(tmp_path, {"file_name": "a.json", "ranking": True, "columns": columns})
    row = {"q": "q", "good": "a", "bad": "b", "chosen": "no", "rejected": "no"}
    assert parse_row(row, source, "preference") == PreferencePair((Q,), "a", "b")
    source = one(tmp_path, {"file_name": "a.json", "ranking": True})
    row = {"instruction": "q", "input": "", "output": ["a", "b"]}
    assert parse_row(row, source, "preference") == PreferencePair((Q,), "a", "b")
    with pytest.raises(RowError, match="no answer"):
        parse_row(row, source, "sft")


def test_sharegpt_uses_its_default_names_unless_tags_are_set(tmp_path: Path) -> None:
    source = one(tmp_path, {"file_name": "a.json", "formatting": "sharegpt"})
    assert (source.columns["messages"], source.turns, source.roles) == ("conversations", SHAREGPT_TURNS, SHAREGPT_ROLES)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert sft(source, {"conversations": turns, "messages": "no", "system": "no"}) == (Q, A)
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "you", "function_tag": "do",
            "observation_tag": "see", "system_tag": "rule"}  # fmt: skip
    columns = {"messages": "talk", "system": "sys", "kto_tag": "good"}
    source = one(tmp_path, {"file_name": "a.json", "formatting": "sharegpt", "columns": columns, "tags": tags})
    talk = [{"who": "rule", "said": "r"}, {"who": "me", "said": "q"}, {"who": "do", "said": '{"name": "f"}'},
            {"who": "see", "said": "2"}, {"who": "you", "said": "a"}]  # fmt: skip
    item = parse_row({"talk": talk, "sys": "no", "good": False}, source, "label")
    assert isinstance(item, BinaryFeedback)
    assert [turn.role for turn in item.prompt] == ["system", "user", "assistant", "tool"]
    assert (item.answer, item.desirable) == ("a", False)


def test_openai_uses_tags_or_its_usual_names(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for tags in ({}, {"tags": OPENAI}):
        source = one(tmp_path, {"file_name": "a.json", "formatting": "openai", "columns": {"messages": "messages"}, **tags})
        assert sft(source, {"messages": turns}) == (Q, A)
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "you"}
    source = one(tmp_path, {"file_name": "a.json", "formatting": "openai", "tags": tags})
    assert sft(source, {"conversations": [{"who": "me", "said": "q"}, {"who": "you", "said": "a"}]}) == (Q, A)


# -- what the recipe adds -----------------------------------------------------------------------------------------------


def test_recipe_overrides_each_entry(tmp_path: Path) -> None:
    entries = {"a": {"file_name": "a.json"}, "b": {"file_name": "b.json", "formatting": "sharegpt", "num_samples": 5}}
    keys = {"repeat": 2.0, "max_samples": 9, "encoding": "gb18030", "documents": "paragraph"}
    request = Source(
        registry=registry(tmp_path, **entries), name="a, b", columns={"system": "s"}, roles={"gpt": "user"}, **keys
    )
    first, second = resolve(request, KEY)
    for source in (first, second):
        assert {key: getattr(source, key) for key in keys} == keys
        assert (source.columns["system"], source.roles["gpt"], source.registry) == ("s", "user", None)
    assert (first.name, second.name, first.max_rows, second.max_rows) == ("a", "b", None, 5)
    assert second.roles["human"] == "user"


def test_recipe_decides_how_much_is_used_before_the_entry(tmp_path: Path) -> None:
    entry = {"file_name": "a.json", "num_samples": 5}
    assert one(tmp_path, entry).max_rows == 5
    assert one(tmp_path, entry, max_rows=7).max_rows == 7
    for keys in ({"token_fraction": 0.5}, {"ratio": 0.5}, {"max_tokens": 10}):
        assert one(tmp_path, entry, **keys).max_rows is None


def test_one_token_fraction_for_several_entries_is_an_error(tmp_path: Path) -> None:
    file = registry(tmp_path, **{"a": {"file_name": "a"}, "b": {"file_name": "b"}, "a,b": {"file_name": "c"}})
    with pytest.raises(FledgeError, match=r"train\.0: token_fraction 0\.5 is given to 2 data sets together"):
        resolve(Source(registry=file, name="a ,b", token_fraction=0.5), KEY)
    assert [source.name for source in resolve(Source(registry=file, name="a,b", token_fraction=0.5), KEY)] == ["a,b"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(max_size=4), inside, max_size=2),
)
COLUMNS = st.dictionaries(
    st.sampled_from(["prompt", "query", "response", "messages", "system", "tools", "chosen", "kto_tag", "images"]), JSON
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "file_name": JSON, "hf_hub_url": JSON, "formatting": st.sampled_from(["alpaca", "sharegpt", "openai"]), "ranking": JSON,
        "columns": COLUMNS | JSON, "tags": st.dictionaries(st.sampled_from([*OPENAI, "system_tag"]), JSON), "split": JSON,
        "num_samples": JSON, "subset": JSON,
    },
)  # fmt: skip


@given(JSON | ENTRIES)
def test_random_entries_raise_only_errors_that_name_them(tmp_path_factory: Any, entry: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        source = one(folder, entry)
    except FledgeError as error:
        assert "entry 'mine'" in error.what
    else:
        assert Source.model_validate(source.model_dump(mode="json")) == source


# -- the real registry --------------------------------------------------------------------------------------------------


def test_every_entry_of_a_real_registry_is_read_or_reported(shared_data: Path) -> None:
    file = shared_data / "llamafactory" / "dataset_info.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    source, reasons = {}, Counter()
    for name, entry in entries.items():
        try:
            (source[name],) = resolve(Source(registry=str(file), name=name), KEY)
        except FledgeError as error:
            reasons[error.what.split(": ", 1)[1].split(";")[0]] += 1
            assert {"images", "videos", "audios"} & set(entry.get("columns", {})) or name in ("deepctrl", "starcoder_python")
    assert len(source) == 89
    assert reasons == {
        "it has images": 10, "it has videos": 2, "it has audios": 1,
        "fledge does not support ms_hub_url": 1, "fledge does not support folder 'python' with hf_hub_url": 1,
    }  # fmt: skip
    assert all(source[name].hub == entries[name]["hf_hub_url"] for name in source if source[name].hub)
    assert sum(source.path is not None for source in source.values()) == 10


REAL = {
    "identity": ("sft", 91), "alpaca_en_demo": ("sft", 999), "alpaca_zh_demo": ("sft", 1000),
    "glaive_toolcall_en_demo": ("sft", 300), "glaive_toolcall_zh_demo": ("sft", 300), "dpo_en_demo": ("preference", 300),
    "dpo_zh_demo": ("preference", 300), "kto_en_demo": ("label", 300), "c4_demo": ("pretrain", 300),
}  # fmt: skip


def test_real_files_give_equal_items_with_and_without_their_entries(shared_data: Path) -> None:
    file = shared_data / "llamafactory" / "dataset_info.json"
    sources = resolve(Source(registry=str(file), name=",".join(REAL)), KEY)
    for source, (kind, count) in zip(sources, REAL.values(), strict=True):
        text = Path(source.path or "").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if source.path.endswith(".jsonl") else json.loads(text)
        assert len(rows) == count
        plain = Source(path="x")
        assert [parse_row(row, source, kind) for row in rows] == [parse_row(row, plain, kind) for row in rows]
