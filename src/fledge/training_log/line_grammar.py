"""Figures in a line of text: names and numbers, with whatever a trainer writes between them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from fledge.training_log.line_shapes import rewritten
from fledge.training_log.names import EPOCH, NO_FIGURE, TRAIN_WORDS, Resolved, plain_name, resolve
from fledge.training_log.numbers import NUMBER, SPECIAL, UNIT, with_unit

VALUE = re.compile(
    rf"(?<![\w.])(?P<number>{NUMBER}|{SPECIAL})(?:\s?(?P<unit>{UNIT}))?(?!\.?\d)(?![A-Za-z_])"
    rf"(?:(?P<to>\s?(?:-|–|—|~|～|至|到|\.\.)\s?)(?P<high>{NUMBER})(?!\.?\d)(?![A-Za-z_]|\s*/))?",
    re.IGNORECASE,
)
EXPLICIT = re.compile(r"[:=：＝]\s*['\"\[(]?\s*$")
SEGMENTS = re.compile(r"[|,;，；、{}\[\]()（）<>\t:：=]|\s[-–—>]+\s|\s{3,}|->")
LETTERS = re.compile(r"[^\W\d_]")
PRIMARY = (
    "loss",
    "perplexity",
    "bits_per_byte",
    "bleu",
    "accuracy",
    "reward",
    "epoch_loss",
    "margins",
    "grad_norm",
    "rouge",
    "match",
)
DASHES = ("-", "–", "—")
BLANK_UNIT = re.compile(rf"\s(?!%){UNIT}", re.IGNORECASE)
MOST_WORDS = 6  # of a name of its own; a longer one is a sentence


NO_NAMES: Mapping[str, str] = {}


@dataclass
class LineFigures:
    """What a line says. `values`: name as it was written → numbers: one, or the two ends of a range. `measures`: name → unit.
    `is_record`: whether the line tells a figure of training or evaluation, and is not just text with numbers."""

    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    measures: dict[str, str] = field(default_factory=dict)
    is_record: bool = False
    missing: int = 0


def read_line(line: str, wanted: Mapping[str, str] = NO_NAMES) -> LineFigures:
    """The figures of a line. Numbers that stand alone, in sentences, or behind unknown words without a colon are none.
    `wanted`: plain names that the user gives → names of fledge."""
    found = LineFigures()
    text, end = rewritten(line), 0
    unknown: dict[str, tuple[float, ...]] = {}
    names: list[Resolved] = []
    ranks: dict[str, int] = {}
    evaluates = False
    for match in VALUE.finditer(text):
        evaluates = evaluates or (end == 0 and EVALUATION.search(text[: match.start()]) is not None)
        between, end = text[end : match.start()], match.end()
        name, known, explicit = _name(between)
        if name is None:
            continue
        quantity = with_unit(match["number"], match["unit"])
        if quantity is None:
            found.missing += 1
            continue
        numbers = _range(match, quantity.value, known is not None and known.is_axis)
        if known is None and (target := wanted.get(plain_name(name))):
            known = Resolved(target, 0)
        if known is None:
            if explicit:
                unknown[name] = numbers
            continue
        key = _column(name, known, evaluates)
        if key not in found.values or (known.is_axis and known.rank < ranks.get(key, 0)):
            found.values[key], ranks[key] = numbers, known.rank
            names.append(known)
            if quantity.measures and known.measures:
                found.measures[key] = quantity.measures
    found.is_record = _is_record(names)
    if found.is_record:
        found.values.update({name: numbers for name, numbers in unknown.items() if name not in found.values})
    return found


def _range(match: re.Match[str], low: float, is_count: bool) -> tuple[float, ...]:
    """The number of a match, or both ends of a range. Behind a count, and before a unit, ` - ` parts what stands in a line:
    `Epoch 1 - 100 - loss: 2.3 - 45 sec`."""
    if not match["high"]:
        return (low,)
    dash = match["to"].strip()
    if dash in DASHES and match["to"] != dash and (is_count or BLANK_UNIT.match(match.string, match.end())):
        return (low,)
    high = with_unit(match["high"], match["unit"])
    return (low, high.value) if high is not None and high.value > low else (low,)


EVALUATION = re.compile(
    r"\b(?:eval|evaluation|evaluating|validation|validating|valid|val|test)\b|验证|评估|测试", re.IGNORECASE
)


def _column(name: str, known: Resolved, evaluates: bool) -> str:
    """The column of a figure: counts of steps by their meaning, others by their plain name; on a line that begins with a word
    for evaluation, a figure that does not say where it was measured is one of the evaluation."""
    if known.is_axis:
        return known.name
    plain = plain_name(name)
    if evaluates and known.name.startswith("train/") and not plain.startswith(TRAIN_WORDS):
        in_evaluation = resolve(f"eval_{plain}")
        if in_evaluation is not None and in_evaluation.name.startswith("eval/"):
            return f"eval_{plain}"
    return plain


@lru_cache(maxsize=65_536)
def _name(between: str) -> tuple[str | None, Resolved | None, bool]:
    """The name in the text before a number, what it means, and whether a colon stands between them."""
    explicit = EXPLICIT.search(between)
    head = between[: explicit.start()] if explicit else between
    head = _with_unit_in_brackets(head.rstrip(" '\"*`"))
    segment = SEGMENTS.split(head)[-1].strip(" '\"*`.#>•-")
    if not LETTERS.search(segment):
        return None, None, False
    words = segment.split()
    for first in range(len(words)):
        name = " ".join(words[first:])
        known = resolve(name)
        if known is None:
            continue
        if first and _changed(words[:first], known):
            break
        return name, known, bool(explicit)
    if len(words) > MOST_WORDS:
        return None, None, False
    return "_".join(words), None, bool(explicit)


_UNIT_BRACKET = re.compile(r"\s*\((ms|s|sec|GB|GiB|MB|MiB|%)\)\s*$", re.IGNORECASE)


def _with_unit_in_brackets(head: str) -> str:
    """`elapsed time per iteration (ms)` with the unit as a word of the name."""
    return _UNIT_BRACKET.sub(lambda match: "_" + {"%": "pct"}.get(match[1], match[1].lower()), head)


def _changed(before: list[str], known: Resolved) -> bool:
    """Whether a word before a known name makes another thing of it: `best val loss`, `warmup steps`."""
    words = {part for word in before for part in plain_name(word).split("_")}
    return bool(words & NO_FIGURE) or (known.is_axis and bool(words & AXIS_BLOCKERS))


AXIS_BLOCKERS = frozenset(
    ("save", "saving", "eval", "logging", "log", "every", "per", "accumulation", "accum", "checkpoint", "at", "after", "from",
     "resume", "last")
)  # fmt: skip


def _is_record(names: list[Resolved]) -> bool:
    figures = [one for one in names if not one.is_axis]
    if any(one.name.rpartition("/")[2].startswith(PRIMARY) or "loss" in one.name for one in figures):
        return True
    steps = any(one.is_axis and one.name != EPOCH for one in names)
    return steps and bool(figures)
