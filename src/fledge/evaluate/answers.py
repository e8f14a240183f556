"""Scores of answers against references: exact match, valid JSON, precision, recall and F1 of fields, kinds of mistakes."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fledge.evaluate.intervals import Interval, bootstrap_interval, wilson_interval
from fledge.generation import FinishReason

RIGHT = "right"
Fields = dict[str, Any]
JSON_SCORES = ("valid_json", "f1")  # of answers that are JSON objects
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = range(3)


@dataclass(frozen=True, kw_only=True)
class AnsweredRow:
    """A question with its reference answer and a model's answer.

    `group`: what is particular in the question, "" for nothing. `held_out`: keys of the reference whose names training never
    shows.
    """

    where: str
    question: str
    expected: str
    given: str
    finish_reason: FinishReason
    group: str = ""
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is wrong in one answer: `kind`, RIGHT for nothing, and `details`, a sentence for each wrong field.

    `fields`: (key, expected, given) of every key of either object, None for null and for a key that is missing; empty where
    the reference is no JSON object. `keys`: of the reference. `valid_json`: None where the reference is no JSON object.
    """

    kind: str
    details: tuple[str, ...] = ()
    fields: tuple[tuple[str, Any, Any], ...] = ()
    keys: frozenset[str] = frozenset()
    valid_json: bool | None = None


def parse_object(text: str) -> Fields:
    """The JSON object that is the whole text. Raises ValueError, whose message is the kind of mistake, for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except _RepeatedKey:
        raise ValueError("a key is there twice") from None
    except (ValueError, RecursionError):
        raise ValueError("text around the JSON" if _holds_object(text) else "not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("JSON, but no object")
    return value


def is_object(text: str) -> bool:
    """Whether the whole text is a JSON object."""
    try:
        parse_object(text)
    except ValueError:
        return False
    return True


class _RepeatedKey(ValueError):
    """A JSON object with one key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> Fields:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _RepeatedKey
    return dict(pairs)


def _holds_object(text: str) -> bool:
    """Whether a JSON object stands somewhere in a text that is none as a whole."""
    start = text.find("{")
    try:
        return start >= 0 and isinstance(json.JSONDecoder().raw_decode(text, start)[0], dict)
    except (ValueError, RecursionError):
        return False


def mark(row: AnsweredRow) -> Mark:
    """Compare the answer of a row with its reference. JSON is compared by value, other text without white space around it."""
    given = row.given.strip()
    try:
        expected = parse_object(row.expected)
    except ValueError:
        kind = RIGHT if given == row.expected.strip() else _text_mistake(row, given)
        return Mark(kind=kind)
    try:
        found = parse_object(given)
    except ValueError as error:
        kind = _text_mistake(row, given)
        kind = str(error) if kind == "other text" else kind
        return Mark(kind=kind, fields=_fields(expected, {}), keys=frozenset(expected), valid_json=False)
    fields = _fields(expected, found)
    wrong = [_mistake(key, expected, found) for key, want, got in fields if want != got or (key in expected) != (key in found)]
    kinds = [kind for kind, _ in wrong]
    kind = min(kinds, key=MISTAKES.index) if kinds else RIGHT
    return Mark(kind=kind, details=tuple(text for _, text in wrong), fields=fields, keys=frozenset(expected), valid_json=True)


MISTAKES = ("unknown key", "missing key", "null for a name", "name for null", "other name")  # of a field, the first one counts


def _text_mistake(row: AnsweredRow, given: str) -> str:
    if not given:
        return "empty"
    return "not ended" if row.finish_reason != "stop" else "other text"


def _fields(expected: Fields, found: Fields) -> tuple[tuple[str, Any, Any], ...]:
    keys = dict.fromkeys((*expected, *found))
    return tuple((key, _plain(expected.get(key)), _plain(found.get(key))) for key in keys)


def _plain(value: Any) -> Any:
    """A value that can be compared and counted: objects and lists as their JSON text. `true` is not 1."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _mistake(key: str, expected: Fields, found: Fields) -> tuple[str, str]:
    want, got = expected.get(key), found.get(key)
    if key not in expected:
        return "unknown key", f"{key}: no such key"
    if key not in found:
        return "missing key", f"{key}: {_shown(want)} is missing"
    kind = "null for a name" if got is None else "name for null" if want is None else "other name"
    return kind, f"{key}: {_shown(want)} -> {_shown(got)}"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- scores of many answers ----------------------------------------------------------------------------------------------


def score_answers(rows: Sequence[AnsweredRow], marks: Sequence[Mark]) -> dict[str, Any]:
    """The scores of a model's answers, as JSON values: over all rows, by group, of held-out keys, by field, and mistakes."""
    result = _scores(rows, marks)
    groups = list(dict.fromkeys(row.group for row in rows))
    if groups != [""]:
        chosen = {group: [number for number, row in enumerate(rows) if row.group == group] for group in sorted(groups)}
        result["groups"] = {
            group or "none": _scores([rows[i] for i in numbers], [marks[i] for i in numbers])
            for group, numbers in chosen.items()
        }
    if any(row.held_out for row in rows):
        only = [_only(one.fields, row.held_out) for row, one in zip(rows, marks, strict=True)]
        result["held_out_fields"] = _field_scores(only)
    if any(one.valid_json is not None for one in marks):
        result["fields"] = _by_field([one for one in marks if one.valid_json is not None])
    result["mistakes"] = dict(Counter(one.kind for one in marks if one.kind != RIGHT).most_common())
    confused = Counter(text.partition(": ")[2] for one in marks for text in one.details if " -> " in text)
    result["confused"] = dict(confused.most_common(20))
    return result


def summary_scores(marks: Sequence[Mark]) -> dict[str, float]:
    """`exact_match` of all answers, and `valid_json` and `f1` of those whose reference is a JSON object, if there are any."""
    scores = {"exact_match": sum(one.kind == RIGHT for one in marks) / len(marks)}
    objects = [one for one in marks if one.valid_json is not None]
    if objects:
        scores["valid_json"] = sum(bool(one.valid_json) for one in objects) / len(objects)
        scores["f1"] = float(_f1(_outcome_counts([one.fields for one in objects]).sum(axis=0)))
    return scores


def answer_f1(marked: Mark) -> float:
    """F1 of the fields of one answer, which is compared with a JSON object; 1 where neither has a name, only null."""
    counts = _outcome_counts([marked.fields]).sum(axis=0)
    return float(_f1(counts)) if counts.sum() else 1.0


def field_f1(marks: Sequence[Mark]) -> tuple[float, Interval]:
    """F1 over the fields of all answers that are compared with JSON objects, and its 95 % interval, which resamples answers."""
    counts = _outcome_counts([one.fields for one in marks])
    return float(_f1(counts.sum(axis=0))), bootstrap_interval(counts, _f1)


def _only(fields: Sequence[tuple[str, Any, Any]], keys: Collection[str]) -> tuple[tuple[str, Any, Any], ...]:
    return tuple(field for field in fields if field[0] in keys)


def _scores(rows: Sequence[AnsweredRow], marks: Sequence[Mark]) -> dict[str, Any]:
    right = sum(one.kind == RIGHT for one in marks)
    result: dict[str, Any] = {"rows": len(rows), "exact_match": _rate(right, len(rows))}
    objects = [one for one in marks if one.valid_json is not None]
    if objects:
        result["valid_json"] = _rate(sum(bool(one.valid_json) for one in objects), len(objects))
        result |= _field_scores([one.fields for one in objects])
    return result


def _rate(successes: int, n: int) -> dict[str, Any]:
    return {"value": successes / n, "interval": wilson_interval(successes, n)}


def count_outcomes(fields: Sequence[tuple[str, Any, Any]]) -> list[tuple[Any, int]]:
    """(name or value, outcome) of the fields of one answer.

    A name that is expected and given is a true positive; another name is a false positive, and the expected one a false
    negative. Null on both sides counts nothing, so that easy nulls cannot raise the score.
    """
    outcomes: list[tuple[Any, int]] = []
    for _, want, got in fields:
        if want is not None and want == got:
            outcomes.append((want, TRUE_POSITIVE))
            continue
        if want is not None:
            outcomes.append((want, FALSE_NEGATIVE))
        if got is not None:
            outcomes.append((got, FALSE_POSITIVE))
    return outcomes


def _field_scores(all_fields: Sequence[Sequence[tuple[str, Any, Any]]]) -> dict[str, Any]:
    """Precision, recall and F1 over all fields (micro averages), with intervals that resample rows."""
    counts = _outcome_counts(all_fields)
    return {
        name: {"value": float(score(counts.sum(axis=0))), "interval": bootstrap_interval(counts, score)}
        for name, score in {"precision": _precision, "recall": _recall, "f1": _f1}.items()
    }


def _outcome_counts(all_fields: Sequence[Sequence[tuple[str, Any, Any]]]) -> np.ndarray:
    """True positives, false positives and false negatives of each answer [rows, 3]."""
    counts = np.zeros((len(all_fields), 3))
    for number, fields in enumerate(all_fields):
        for _, outcome in count_outcomes(fields):
            counts[number, outcome] += 1
    return counts


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=whole > 0)


def _precision(sums: np.ndarray) -> np.ndarray:
    right = sums[..., TRUE_POSITIVE]
    return _ratio(right, right + sums[..., FALSE_POSITIVE])


def _recall(sums: np.ndarray) -> np.ndarray:
    right = sums[..., TRUE_POSITIVE]
    return _ratio(right, right + sums[..., FALSE_NEGATIVE])


def _f1(sums: np.ndarray) -> np.ndarray:
    right = sums[..., TRUE_POSITIVE]
    return _ratio(2 * right, 2 * right + sums[..., FALSE_POSITIVE] + sums[..., FALSE_NEGATIVE])


def _by_field(marks: Sequence[Mark]) -> dict[str, Any]:
    """The scores of each field: of each key where all references have equal keys, else of each name that references give."""
    all_fields = [one.fields for one in marks]
    if len({one.keys for one in marks}) == 1:
        return {key: _field_scores([_only(fields, {key}) for fields in all_fields]) for key in sorted(marks[0].keys)}
    names = sorted({str(want) for fields in all_fields for _, want, _ in fields if want is not None})
    return {name: _field_scores([_of_name(fields, name) for fields in all_fields]) for name in names}


def _of_name(fields: Sequence[tuple[str, Any, Any]], name: str) -> list[tuple[str, Any, Any]]:
    """The fields as if there were no other name."""
    return [
        (key, want if want == name else None, got if got == name else None) for key, want, got in fields if name in (want, got)
    ]
