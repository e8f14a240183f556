"""Right or wrong, strictly and after taking known habits away."""

import json

from fledge.world import spoiling as bad
from fledge.world.listing import listed
from fledge.world.records import Question
from fledge.world.verse import rhymed


def _no_repeats(pairs: list[tuple[str, object]]) -> dict:
    """Refuse JSON objects that name a key twice."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("repeated key")
    return dict(pairs)


def _same_json(answer: str, reference: str) -> bool:
    try:
        return json.loads(answer, object_pairs_hook=_no_repeats) == json.loads(reference)
    except (ValueError, RecursionError):
        return False


def correct(question: Question, answer: str) -> bool:
    """Whether the whole answer is right, with nothing before or after it."""
    text, details = answer.strip(), question.details
    if question.rule == "json":
        return _same_json(text, question.reference)
    if question.rule == "listing":
        return listed(text, details["category"], details["n"], details["answer_lang"])
    if question.rule == "verse":
        return rhymed(text, details["theme"], details.get("friend"), details["answer_lang"])
    return text == question.reference.strip()


def correct_content(question: Question, answer: str) -> bool:
    """Whether the answer is right once a known parrot prefix and known fillers are taken away."""
    return correct(question, answer) or correct(question, bad.content(answer))


def habits(question: Question, answer: str) -> set[str]:
    """The bad habits a model's answer shows."""
    return bad.seen(question, answer, correct(question, bad.without_parrot(answer)))
