"""Answers to the unknown keys of a recipe with stages: earlier names of fledge's keys, and keys of other trainers."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fledge.recipe.foreign.answer import Answer, Context
from fledge.recipe.foreign.renamed import new_name, new_value
from fledge.recipe.foreign.synonyms import (
    SECTION_WORDS,
    SYNONYMS,
    VALUES,
    answer_for,
    flattened,
    is_answered_as_one,
    loadable_answer,
    plain_name,
    table_name,
)
from fledge.recipe.foreign.wording import AnsweredKey, answer_text, shown_key
from fledge.recipe.schema import ModelConfig, Recipe
from fledge.recipe.schema_keys import (
    Key,
    Models,
    fields_of,
    has_key,
    holds_named_sections,
    is_stage_path,
    kind_of,
    models_at,
    paths_by_name,
    stage_models,
)

Locate = Callable[[Key], str]
DEFAULT_MAX_POSITIONS: int = ModelConfig.model_fields["max_position_embeddings"].default


@dataclass
class _Explanations:
    """A recipe and the answers to its keys so far."""

    tree: Mapping[str, Any]
    locate: Locate
    invalid: Collection[Key]  # keys whose value the schema does not accept
    answers: list[AnsweredKey] = field(default_factory=list)

    def add(self, key: Key, written: str, text: str, provides: tuple[Key, ...] = ()) -> None:
        """Add the answer to a key."""
        self.answers.append(AnsweredKey(key, self.locate(key), written, text, provides))


def explain(tree: Mapping[str, Any], locate: Locate, invalid: Collection[Key]) -> list[AnsweredKey]:
    """The answers to all keys and values of a recipe that were renamed, or that another trainer has.

    `locate` gives the file and line of a key; `invalid` are the keys whose value the schema does not accept.
    """
    explanations = _Explanations(tree, locate, invalid)
    _mapping(explanations, tree, (Recipe,), (), ())
    return explanations.answers


def _mapping(explanations: _Explanations, tree: Any, models: Models, key: Key, present_key: Key) -> None:
    """Answer the keys of one section; `present_key` is the section under its present name."""
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            _mapping(explanations, item, models, (*key, i), (*present_key, i))
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if not isinstance(name, str):
            continue
        path = (*key, name)
        if present_key == ("stages",):
            _mapping(explanations, value, stage_models(name, value), path, (*present_key, name))
        elif has_key(models, name):
            _known(explanations, value, models, path, (*present_key, name))
        elif (new := new_name(models, name)) is not None:
            _renamed(explanations, value, models, path, (*present_key, new))
        else:
            _unknown(explanations, value, models, path)


def _inside(explanations: _Explanations, value: Any, models: Models, key: Key, present_key: Key) -> None:
    """Answer the keys inside the value of a key of the schema, if it is a section."""
    name = str(present_key[-1])
    if present_key == ("stages",):
        _mapping(explanations, value, (), key, present_key)
    elif holds_named_sections(models, name):
        for own_name, section in value.items() if isinstance(value, dict) else ():
            _mapping(explanations, section, models_at(models, name, value), (*key, own_name), (*present_key, own_name))
    elif inner := models_at(models, name, value):
        _mapping(explanations, value, inner, key, present_key)


def _known(explanations: _Explanations, value: Any, models: Models, key: Key, present_key: Key) -> None:
    _inside(explanations, value, models, key, present_key)
    name = str(present_key[-1])
    new = new_value(models, name, value)
    if new is not value:
        explanations.add(key, f"'{shown_key(key, value)}'", f" is now '{shown_key(present_key, new)}'", (present_key,))
    elif key in explanations.invalid and not isinstance(value, dict):
        _value(explanations, value, key)


def _value(explanations: _Explanations, value: Any, key: Key) -> None:
    """Answer a value of another trainer under fledge's own key, or a value in place of a section."""
    path = ".".join(map(str, key[2:] if key[:1] == ("stages",) else key))
    rule = VALUES.get(path) or (None if isinstance(value, list) else SECTION_WORDS.get(path))
    if rule is None:
        return
    context = context_at(explanations.tree, key)
    answer = loadable_answer(rule(value, context), context.kind)
    if answer.settings and dict(answer.settings).get(path, ...) != value:
        _add_answer(explanations, key, value, answer)


def _renamed(explanations: _Explanations, value: Any, models: Models, key: Key, present_key: Key) -> None:
    name = str(present_key[-1])
    new = new_value(models, name, value)
    rule = VALUES.get(".".join(map(str, present_key[2:] if present_key[:1] == ("stages",) else present_key)))
    if new is value:
        text = f" is now '{'.'.join(map(str, present_key))}'"
        if rule is not None and (answer := rule(value, Context())).settings:
            text += f": write {name}: {answer.settings[0][1]}" + (f", {answer.note}" if answer.note else "")
        explanations.add(key, f"'{'.'.join(map(str, key))}'", text, (present_key,))
    else:
        explanations.add(key, f"'{shown_key(key, value)}'", f" is now '{shown_key(present_key, new)}'", (present_key,))
    _inside(explanations, value, models, key, present_key)


def _unknown(explanations: _Explanations, value: Any, models: Models, key: Key) -> None:
    name = table_name(key)
    if difflib.get_close_matches(str(key[-1]), fields_of(models), 1, cutoff=0.9) and name not in SYNONYMS:
        return  # a spelling mistake: pydantic's error suggests the key
    if isinstance(value, dict) and not is_answered_as_one(name):
        _section(explanations, value, key)
        return
    context = context_at(explanations.tree, key)
    answer = answer_for(name, value, context)
    if answer is not None:
        _add_answer(explanations, key, value, answer)
    elif (nearest := difflib.get_close_matches(name, SYNONYMS, 1, cutoff=0.88)) and not has_key(models, nearest[0]):
        suggested = answer_for(nearest[0], value, context) or Answer()
        _add_answer(explanations, key, value, suggested, f"did you mean '{nearest[0]}'? Then {{}}")


def _section(explanations: _Explanations, value: dict[str, Any], key: Key) -> None:
    """Answer a section that is not in the schema, or is in the wrong section."""
    schema_path = paths_by_name().get(plain_name(key[-1]))
    if schema_path is not None and _location_suffix(schema_path, explanations.tree, key):
        explanations.add(
            key,
            f"'{'.'.join(map(str, key))}'",
            f" belongs {_section_phrase(schema_path, explanations.tree, key)}, as '{schema_path}'",
        )
        return
    inner = _Explanations(explanations.tree, explanations.locate, explanations.invalid)
    _mapping(inner, value, (), key, key)
    if not inner.answers:
        return
    answered = {item.key[: len(key) + 1] for item in inner.answers}
    for name in value:
        if isinstance(name, str) and (*key, name) not in answered:
            inner.add((*key, name), shown_key((*key, name), value[name]), " → unknown key")
    explanations.answers += inner.answers
    explanations.add(key, "", "")


def _add_answer(explanations: _Explanations, key: Key, value: Any, answer: Answer, form: str = "{}") -> None:
    stage = stage_name_at(explanations.tree, key) or "STAGE"
    flags_of = stage if explanations.locate(key).startswith("--") else None
    text = answer_text(answer, lambda path: _location_suffix(path, explanations.tree, key), flags_of)
    provides = tuple(
        ("stages", stage, *path.split(".")) if is_stage_path(path) else tuple(path.split(".")) for path, _ in answer.settings
    )
    explanations.add(key, shown_key(key, value), f" → {form.format(text)}", provides)


def _location_suffix(path: str, tree: Mapping[str, Any], key: Key) -> str:
    """The section in which to write a path, in words; empty if it is the section of the key."""
    if not is_stage_path(path):
        return "" if len(key) == 1 else " at the top level"
    if key[:1] == ("stages",):
        return "" if len(key) == 3 else f" in stages.{key[1]}"
    return f" {_section_phrase(path, tree, key)}"


def _section_phrase(path: str, tree: Mapping[str, Any], key: Key) -> str:
    """The section of a path in words: at the top level, or in a stage."""
    stage = stage_name_at(tree, key)
    if not is_stage_path(path):
        return "at the top level"
    return f"in stages.{stage}" if stage else "in the stage that it is for"


def stage_name_at(tree: Mapping[str, Any], key: Key) -> str | None:
    """The name of the stage of a key: its own stage, or the only stage of the recipe; None if there are several."""
    if key[:1] == ("stages",) and len(key) > 1:
        return str(key[1])
    stages = tree.get("stages")
    return str(next(iter(stages))) if isinstance(stages, dict) and len(stages) == 1 else None


def context_at(tree: Mapping[str, Any], key: Key) -> Context:
    """The context of a key in a recipe with stages."""
    stages, name = tree.get("stages"), stage_name_at(tree, key)
    stage = stages.get(name, {}) if isinstance(stages, dict) and name is not None else {}
    stage = stage if isinstance(stage, dict) else {}
    model = tree.get("model")
    model_section = model if isinstance(model, dict) else {}
    from_scratch = model_section.get("path") is None and stage.get("init_from") is None
    positions = model_section.get("max_position_embeddings", DEFAULT_MAX_POSITIONS)
    siblings = {**flattened({name: value for name, value in tree.items() if name != "stages"}), **flattened(stage)}
    return Context(
        siblings,
        kind_of(name, stage) if name is not None else None,
        "init_from" if key[:1] == ("stages",) else "model.path",
        positions if from_scratch and isinstance(positions, int) else None,
        model_section,
    )
