"""`fledge init`: what it finds in files, the sizes that it chooses, and that its recipe is one."""

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fledge.cli import main
from fledge.new_recipe.data_files import Amount, DataFile, Unused, alike, find_files, look_at, path_of, purpose_of
from fledge.new_recipe.recipe_text import recipe_text
from fledge.new_recipe.sizes import SHAPES, VOCABULARIES, choose_sizes, tokens_of, vocabulary_for
from fledge.recipe import Recipe, load_recipe

POEM = "{}\n春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n"
FLOPS = 4e11
HAN = [chr(0x4E00 + number) for number in range(300)]


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, header: list[str], rows: list[list[str]], encoding: str = "utf-8") -> Path:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    path.write_bytes(buffer.getvalue().encode(encoding))
    return path


def own_data(folder: Path) -> Path:
    """What a person has: a table of questions in GBK, a file of conversations with mistakes, and poems."""
    folder.mkdir()
    write_csv(folder / "客服.csv", ["问题", "回答"], [[f"第{n}个问题？", f"这是第{n}个回答。"] for n in range(200)], "gbk")
    turns = [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是小鸢。"}]
    lines = [json.dumps({"messages": turns}, ensure_ascii=False)] * 9
    (folder / "身份.jsonl").write_text("\n".join([*lines, '{"messages": [', '{"msgs": []}']) + "\n", encoding="utf-8")
    poems = [f"春晓 {n}\n{''.join(random.Random(n).choices(HAN, k=20))}。\n" for n in range(400)]
    (folder / "诗.txt").write_text("\n".join(poems), encoding="utf-8")
    (folder / "说明.docx").write_bytes(b"PK")
    return folder


def stage_of(recipe: Recipe, name: str) -> Any:
    return recipe.stages[name]


def test_own_data_become_a_recipe_that_runs_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "data")
    assert main(["init", "data", "--out", "mine.yaml", "--minutes", "2"]) == 0
    told = capsys.readouterr()
    assert "data/客服.csv: 200 conversations" in told.err and "read as gb18030" in told.err
    assert "1 × invalid JSON, first at data/身份.jsonl:10" in told.err
    assert "1 × no known column, first at data/身份.jsonl:11" in told.err
    assert "not used: data/说明.docx: no format of rows" in told.err
    assert "pretrain (texts) → sft (conversations)" in told.out and "fledge chat runs/mine" in told.out
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "2 rows cannot be used" in text and "data/说明.docx" in text
    recipe = load_recipe(["mine.yaml"])
    assert list(recipe.stages) == ["pretrain", "sft"] and recipe.name == "mine"
    assert stage_of(recipe, "pretrain").data.train[0].documents == "paragraph"
    assert [source.path for source in stage_of(recipe, "sft").data.train] == ["data/客服.csv", "data/身份.jsonl"]
    assert stage_of(recipe, "sft").select_checkpoint == "last"
    assert recipe.generation_samples.texts == ["春晓 0", "春晓 1", "春晓 2"]
    assert all(
        "#" in line for line in text.splitlines() if line.lstrip().startswith(("duration", "batch", "optimizer", "vocab"))
    )
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    assert "warning:" not in capsys.readouterr().out


def test_the_files_of_a_folder_are_named_together_where_they_are_alike(tmp_path: Path) -> None:
    for number in range(5):
        write_rows(tmp_path / f"{number}.jsonl", *({"text": f"text {number} {row} " * 9} for row in range(9)))
    files = [seen for path in find_files([str(tmp_path)])[0] if isinstance(seen := look_at(path), DataFile)]
    assert [path_of(group) for group in alike(files)] == [f"{tmp_path}/*.jsonl"]
    sizes = choose_sizes({"pretrain": files}, 60, FLOPS, 8)
    assert f"- {tmp_path}/*.jsonl\n" in recipe_text("a", {"pretrain": files}, sizes, "", 1, [])


# -- what a file holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("\n".join(f"A line of a dump of an encyclopedia, long enough to be a document: {n}" for n in range(9)), None),
        ("\n".join(POEM.format(n) for n in range(9)), "paragraph"),
        ("\n".join(f"Line {n} of a story," for n in range(99)), "file"),
    ],
)  # fmt: skip
def test_the_documents_of_a_text_file(tmp_path: Path, content: str, documents: str | None) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    seen = look_at(tmp_path / "a.txt")
    assert isinstance(seen, DataFile) and seen.source.get("documents") == documents
    assert seen.used == {None: 9, "paragraph": 9, "file": 1}[documents]


def test_a_column_that_holds_most_of_the_text_is_the_text(tmp_path: Path) -> None:
    poems = [
        {"author": "孟浩然", "paragraphs": ["春眠不觉晓，处处闻啼鸟。"] * 4, "title": "春晓", "id": f"{n}"} for n in range(9)
    ]
    (tmp_path / "poems.json").write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    seen = look_at(tmp_path / "poems.json")
    assert isinstance(seen, DataFile) and seen.source == {"columns": {"text": ["title", "author", "paragraphs"]}}
    assert seen.used == 9 and seen.openings[0].startswith("春晓")


def test_two_columns_of_unknown_names_are_not_guessed(tmp_path: Path) -> None:
    seen = look_at(write_csv(tmp_path / "a.csv", ["客户说", "我们说"], [["你好吗？", "我很好，谢谢你的关心。"]] * 9))
    assert isinstance(seen, Unused) and "columns: {prompt: 客户说, response: 我们说}" in seen.reason


def test_rows_of_each_kind_go_to_their_stage(tmp_path: Path) -> None:
    kinds = {
        "text": {"text": "once upon a time"},
        "sft": {"instruction": "a", "output": "b"},
        "dpo": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "kto": {"prompt": "a", "completion": "b", "label": True},
    }
    found = {}
    for name, row in kinds.items():
        seen = look_at(write_rows(tmp_path / f"{name}.jsonl", row))
        assert isinstance(seen, DataFile)
        found[name] = seen.kind
    assert found == {"text": "pretrain", "sft": "sft", "dpo": "preference", "kto": "kto"}


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("my_test_dataset_2k.jsonl", "test"),
        ("valid.jsonl", "validation"),
        ("dev-1.jsonl", "validation"),
        ("验证集.jsonl", "validation"),
        ("测试.csv", "test"),
        ("tests.jsonl", "test"),
        ("heldout.jsonl", "validation"),
        ("unit-test-questions-train.jsonl", "training"),
        ("latest.jsonl", "training"),
        ("protest_songs.txt", "training"),
        ("train.jsonl", "training"),
    ],
)
def test_the_name_of_a_file_says_what_it_is_for(name: str, purpose: str) -> None:
    assert purpose_of(Path(name)) == purpose


def test_files_that_are_named_for_tests_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("train", "test", "valid")):
        write_rows(tmp_path / f"{name}.jsonl", *({"prompt": f"{number} {n}?", "response": f"{n}"} for n in range(50)))
    out = tmp_path / "out.yaml"
    assert main(["init", str(tmp_path), "--out", str(out)]) == 0
    assert f"not used: {tmp_path}/test.jsonl: its name says that it is for tests" in capsys.readouterr().err
    data = stage_of(load_recipe([str(out)]), "sft").data
    assert [one.path for one in data.train] == [f"{tmp_path}/train.jsonl"]
    assert [one.path for one in data.validation] == [f"{tmp_path}/valid.jsonl"]
    assert main(["init", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "alone.yaml")]) == 0
    alone = stage_of(load_recipe([str(tmp_path / "alone.yaml")]), "sft").data
    assert [one.path for one in alone.train] == [f"{tmp_path}/test.jsonl"] and alone.validation == 0.15
    assert "named for test, but trained on" in capsys.readouterr().err


# -- sizes -----------------------------------------------------------------------------------------------------------------


def texts(rows: int, characters: int = 400) -> DataFile:
    return DataFile(
        path=Path("a.jsonl"), kind="pretrain", rows=rows, used=rows, amount=Amount(other=rows * characters),
        lengths=[(0, characters, 0)] * min(rows, 1000), distinct=set(range(50)), scale=max(1.0, rows / 1000),
    )  # fmt: skip


def test_more_data_and_more_time_make_a_larger_model_and_never_take_longer_than_asked() -> None:
    sizes = {
        (rows, minutes): choose_sizes({"pretrain": [texts(rows)]}, 60 * minutes, FLOPS, 8)
        for rows in (100, 10_000, 1_000_000)
        for minutes in (1, 10, 600)
    }
    for (rows, minutes), found in sizes.items():
        assert found.seconds <= 60 * minutes * 1.05
        assert found.parameters <= 4.0 * found.stages["pretrain"].seen or found.model.hidden_size == SHAPES[0][0], rows
    assert sizes[100, 600].model.hidden_size == SHAPES[0][0]
    assert sizes[1_000_000, 600].model.hidden_size > sizes[1_000_000, 10].model.hidden_size
    assert sizes[1_000_000, 1].stages["pretrain"].passes < 1 <= sizes[10_000, 600].stages["pretrain"].passes


@given(st.integers(0, 10**9), st.integers(0, 10**6))
def test_a_vocabulary_grows_with_the_data(other: int, more: int) -> None:
    small, large = (vocabulary_for(Amount(other=count)) for count in (other, other + more))
    assert small in VOCABULARIES and small <= large
    assert tokens_of(0, other, large) >= 0


def test_a_vocabulary_has_room_for_the_characters_that_occur() -> None:
    amount = Amount()
    for number in range(3000):
        amount.add(chr(0x4E00 + number) * 400)
    assert amount.known_han == 3000 and vocabulary_for(amount) >= 4096


# -- what a hostile folder holds ---------------------------------------------------------------------------------------------


def looked_at(*paths: Path) -> tuple[dict[str, DataFile], dict[str, str]]:
    """The files that are used, and the reasons for those that are not, by name."""
    found, unused = find_files([str(path) for path in paths])
    seen = [look_at(path) for path in found]
    files = {one.path.name: one for one in seen if isinstance(one, DataFile)}
    return files, {one.path.name: one.reason for one in [*unused, *seen] if isinstance(one, Unused)}


def test_copies_loops_and_folders_of_runs_are_looked_at_once_or_not_at_all(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "response": f"{n}"} for n in range(9)]
    first = write_rows(tmp_path / "a.jsonl", *rows)
    write_rows(tmp_path / "a (1).jsonl", *rows)
    (tmp_path / "below").mkdir()
    write_rows(tmp_path / "below" / "b.jsonl", *rows[:5])
    (tmp_path / "below" / "loop").symlink_to(tmp_path)
    (tmp_path / "run").mkdir()
    write_rows(tmp_path / "run" / "events.jsonl", *rows)
    (tmp_path / "run" / "recipe.yaml").write_text("name: run\n", encoding="utf-8")
    files, unused = looked_at(tmp_path, first)
    assert set(files) == {"a (1).jsonl", "b.jsonl"}
    assert unused == {"a.jsonl": f"it is the same as {tmp_path}/a (1).jsonl", "run": "it is a run, and no folder of data"}


def test_of_few_different_rows_none_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["".join(random.Random(number).choices(HAN, k=20)) for number in range(600)]
    Path("novel.txt").write_text("\n".join(lines), encoding="utf-8")
    assert main(["init", "novel.txt", "--out", "a.yaml", "--minutes", "1"]) == 0
    assert stage_of(load_recipe(["a.yaml"]), "pretrain").data.validation == 0
    assert main(["train", "a.yaml", "--dry-run"]) == 0


def test_tools_and_the_longer_answer_count_in_a_length(tmp_path: Path) -> None:
    tools = json.dumps([{"name": "search", "description": "d" * 900}])
    with_tools = look_at(write_rows(tmp_path / "tools.jsonl", {"prompt": "a", "response": "b", "tools": tools}))
    pairs = look_at(write_rows(tmp_path / "pairs.jsonl", {"prompt": "p" * 10, "chosen": "c" * 500, "rejected": "r" * 20}))
    assert isinstance(with_tools, DataFile) and with_tools.lengths[0][1] > 1400
    assert isinstance(pairs, DataFile) and pairs.lengths == [(0, 510, 2)]


def test_labelled_answers_have_both_labels_in_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "chats.jsonl", *({"prompt": f"how many, {n}?", "response": f"{n}"} for n in range(60)))
    rows = [{"prompt": f"{n}?", "completion": f"b {n}", "label": n % 2 == 0} for n in range(60)]
    write_rows(tmp_path / "kto.jsonl", *rows)
    assert main(["init", "chats.jsonl", "kto.jsonl", "--out", "a.yaml", "--minutes", "1"]) == 0
    assert main(["train", "a.yaml", "--dry-run"]) == 0
    write_rows(tmp_path / "good.jsonl", *(row for row in rows if row["label"]))
    assert main(["init", "chats.jsonl", "good.jsonl", "--out", "b.yaml", "--minutes", "1"]) == 0
    assert list(load_recipe(["b.yaml"]).stages) == ["sft"]


def test_the_folder_of_a_file_says_what_it_is_for(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test", "validation")):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "0.jsonl", *({"prompt": f"{number} {n}?", "response": f"{n}"} for n in range(50)))
    assert main(["init", str(tmp_path), "--out", str(tmp_path / "out.yaml")]) == 0
    data = stage_of(load_recipe([str(tmp_path / "out.yaml")]), "sft").data
    assert [one.path for one in data.train] == [f"{tmp_path}/train/0.jsonl"]
    assert [one.path for one in data.validation] == [f"{tmp_path}/validation/0.jsonl"]


def test_why_no_file_can_be_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "a.csv", ["客户说", "我们说"], [["你好吗？", "我很好，谢谢你的关心。"]] * 9)
    assert main(["init", str(tmp_path), "--out", str(tmp_path / "out.yaml")]) == 2
    told = capsys.readouterr().err
    assert "columns: {prompt: 客户说, response: 我们说}" in told and "nothing to train on" in told


# -- errors ----------------------------------------------------------------------------------------------------------------


def test_wrong_input_is_told_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    out = tmp_path / "out.yaml"
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ([str(pairs)], "only comparisons of answers"),
        ([str(empty)], "nothing to train on"),
        ([str(tmp_path / "missing.jsonl")], "there is no file"),
        ([str(pairs), "--minutes", "0"], "--minutes"),
        ([str(pairs), "--name", "../up"], "--name"),
    ):
        assert main(["init", *arguments, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err and not out.exists()
    out.write_text("name: mine\n", encoding="utf-8")
    assert main(["init", str(pairs), "--out", str(out)]) == 2
    assert "this file is there" in capsys.readouterr().err and out.read_text(encoding="utf-8") == "name: mine\n"
    assert main(["init", str(pairs), "--out", str(tmp_path / "out.txt")]) == 2
    assert "a recipe is a YAML file" in capsys.readouterr().err


def test_comparisons_that_nothing_can_learn_from_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts_ = write_rows(tmp_path / "texts.jsonl", *({"text": f"once upon a time there were {n} foxes"} for n in range(50)))
    chats = write_rows(tmp_path / "chats.jsonl", *({"prompt": f"how many, {n}?", "response": f"{n}"} for n in range(50)))
    pairs = write_rows(tmp_path / "pairs.jsonl", *({"prompt": f"{n}?", "chosen": "b", "rejected": "c"} for n in range(50)))
    labels = write_rows(
        tmp_path / "labels.jsonl", *({"prompt": f"{n}?", "completion": "b", "label": n % 2 == 0} for n in range(50))
    )
    assert main(["init", str(texts_), str(pairs), "--out", str(tmp_path / "a.yaml")]) == 0
    assert f"not used: {pairs}: pairs: no conversations teach" in capsys.readouterr().err
    assert list(load_recipe([str(tmp_path / "a.yaml")]).stages) == ["pretrain"]
    assert main(["init", *map(str, (pairs, labels, chats, texts_)), "--out", str(tmp_path / "b.yaml")]) == 0
    assert f"not used: {labels}: labelled answers: one stage of comparisons" in capsys.readouterr().err
    assert list(load_recipe([str(tmp_path / "b.yaml")]).stages) == ["pretrain", "sft", "dpo"]
    assert str(labels) in (tmp_path / "b.yaml").read_text(encoding="utf-8")


@given(
    name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(lambda text: "/" not in text),
    opening=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_whatever_files_and_rows_are_called_the_recipe_can_be_read(name: str, opening: str) -> None:
    file = DataFile(
        path=Path("data", f"{name}.jsonl"), kind="sft", reasons=[opening], rows=50, used=50, amount=Amount(other=5000),
        lengths=[(10, 90, 2)] * 50, distinct=set(range(50)),
        openings=[opening], source={"columns": {"prompt": name, "response": opening}},
    )  # fmt: skip
    sizes = choose_sizes({"sft": [file]}, 60, FLOPS, 8)
    text = recipe_text("mine", {"sft": [file]}, sizes, "fledge train mine.yaml", 1, [opening])
    found = yaml.safe_load(text)
    assert found["stages"]["sft"]["data"]["train"] == [{"path": f"data/{name}.jsonl", **file.source}]
    assert all(one.strip() for one in found.get("generation_samples", {}).get("prompts", ["x"]))
    assert re.fullmatch(r"\d+ epochs", found["stages"]["sft"]["duration"])
