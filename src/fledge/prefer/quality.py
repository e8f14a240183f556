"""Ratings of single answers by people, 1 to 5 in four dimensions: what is rated, in which order, and the sheets for it.

A rater never sees which model an answer is from; equal answers of several models are rated once.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.prefer.answers import Answer, AnswerSet, PromptAnswers, answer_id, fraction_of
from fledge.prefer.evaluated import read_rated
from fledge.prefer.journal import read_journal
from fledge.prefer.prompts import shown_turns
from fledge.prefer.ratings import replayed
from fledge.run.text_files import write_text

QUALITY = "quality"  # the kind of file
DIMENSIONS = ("relevance", "accuracy", "fluency", "completeness")
LOWEST, HIGHEST = 1, 5
ITEM, COMMENT = "item", "comment"
COLUMNS = (ITEM, "prompt", "answer", *DIMENSIONS, COMMENT)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet may take for the beginning of a formula."""
MAX_CELL = 32_000  # characters that a cell of Excel holds
MAX_FIELD = 2**17  # characters of a cell that is read: more is a quotation mark that is never closed
ENCODINGS = ("utf-8-sig", "gb18030")  # of a sheet that a spreadsheet has saved; with a byte order mark also UTF-16
Scores = tuple[int, int, int, int]


@dataclass(frozen=True)
class Item:
    """An answer to rate, with its prompt. `id`: a hash of both texts, which says nothing about the model."""

    id: str
    asked: PromptAnswers
    answer: Answer

    @property
    def prompt_text(self) -> str:
        """The prompt as a person reads it."""
        return "\n".join(f"{who}: {text}" for who, text in shown_turns(self.asked.prompt))


@dataclass(frozen=True)
class QualityFile:
    """What one rater says: the scores of items, and how many rows of the file have none."""

    path: Path
    rater: str
    scores: Mapping[str, Scores]
    unrated: int


def all_items(answers: AnswerSet) -> list[Item]:
    """All answers in the order of their files. Their ids begin with a letter: digits alone a spreadsheet makes a number."""
    return [
        Item("r" + answer_id(f"{asked.id}/{answer.id}")[:12], asked, answer)
        for asked in answers.prompts.values()
        for answer in asked.answers
    ]


def items_of(answers: AnswerSet, seed: int, rater: str) -> list[Item]:
    """All answers in the order in which a rater gets them, a function of the seed and of the rater's name."""
    return sorted(all_items(answers), key=lambda item: fraction_of(seed, rater, item.id))


def write_sheet(paths: Sequence[str], out: Path, seed: int, rater: str) -> list[str]:
    """Write a CSV sheet of all answers of files for a rater; returns what to tell. Raises FledgeError for a file that is there:
    it may hold ratings."""
    if out.suffix.lower() != ".csv":
        raise FledgeError("a sheet is a CSV file", where=str(out), hint=f"name it {out.with_suffix('.csv').name}")
    if out.exists() or out.is_symlink():
        raise FledgeError("this file is there, and may hold ratings", where=str(out), hint="name another one with --out")
    items = items_of(read_rated(paths), seed, rater)
    if not items:
        raise FledgeError("there is no answer to rate", where=", ".join(paths))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for item in items:
        texts = (item.prompt_text, item.answer.text or "(empty)")
        writer.writerow([item.id, *map(safe_cell, texts), *[""] * len(DIMENSIONS), ""])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, "\ufeff" + buffer.getvalue())  # the mark by which Excel knows that this is UTF-8
    except OSError as error:
        raise FledgeError(f"cannot write: {error.strerror}", where=str(out)) from None
    cut = sum(max(map(len, (item.prompt_text, item.answer.text))) > MAX_CELL for item in items)
    told = [f"{out}: {len(items):,} answers in an order of their own; write {LOWEST} to {HIGHEST} into {', '.join(DIMENSIONS)}"]
    return [*told, f"{cut:,} answers have texts that were cut at {MAX_CELL:,} characters"] if cut else told


def safe_cell(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula: with an apostrophe before it if it begins like one."""
    shown = text.replace("\x00", "␀")
    shown = shown if len(shown) <= MAX_CELL else f"{shown[:MAX_CELL]} …"
    return f"'{shown}" if shown.startswith("'") or shown.lstrip(" ").startswith(FORMULA) else shown


# -- reading -----------------------------------------------------------------------------------------------------------


def read_quality(path: str) -> QualityFile:
    """A filled sheet, or a file of `fledge rate ask`. The rater of a sheet is named as its file. Raises FledgeError for a file
    that is neither, and for a score that is no whole number from 1 to 5, with its line."""
    file = Path(path).expanduser()
    return _read_sheet(file) if file.suffix.lower() == ".csv" else _read_journal(file)


def _read_journal(file: Path) -> QualityFile:
    journal = read_journal(file, QUALITY)
    scores: dict[str, Scores] = {}
    skipped = 0
    for number, line in enumerate(replayed(journal.lines)):
        if line.get("skip") is True:
            skipped += 1
        elif not (isinstance(line.get(ITEM), str) and _are_scores(line.get("scores"))):
            raise FledgeError("damaged: this is no rating", where=journal.location(number), hint="put back a copy")
        else:
            scores[line[ITEM]] = tuple(line["scores"])
    return QualityFile(file, str(journal.header.get("rater", file.stem)), scores, skipped)


def _are_scores(value: Any) -> bool:
    known = isinstance(value, list) and len(value) == len(DIMENSIONS)
    return known and all(type(one) is int and LOWEST <= one <= HIGHEST for one in value)


def _csv_rows(text: str, delimiter: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV text with the number of their last line. Raises FledgeError where it is damaged."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    limit = csv.field_size_limit(MAX_FIELD)  # it is that of the process, and readers of data raise it
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        hint = "look for a quotation mark that is never closed, and save it again as CSV"
        raise FledgeError(f"damaged CSV: {error}", where=f"{file}:{reader.line_num}", hint=hint) from None
    finally:
        csv.field_size_limit(limit)


def _read_sheet(file: Path) -> QualityFile:
    text = _decoded(file)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets of some languages save with semicolons
    rows = list(_csv_rows(text, delimiter, file))
    header = [name.strip().casefold() for name in rows[0][1]] if rows else []
    if missing := [name for name in (ITEM, *DIMENSIONS) if name not in header]:
        raise FledgeError(
            f"a sheet of `fledge rate sheet` is needed here: it has no column {', '.join(missing)}", where=f"{file}:1"
        )
    places = [header.index(name) for name in (ITEM, *DIMENSIONS)]
    scores: dict[str, Scores] = {}
    unrated = 0
    for line, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        cells = [row[place].strip() if place < len(row) else "" for place in places]
        where = f"{file}:{line}"
        if not any(cells[1:]):
            unrated += 1
            continue
        if cells[0] in scores:
            raise FledgeError(f"item {cells[0]} is there twice", where=where)
        scores[cells[0]] = tuple(_score(cell, name, where) for cell, name in zip(cells[1:], DIMENSIONS, strict=True))  # type: ignore[assignment]
    return QualityFile(file, file.stem, scores, unrated)


def _decoded(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FledgeError(f"cannot read: {error.strerror}", where=str(file)) from None
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise FledgeError("it is neither UTF-8 nor GB18030", where=str(file), hint="save it as CSV UTF-8")


def _score(cell: str, name: str, where: str) -> int:
    number = cell.removesuffix(".0")
    if not (number.isdecimal() and LOWEST <= int(number) <= HIGHEST):
        what = f"'{cell[:20]}' for {name}" if cell else f"no {name}"
        raise FledgeError(f"{what}: a score is a whole number from {LOWEST} to {HIGHEST}", where=where)
    return int(number)
