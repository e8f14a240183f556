"""The kinds of evaluation sets: how each is loaded, and which kind a file looks like."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.rows import parse_conversation, parse_document, parse_row
from fledge.data.reading.records import files_of, records_of
from fledge.errors import FledgeError
from fledge.evaluate.prompt_sets import PREFIX
from fledge.evaluate.sets.base import EvaluationSet
from fledge.evaluate.sets.generated import AnswersSet, GenerationSet, PromptSet
from fledge.evaluate.sets.likelihood import MinimalPairs, MultipleChoice, TextSet
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import SET_KINDS, EvaluationSetConfig, SetKind

Loader = Callable[[str, EvaluationSetConfig, str], EvaluationSet]
YAML = (".yaml", ".yml")
LOOKED_AT = 20  # rows of a file, to tell its kind


def _load_lm_eval(name: str, config: EvaluationSetConfig, key: str) -> EvaluationSet:
    from fledge.evaluate.sets.lm_eval import LmEvalSet  # the library takes seconds to load

    return LmEvalSet(name, config, key)


KINDS: dict[SetKind, Loader] = {
    "answers": AnswersSet,
    "prompts": PromptSet,
    "text": TextSet,
    "minimal_pairs": MinimalPairs,
    "multiple_choice": MultipleChoice,
    "generation": GenerationSet,
    "lm_eval": _load_lm_eval,
}
"""Each loads a set: (its name, its settings, what an error calls it, such as a key of the recipe)."""


def load_set(name: str, config: EvaluationSetConfig, key: str) -> EvaluationSet:
    """The set with its items. Raises FledgeError, with `key` or the file, for a file that is missing or holds no items."""
    return KINDS[config.kind](name, config, key)


def _is_conversation(row: Any) -> bool:
    return _parses(row, parse_conversation)


def _is_document(row: Any) -> bool:
    return _parses(row, parse_document)


def _parses(row: Any, parser: Any) -> bool:
    try:
        parse_row(row, Source(path="."), parser)
    except RowError:
        return False
    return True


def _has(*columns: str) -> Callable[[Any], bool]:
    return lambda row: isinstance(row, dict) and all(column in row for column in columns)


Test = Callable[[Any], bool]
SIGNS: tuple[tuple[SetKind, Test], ...] = (  # the first that holds for a row tells its kind
    ("minimal_pairs", _has("sentence_good", "sentence_bad")),
    ("multiple_choice", _has("choices", "label")),
    ("answers", _is_conversation),
    ("text", _is_document),
)


def guess_kind(path: str, key: str) -> SetKind:
    """The kind of set in a file, by its name and its first rows. Raises FledgeError if no kind fits."""
    if Path(path).suffix.lower() in YAML or path.startswith(PREFIX):
        return "prompts"
    source = Source(path=path)
    for _, record in islice(records_of(files_of(source, key), source), LOOKED_AT):
        if record.broken:
            continue
        for kind, holds in SIGNS:
            if holds(record.value):
                return kind
    raise FledgeError(
        "its rows look like those of no kind of evaluation set",
        where=path,
        hint=f"name the kind, such as --set {SET_KINDS[0]}={path}; the kinds are {', '.join(SET_KINDS)}",
    )
