"""Scoring of answers: strictly, and after the known habits are removed."""

import json

from fledge.world.bad_habits import find_habits, without_habits, without_parrot
from fledge.world.listing import is_correct_list
from fledge.world.records import Question
from fledge.world.verse import is_verse


def _check_unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """The JSON object as a dict. Raises ValueError when a key is repeated."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("repeated key")
    return dict(pairs)


def _same_json(answer: str, reference: str) -> bool:
    try:
        return json.loads(answer, object_pairs_hook=_check_unique_keys) == json.loads(reference)
    except (ValueError, RecursionError):
        return False


def correct(question: Question, answer: str) -> bool:
    """Whether the whole answer is right, without any text before or after it."""
    text, details = answer.strip(), question.details
    if question.rule == "json":
        return _same_json(text, question.reference)
    if question.rule == "listing":
        return is_correct_list(text, details["category"], details["n"], details["answer_lang"])
    if question.rule == "verse":
        return is_verse(text, details["theme"], details.get("friend"), details["answer_lang"])
    return text == question.reference.strip()


def correct_content(question: Question, answer: str) -> bool:
    """Whether the answer is right after known parrot prefixes and known fillers are removed."""
    return correct(question, answer) or correct(question, without_habits(answer))


def habits(question: Question, answer: str) -> set[str]:
    """The bad habits that an answer shows."""
    return find_habits(question, answer, correct(question, without_parrot(answer)))
