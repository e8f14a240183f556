"""Whether an answer is in the language that was asked for."""

import re

from fledge.data.cleaning.languages import detect_language, is_short_code
from fledge.evaluate.metrics.phrases import phrases

_NO_LANGUAGE = ("other", "code")  # figures, programs: they fit every question
_LATIN = ("en", "latin")
_NAME_WORDS = 5  # of a name, at most


def expected_language(prompt: str, expected: str | None) -> str | None:
    """The language an answer should be in: that of its reference, else that of the prompt. None where the text has none, and
    for a prompt about languages without a reference."""
    if expected is None and phrases("identity")["changes_language"].search(prompt):
        return None
    language = detect_language(prompt if expected is None else expected)
    return None if language in _NO_LANGUAGE else language


def is_wrong_language(prompt: str, given: str, expected: str | None = None) -> bool | None:
    """Whether an answer is in another language than it should be, as `data.clean` tells languages; None where none can be told.

    An answer of names only, in Latin letters, may be any such language, and counts as the right one; so do a program of a line,
    and a name in Latin letters that stands in the prompt, after a prompt in any language."""
    wanted, found = expected_language(prompt, expected), detect_language(given)
    if wanted is None or not given.strip():
        return None
    if found in _NO_LANGUAGE or found == wanted:
        return False
    if found in _LATIN and (is_short_code(given) or _is_name_of(prompt, given)):
        return False
    return {found, wanted} != {"en", "latin"} or not given.isascii()


def _is_name_of(prompt: str, given: str) -> bool:
    """Whether an answer is a few words that stand in the prompt, in this order."""
    name = re.sub(r"^\W+|\W+$", "", given)
    if not name or len(name.split()) > _NAME_WORDS:
        return False
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", prompt, re.IGNORECASE))
