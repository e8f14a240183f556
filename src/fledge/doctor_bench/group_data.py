"""The rows of a group of the bench: generated worlds, and real data where a folder of it is at hand."""

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fledge.doctor_bench.setup import Row, read_rows, write_rows
from fledge.errors import FledgeError
from fledge.world import Sizes, build

REAL_DATA = "FLEDGE_DATA"  # environment variable: a folder with real data
CHINESE = re.compile(r"[\u4e00-\u9fff]")
VALIDATION_ROWS = 80
SIZES = Sizes(pretrain=4800, sft=2900, preference=480, validation=20, questions=20)
OWN_ROWS = {"pretrain": 1500, "sft": 1000}  # of the rows of a kind, at most half: the others are of the start models
START_ROWS = {"pretrain": "base", "sft": "chat"}  # kind of rows → name of the start model that learns the others
PROMPTS = 160  # of stages on rewards
CHARACTERS = 400  # of a paragraph of real text


class Rows(NamedTuple):
    """Rows for training, for validation, and for the yardstick of the bench, which have no prompt in common."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


def is_chinese(row: Row) -> bool:
    """Whether a text, or the first turn of a conversation, has Chinese characters."""
    first = row["text"] if "text" in row else row["messages"][0]["content"]
    return CHINESE.search(first) is not None


LANGUAGES: dict[str, Callable[[Row], bool]] = {
    "zh+en": lambda row: True,
    "zh": is_chinese,
    "en": lambda row: not is_chinese(row),
}


def prompt_of(row: Row) -> str:
    """What a row is told apart by: its text, or its turns before the last answer."""
    if "text" in row:
        return row["text"]
    turns = row["messages"] if "chosen" in row else row["messages"][:-1]
    return json.dumps(turns, ensure_ascii=False)


def divided(rows: Sequence[Row], seed: int) -> Rows:
    """Rows with different prompts in a random order, the first of them held out."""
    different = list({prompt_of(row): row for row in rows}.values())
    random.Random(seed).shuffle(different)
    held = min(VALIDATION_ROWS, len(different) // 8)
    return Rows(different[2 * held :], different[:held], different[held : 2 * held])


def world_rows(seed: int, languages: str, folder: Path) -> dict[str, Rows]:
    """The texts, conversations and pairs of a generated world in some languages, by name of the file."""
    build(seed, folder, SIZES)
    chosen = LANGUAGES[languages]
    found = {
        name: divided([row for row in read_rows(folder / f"{name}.jsonl") if chosen(row)], seed)
        for name in ("pretrain", "sft", "preference")
    }
    found["kto"] = Rows(*(labelled(rows) for rows in found["preference"]))
    return found


def labelled(pairs: Sequence[Row]) -> list[Row]:
    """Single answers with labels from pairs: of one pair the chosen answer, of the next the rejected one."""
    rows = []
    for number, pair in enumerate(pairs):
        is_good = number % 2 == 0
        answer = {"role": "assistant", "content": pair["chosen" if is_good else "rejected"]}
        rows.append({"messages": [*pair["messages"], answer], "label": is_good})
    return rows


# -- real data ----------------------------------------------------------------------------------------------------------


def real_data() -> Path | None:
    """The folder with real data; None: there is none."""
    folder = os.environ.get(REAL_DATA)
    return Path(folder) if folder and Path(folder).is_dir() else None


def real_rows(seed: int, languages: str, folder: Path) -> dict[str, Rows]:
    """Real texts (Shakespeare, Tang poems), instructions (Alpaca) and pairs in short form. Raises FledgeError if the folder of
    real data is not there."""
    data = real_data()
    if data is None:
        raise FledgeError("this group needs real data", where=f"environment variable {REAL_DATA}", hint="name its folder there")
    tables = {
        "pretrain": [{"text": text} for text in _texts(data)],
        "sft": [_instruction(row) for row in _json(data, "alpaca_en_demo") + _json(data, "alpaca_zh_demo")],
        "preference": [_pair(row) for row in _json(data, "dpo_en_demo") + _json(data, "dpo_zh_demo")],
    }
    chosen = LANGUAGES[languages]
    return {name: divided([row for row in rows if chosen(row)], seed) for name, rows in tables.items()}


def _json(data: Path, name: str) -> list[Mapping[str, Any]]:
    return json.loads((data / "llamafactory" / f"{name}.json").read_text(encoding="utf-8"))


def _texts(data: Path) -> list[str]:
    text = (data / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    english = [text[start : start + CHARACTERS] for start in range(0, 600_000, CHARACTERS)]
    poems = json.loads((data / "poetry" / "poet.tang.0.json").read_text(encoding="utf-8"))
    return english + ["".join(poem["paragraphs"]) for poem in poems if poem["paragraphs"]]


def _short(text: str) -> str:
    """The beginning of a text, up to the end of a sentence where there is one."""
    cut = text[: CHARACTERS // 4]
    end = max(cut.rfind(mark) for mark in ".。!！?？\n")
    return cut[: end + 1] if end > 10 else cut


def _instruction(row: Mapping[str, Any]) -> Row:
    question = _short(row["instruction"] + ("\n" + row["input"] if row["input"] else ""))
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": _short(row["output"])}]
    return {"messages": turns}


def _pair(row: Mapping[str, Any]) -> Row:
    question = _short(row["conversations"][-1]["value"])
    answers = {name: _short(row[name]["value"]) for name in ("chosen", "rejected")}
    return {"messages": [{"role": "user", "content": question}], **answers}


SOURCES: dict[str, Callable[[int, str, Path], dict[str, Rows]]] = {"world": world_rows, "real": real_rows}


def write_group_data(source: str, seed: int, languages: str, folder: Path) -> None:
    """Write `<name>.jsonl`, `<name>.validation.jsonl` and `<name>.test.jsonl` of all kinds of rows of a group. Pairs with equal
    answers are left out. Start models learn from rows of their own, `base` and `chat`; `prompts` are some conversations."""
    found = SOURCES[source](seed, languages, folder / "made")
    for name, start in START_ROWS.items():
        rows = found[name]
        own = min(OWN_ROWS[name], len(rows.train) // 2)
        found |= {name: rows._replace(train=rows.train[:own]), start: rows._replace(train=rows.train[own:])}
    found["prompts"] = found["sft"]._replace(train=found["sft"].train[:PROMPTS])
    for name, rows in found.items():
        for split, suffix in ((rows.train, ""), (rows.validation, ".validation"), (rows.test, ".test")):
            kept = [row for row in split if "chosen" not in row or row["chosen"] != row["rejected"]]
            write_rows(folder / f"{name}{suffix}.jsonl", kept)
