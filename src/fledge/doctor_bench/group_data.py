"""The rows of a group of the bench: generated worlds, and real data where a folder of it is at hand."""

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fledge.doctor_bench.setup import Row, read_rows, write_rows
from fledge.errors import FledgeError
from fledge.world import Sizes, build

REAL_DATA = "FLEDGE_DATA"  # environment variable: a folder with real data
CHINESE = re.compile(r"[\u4e00-\u9fff]")
VALIDATION_ROWS = 80
SIZES = Sizes(pretrain=4800, sft=2900, preference=480, validation=20, questions=20)
SMALL_SIZES = Sizes(pretrain=1300, sft=900, preference=80, validation=20, questions=20)
OWN_ROWS = {"pretrain": 1500, "sft": 1000}  # of the rows of a kind, at most half: the others are of the start models
START_ROWS = {"pretrain": "base", "sft": "chat"}  # kind of rows → name of the start model that learns the others
PROMPTS = 160  # of stages on rewards
PARAGRAPH, POEM = 400, 120  # characters of a paragraph, and of a poem
FITTING_ENGLISH, FITTING_CHINESE = 240, 64  # characters of a question with its answer that a context of 128 tokens holds
SHORTEST_BROKEN = 8  # characters of an answer whose half is still one
SENTENCE_ENDS = ".。!！?？\n"


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


def world_rows(seed: int, languages: str, folder: Path, *, sizes: Sizes = SIZES) -> dict[str, Rows]:
    """The texts, conversations and pairs of a generated world in some languages, by name of the file."""
    build(seed, folder, sizes)
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


def real_data() -> Path:
    """The folder with real data. Raises FledgeError if there is none."""
    folder = os.environ.get(REAL_DATA)
    if not folder or not Path(folder).is_dir():
        raise FledgeError("this group needs real data", where=f"environment variable {REAL_DATA}", hint="name its folder there")
    return Path(folder)


def instruction_rows(seed: int, languages: str, folder: Path) -> dict[str, Rows]:
    """Shakespeare and Tang poems, instructions of Alpaca, and pairs of LLaMA-Factory's demonstrations."""
    data = real_data()
    text = (data / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    texts = _paragraphs(text[:1_000_000]) + _poems(data, "poet.tang.0")
    pairs = [
        pair(row["conversations"][-1]["value"], row["chosen"]["value"], row["rejected"]["value"])
        for name in ("dpo_en_demo", "dpo_zh_demo")
        for row in _json(data, name)
    ]
    return _tables(seed, languages, texts, _alpaca(data), pairs)


def article_rows(seed: int, languages: str, folder: Path) -> dict[str, Rows]:
    """Articles of an encyclopedia and Tang poems, instructions of Alpaca, and pairs of ChatLM's answers with worse forms."""
    data = real_data()
    articles = (data / "llamafactory" / "wiki_demo.txt").read_text(encoding="utf-8")
    texts, rows = _paragraphs(articles) + _poems(data, "poet.tang.30000"), _chatlm(data)
    return _tables(seed, languages, texts, _alpaca(data), _worse_pairs(rows[len(rows) // 2 :]))


def question_rows(seed: int, languages: str, folder: Path) -> dict[str, Rows]:
    """Web pages and Tang poems, questions and answers of ChatLM, and pairs of an answer and a worse form of it, shorter and
    longer in turn. (Pairs with the answer to another question teach a model of this size nothing: each is chosen once and
    rejected once.)"""
    data = real_data()
    pages = (data / "llamafactory" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    long = [json.loads(line)["text"] for line in pages if line.strip()]
    texts = [piece for page in long for piece in _paragraphs(page[: 8 * PARAGRAPH])]
    rows = _chatlm(data)
    half = len(rows) // 2
    questions = [conversation(row["prompt"], row["response"]) for row in rows[half:]]
    return _tables(seed, languages, texts + _poems(data, "poet.tang.1000"), questions, _worse_pairs(rows[:half]))


def _tables(
    seed: int, languages: str, texts: Sequence[str], conversations: Sequence[Row | None], pairs: Sequence[Row | None]
) -> dict[str, Rows]:
    tables = {"pretrain": [{"text": text} for text in texts], "sft": conversations, "preference": pairs}
    chosen = LANGUAGES[languages]
    return {name: divided([row for row in rows if row and chosen(row)], seed) for name, rows in tables.items()}


def _paragraphs(text: str) -> list[str]:
    return [text[start : start + PARAGRAPH] for start in range(0, len(text), PARAGRAPH)]


def _alpaca(data: Path) -> list[Row | None]:
    return [
        conversation(row["instruction"] + ("\n" + row["input"] if row["input"] else ""), row["output"])
        for name in ("alpaca_en_demo", "alpaca_zh_demo")
        for row in _json(data, name)
    ]


def _chatlm(data: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    names = ("my_train_dataset_3k", "my_test_dataset_2k", "my_valid_dataset_1k")
    return [row for name in names for row in pyarrow.parquet.read_table(data / "chatlm" / f"{name}.parquet").to_pylist()]


def _worse_pairs(rows: Sequence[Mapping[str, Any]]) -> list[Row | None]:
    return [with_a_worse_one(row["prompt"], row["response"], number % 2 == 0) for number, row in enumerate(rows)]


def _json(data: Path, name: str) -> list[Mapping[str, Any]]:
    return json.loads((data / "llamafactory" / f"{name}.json").read_text(encoding="utf-8"))


def _poems(data: Path, name: str) -> list[str]:
    poems = json.loads((data / "poetry" / f"{name}.json").read_text(encoding="utf-8"))
    return ["".join(poem["paragraphs"])[:POEM] for poem in poems if poem["paragraphs"]]


def fitting(text: str, share: float) -> str:
    """The whole sentences at the beginning of a text that take a share of what fits; empty if the first does not."""
    most = int(share * (FITTING_CHINESE if CHINESE.search(text) else FITTING_ENGLISH))
    if len(text) <= most:
        return text.strip()
    return text[: max(text[:most].rfind(mark) for mark in SENTENCE_ENDS) + 1].strip()


def conversation(question: str, answer: str) -> Row | None:
    """A question with its answer, shortened to whole sentences; None where they do not fit."""
    asked, said = fitting(question, 0.4), fitting(answer, 0.6)
    if asked != question.strip() or not said:
        return None
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def pair(question: str, chosen: str, rejected: str) -> Row | None:
    """A question with two answers, shortened to whole sentences; None where they do not fit."""
    asked, good, bad = fitting(question, 0.4), fitting(chosen, 0.6), fitting(rejected, 0.6)
    if not asked or not good or not bad or good == bad:
        return None
    return {"messages": [{"role": "user", "content": asked}], "chosen": good, "rejected": bad}


def with_a_worse_one(question: str, answer: str, is_longer: bool) -> Row | None:
    """A question with an answer, and as the rejected one that answer broken off in the middle or, if it is to be longer, with
    its first half said again; None where they do not fit."""
    asked, good = fitting(question, 0.4), fitting(answer, 0.4)
    if asked != question.strip() or len(good) < SHORTEST_BROKEN:
        return None
    half = good[: len(good) // 2].rstrip()
    bad = f"{good} {half}" if is_longer else half
    return {"messages": [{"role": "user", "content": asked}], "chosen": good, "rejected": bad}


SOURCES: dict[str, Callable[[int, str, Path], dict[str, Rows]]] = {
    "world": world_rows,
    "small world": partial(world_rows, sizes=SMALL_SIZES),
    "instructions": instruction_rows,
    "questions": question_rows,
    "articles": article_rows,
}


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
