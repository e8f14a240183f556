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
    walk = _Explanations(tree, locate, invalid)
    _mapping(walk, tree, (Recipe,), (), ())
    return walk.answers


def _mapping(walk: _Explanations, tree: Any, models: Models, key: Key, now: Key) -> None:
    """Answer the keys of one section; `now` is the present path of the section."""
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            _mapping(walk, item, models, (*key, i), (*now, i))
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if not isinstance(name, str):
            continue
        path = (*key, name)
        if now == ("stages",):
            _mapping(walk, value, stage_models(name, value), path, (*now, name))
        elif has_key(models, name):
            _known(walk, value, models, path, (*now, name))
        elif (new := new_name(models, name)) is not None:
            _renamed(walk, value, models, path, (*now, new))
        else:
            _unknown(walk, value, models, path)


def _inside(walk: _Explanations, value: Any, models: Models, key: Key, now: Key) -> None:
    """Answer the keys inside the value of a key of the schema, if it is a section."""
    name = str(now[-1])
    if now == ("stages",):
        _mapping(walk, value, (), key, now)
    elif inner := models_at(models, name, value):
        _mapping(walk, value, inner, key, now)


def _known(walk: _Explanations, value: Any, models: Models, key: Key, now: Key) -> None:
    _inside(walk, value, models, key, now)
    name = str(now[-1])
    new = new_value(models, name, value)
    if new is not value:
        walk.add(key, f"'{shown_key(key, value)}'", f" is now '{shown_key(now, new)}'", (now,))
    elif key in walk.invalid and not isinstance(value, dict):
        _value(walk, value, key)


def _value(walk: _Explanations, value: Any, key: Key) -> None:
    """Answer a value of another trainer under fledge's own key, or a value in place of a section."""
    path = ".".join(map(str, key[2:] if key[:1] == ("stages",) else key))
    rule = VALUES.get(path) or (None if isinstance(value, list) else SECTION_WORDS.get(path))
    if rule is None:
        return
    context = context_at(walk.tree, key)
    answer = loadable_answer(rule(value, context), context.kind)
    if answer.settings and dict(answer.settings).get(path, ...) != value:
        _add_answer(walk, key, value, answer)


def _renamed(walk: _Explanations, value: Any, models: Models, key: Key, now: Key) -> None:
    name = str(now[-1])
    new = new_value(models, name, value)
    if new is value:
        walk.add(key, f"'{'.'.join(map(str, key))}'", f" is now '{'.'.join(map(str, now))}'", (now,))
    else:
        walk.add(key, f"'{shown_key(key, value)}'", f" is now '{shown_key(now, new)}'", (now,))
    _inside(walk, value, models, key, now)


def _unknown(walk: _Explanations, value: Any, models: Models, key: Key) -> None:
    name = table_name(key)
    if difflib.get_close_matches(str(key[-1]), fields_of(models), 1, cutoff=0.9) and name not in SYNONYMS:
        return  # a spelling mistake: pydantic's error suggests the key
    if isinstance(value, dict) and not is_answered_as_one(name):
        _section(walk, value, key)
        return
    context = context_at(walk.tree, key)
    answer = answer_for(name, value, context)
    if answer is not None:
        _add_answer(walk, key, value, answer)
    elif (near := difflib.get_close_matches(name, SYNONYMS, 1, cutoff=0.88)) and not has_key(models, near[0]):
        meant = answer_for(near[0], value, context) or Answer()
        _add_answer(walk, key, value, meant, f"did you mean '{near[0]}'? Then {{}}")


def _section(walk: _Explanations, value: dict[str, Any], key: Key) -> None:
    """Answer a section that is not in the schema, or is in the wrong section."""
    home = paths_by_name().get(plain_name(key[-1]))
    if home is not None and _location_suffix(home, walk.tree, key):
        walk.add(key, f"'{'.'.join(map(str, key))}'", f" belongs {_section_phrase(home, walk.tree, key)}, as '{home}'")
        return
    inner = _Explanations(walk.tree, walk.locate, walk.invalid)
    _mapping(inner, value, (), key, key)
    if not inner.answers:
        return
    answered = {item.key[: len(key) + 1] for item in inner.answers}
    for name in value:
        if isinstance(name, str) and (*key, name) not in answered:
            inner.add((*key, name), shown_key((*key, name), value[name]), " → unknown key")
    walk.answers += inner.answers
    walk.add(key, "", "")


def _add_answer(walk: _Explanations, key: Key, value: Any, answer: Answer, form: str = "{}") -> None:
    stage = stage_name_at(walk.tree, key) or "STAGE"
    flags_of = stage if walk.locate(key).startswith("--") else None
    text = answer_text(answer, lambda path: _location_suffix(path, walk.tree, key), flags_of)
    provides = tuple(
        ("stages", stage, *path.split(".")) if is_stage_path(path) else tuple(path.split(".")) for path, _ in answer.settings
    )
    walk.add(key, shown_key(key, value), f" → {form.format(text)}", provides)


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
