"""Logs in plain text: what trainers print, of any of them, in English or Chinese; also inside a document."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fledge.errors import FledgeError
from fledge.training_log.assemble import Origin, assemble
from fledge.training_log.decimal_commas import point_for_comma
from fledge.training_log.fast_lines import LineReader
from fledge.training_log.given import Given
from fledge.training_log.line_grammar import LineFigures
from fledge.training_log.line_shapes import RAISED, TRACEBACK, crash_kind
from fledge.training_log.names import resolve
from fledge.training_log.records import TrainingLog
from fledge.training_log.rows import Rows
from fledge.training_log.settings_text import settings_of_lines, settings_of_text
from fledge.training_log.text_file import LOG_HINT, read_text, without_colours

FENCE = re.compile(r"^\s*(?:```|~~~)")
SHOWN_LINES, SHOWN_CHARACTERS = 3, 100
DOCUMENTS = (".md", ".markdown", ".rst")
LEAST_OUTSIDE = 3  # lines with a figure at a step: the prose of a document has fewer
MEASURES = ("loss", "epoch_loss", "perplexity", "bits_per_byte", "bleu", "reward", "margins")
RUN_TIME = "train_runtime"  # is in the last record of Hugging Face's trainer, which sums up the run
NUMBERED = re.compile(r"\d")
MICRO_BATCHES = re.compile(r"\bepoch\s*:?\s*\[\d+/\d+\]\(\d+/\d+\)", re.IGNORECASE)
"""minimind's lines, whose steps count micro-batches."""


class Line(NamedTuple):
    """A line of a file, from 1."""

    number: int
    text: str


def read_plain_text(path: Path, given: Given) -> list[TrainingLog]:
    """The log in a text file. Raises FledgeError if it holds no line with a figure of training."""
    text = read_text(path)
    lines = with_decimal_points(list(lines_of(text)))
    blocks = code_blocks(lines)
    rows = read_rows(lines, given)
    if blocks and not _is_log_with_fences(path, rows, blocks):
        return _of_document(path, text, lines, blocks, given)
    if not _has_figures(rows):
        raise nothing_found(path, lines)
    settings = settings_of_lines(lines[:2000], str(path.name))
    origin = Origin(source="text log", path=str(path), counts=_counts(lines), settings=settings, ended=_ended(rows))
    return [assemble(rows, origin, given)]


def lines_of(text: str) -> Iterator[Line]:
    """The lines of a log without colours; what a progress bar wrote over itself is a line each."""
    for number, line in enumerate(without_colours(text).split("\n"), 1):
        for part in line.split("\r") if "\r" in line else (line,):
            if part.strip():
                yield Line(number, part.rstrip())


def with_decimal_points(lines: list[Line]) -> list[Line]:
    """The lines with decimal points, where the figures of the text are written with decimal commas."""
    rewrite = point_for_comma([line.text for line in lines])
    return lines if rewrite is None else [Line(line.number, rewrite(line.text)) for line in lines]


def code_blocks(lines: list[Line]) -> list[list[Line]]:
    """The blocks between fences of a Markdown document; none for other texts."""
    blocks: list[list[Line]] = []
    inside: list[Line] | None = None
    for line in lines:
        if FENCE.match(line.text):
            if inside is None:
                inside = []
            else:
                blocks.append(inside)
                inside = None
        elif inside is not None:
            inside.append(line)
    return [*blocks, *([inside] if inside else [])]


def _is_log_with_fences(path: Path, rows: Rows, blocks: list[list[Line]]) -> bool:
    """Whether a text with fences is a log that prints samples, and no document: several of its lines outside of the fences say
    a figure at a step or epoch; in a file of Markdown, most of them."""
    inside = {line.number for block in blocks for line in block}
    figures = [name for name in rows.names if (known := resolve(name)) is not None and not known.is_axis]
    counts = [name for name in rows.names if (known := resolve(name)) is not None and known.is_axis]
    at_a_step = {row for name in figures for row in rows.column(name)[0].tolist()}
    at_a_step &= {row for name in counts for row in rows.column(name)[0].tolist()}
    outside = sum(rows.lines[row] not in inside for row in at_a_step)
    return outside >= LEAST_OUTSIDE and (path.suffix.lower() not in DOCUMENTS or outside * 2 > len(at_a_step))


def _has_figures(rows: Rows) -> bool:
    return any((known := resolve(name)) is None or not known.is_axis for name in rows.names)


def _has_measure(rows: Rows) -> bool:
    """Whether the rows hold a figure that only a log has: pieces of code name learning rates too."""
    known = [found for name in rows.names if (found := resolve(name)) is not None]
    return any(found.name.rpartition("/")[2].startswith(MEASURES) for found in known)


def read_rows(lines: list[Line], given: Given) -> Rows:
    """The rows of figures in these lines, and what ended the run."""
    reader = LineReader(given.wanted())
    rows = _read_rows(lines, reader)
    return _read_rows(lines, LineReader(given.wanted(), fast=False)) if reader.failed else rows


def _read_rows(lines: list[Line], reader: LineReader) -> Rows:
    rows, ranges, traceback = Rows(), 0, False
    for line in lines:
        text = line.text
        if traceback or TRACEBACK in text:
            traceback = _follow_traceback(rows, line)
            continue
        if not NUMBERED.search(text) and "nan" not in text.lower():
            _note_crash(rows, line)
            continue
        found = reader.read(text)
        if RUN_TIME in found.values:
            rows.events.append({"kind": "end", **{name: numbers[0] for name, numbers in found.values.items()}})
        elif found.is_record:
            ranges += _add(rows, line.number, found)
        elif bars := {name: one for name, one in found.values.items() if name.startswith("axis/")}:
            rows.add(line.number, {name: one[0] for name, one in bars.items()})
        elif not _note_crash(rows, line):
            rows.unread["lines without a figure"] += 1
    if ranges:
        rows.notes.append(
            f"Ranges of numbers stand in the log ({ranges:,} times): both ends of a range are points, at both ends of the "
            "steps; whether the figure rose or fell between them the log does not say."
        )
    return rows


def _add(rows: Rows, number: int, found: LineFigures) -> int:
    """Add the row of a line, or for ranges one row for each pair of ends; returns 1 if it has ranges."""
    rows.measures.update(found.measures)
    if found.missing:
        rows.unread["values that say there is none (n/a)"] += found.missing
    if max(map(len, found.values.values())) == 1:
        rows.add(number, {name: numbers[0] for name, numbers in found.values.items()})
        return 0
    spans = {name: numbers for name, numbers in found.values.items() if len(numbers) > 1}
    steps = {name for name in spans if (known := resolve(name)) is not None and known.is_axis}
    for at in (0, -1) if steps else (0,):
        for end in (0, -1) if set(spans) - steps else (0,):
            rows.add(number, {name: numbers[at if name in steps else end] for name, numbers in found.values.items()})
    return 1


def _note_crash(rows: Rows, line: Line) -> bool:
    kind = crash_kind(line.text)
    if kind is not None:
        rows.events.append({"kind": "crash", "cause": kind, "text": line.text.strip()[:300], "line": line.number})
    return kind is not None


def _follow_traceback(rows: Rows, line: Line) -> bool:
    """Look for the last line of a traceback; returns whether it is still to come."""
    if line.text.startswith((" ", "\t")) or TRACEBACK in line.text:
        return True
    if RAISED.match(line.text.strip()):
        kind = crash_kind(line.text) or "error"
        rows.events.append({"kind": "crash", "cause": kind, "text": line.text.strip()[:300], "line": line.number})
    return False


def _ended(rows: Rows) -> bool | None:
    """Whether the log says that the run came to its end; None where it says nothing."""
    return True if any(event["kind"] == "end" for event in rows.events) else None


def _counts(lines: list[Line]) -> str:
    return "micro-batch" if any("](" in line.text and MICRO_BATCHES.search(line.text) for line in lines) else "unknown"


# -- documents ----------------------------------------------------------------------------------------------------------


def _of_document(path: Path, text: str, lines: list[Line], blocks: list[list[Line]], given: Given) -> list[TrainingLog]:
    """The log in a document: the first block with figures; the others are told."""
    found = [(block, rows) for block in blocks if _has_measure(rows := read_rows(block, given))]
    if not found:
        rows = read_rows(lines, given)
        if not _has_measure(rows):
            raise nothing_found(path, lines)
        found = [(lines, rows)]
    block, rows = found[0]
    rows.notes.append(f"This is a document: its log is {_span(block)}, the first block with figures.")
    for other, others in found[1:]:
        rows.notes.append(f"More figures, of another run or of what is hoped for, are in {_span(other)}: {_range(others)}.")
    rows.unread["lines of the document outside of its log"] += len(lines) - len(block)
    origin = Origin(source="text log in a document", path=str(path), counts=_counts(block))
    origin = replace(origin, settings=settings_of_text(text, path.name, given.stage))
    return [assemble(rows, origin, given)]


def _span(block: list[Line]) -> str:
    first, last = block[0].number, block[-1].number
    return f"line {first:,}" if first == last else f"lines {first:,}–{last:,}"


def _range(rows: Rows) -> str:
    """The figures of a block in a few words."""
    parts = []
    for name in rows.names:
        if (known := resolve(name)) is None or not known.is_axis:
            _, values = rows.column(name)
            values = values[np.isfinite(values)]
            if len(values):
                parts.append(f"{name.strip()} {values.min():g} to {values.max():g}")
    return ", ".join(parts)


def nothing_found(path: Path, lines: list[Line]) -> FledgeError:
    """The error for a text without figures: what was looked for, and how the text begins."""
    shown = [line.text.strip()[:SHOWN_CHARACTERS] for line in lines[:SHOWN_LINES]]
    if not shown:
        return FledgeError("this file is empty", where=str(path), hint=LOG_HINT)
    begin = " ⏎ ".join(shown)
    return FledgeError(
        "no figures of a training run were found here: lines with a loss, a learning rate or an evaluation beside a step or an "
        f"epoch; it begins with: {begin}",
        where=str(path),
        hint=f"{LOG_HINT}; columns that have other names are named with --columns train/loss=NAME",
    )
