"""A recipe with keys that fledge does not have, or has no more: each is answered, with its place."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fledge.recipe.foreign.answer import Answer, Around
from fledge.recipe.foreign.renamed import new_name, new_value
from fledge.recipe.foreign.synonyms import (
    SECTION_WORDS,
    SYNONYMS,
    VALUES,
    answer_of,
    called,
    checked,
    flat,
    is_whole,
    plain_name,
)
from fledge.recipe.foreign.wording import Told, sentence, shown
from fledge.recipe.schema import Recipe
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

Place = Callable[[Key], str]
POSITIONS = 512  # model.max_position_embeddings, where nothing is written


@dataclass
class _Walk:
    """What is told so far of a recipe."""

    tree: Mapping[str, Any]
    place: Place
    wrong: Collection[Key]  # keys with a value that the schema refuses
    told: list[Told] = field(default_factory=list)

    def tell(self, key: Key, was: str, text: str, gives: tuple[Key, ...] = ()) -> None:
        self.told.append(Told(key, self.place(key), was, text, gives))


def explain(tree: Mapping[str, Any], place: Place, wrong: Collection[Key]) -> list[Told]:
    """An answer to every key of a recipe that was renamed, or that another trainer has, and to each value of them."""
    walk = _Walk(tree, place, wrong)
    _mapping(walk, tree, (Recipe,), (), ())
    return walk.told


def _mapping(walk: _Walk, tree: Any, models: Models, key: Key, now: Key) -> None:
    """The keys of one section; `now` is what the section is called today."""
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            _mapping(walk, item, models, (*key, i), (*now, i))
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if not isinstance(name, str):
            continue
        here = (*key, name)
        if now == ("stages",):
            _mapping(walk, value, stage_models(name, value), here, (*now, name))
        elif has_key(models, name):
            _known(walk, value, models, here, (*now, name))
        elif (new := new_name(models, name)) is not None:
            _renamed(walk, value, models, here, (*now, new))
        else:
            _unknown(walk, value, models, here)


def _inside(walk: _Walk, value: Any, models: Models, key: Key, now: Key) -> None:
    """What a key of the schema holds, if it is a section; stages are one by one."""
    name = str(now[-1])
    if now == ("stages",):
        _mapping(walk, value, (), key, now)
    elif inner := models_at(models, name, value):
        _mapping(walk, value, inner, key, now)


def _known(walk: _Walk, value: Any, models: Models, key: Key, now: Key) -> None:
    _inside(walk, value, models, key, now)
    name = str(now[-1])
    new = new_value(models, name, value)
    if new is not value:
        walk.tell(key, f"'{shown(key, value)}'", f" is now '{shown(now, new)}'", (now,))
    elif key in walk.wrong and not isinstance(value, dict | list):
        _value(walk, value, key)


def _value(walk: _Walk, value: Any, key: Key) -> None:
    """A value of fledge's own key that is a word of another trainer, or stands where a section is."""
    path = ".".join(str(part) for part in (key[2:] if key[:1] == ("stages",) else key))
    rule = VALUES.get(path) or SECTION_WORDS.get(path)
    if rule is None:
        return
    around = around_of(walk.tree, key)
    answer = checked(rule(value, around), around.kind)
    if answer.writes and dict(answer.writes).get(path, ...) != value:
        _tell(walk, key, value, answer)


def _renamed(walk: _Walk, value: Any, models: Models, key: Key, now: Key) -> None:
    name = str(now[-1])
    new = new_value(models, name, value)
    if new is value:
        walk.tell(key, f"'{'.'.join(map(str, key))}'", f" is now '{'.'.join(map(str, now))}'", (now,))
    else:
        walk.tell(key, f"'{shown(key, value)}'", f" is now '{shown(now, new)}'", (now,))
    _inside(walk, value, models, key, now)


def _unknown(walk: _Walk, value: Any, models: Models, key: Key) -> None:
    name = called(key)
    if difflib.get_close_matches(str(key[-1]), fields_of(models), 1, cutoff=0.9) and name not in SYNONYMS:
        return  # a slip of the pen
    if isinstance(value, dict) and not is_whole(name):
        _section(walk, value, key)
        return
    around = around_of(walk.tree, key)
    answer = answer_of(name, value, around)
    if answer is not None:
        _tell(walk, key, value, answer)
    elif (near := difflib.get_close_matches(name, SYNONYMS, 1, cutoff=0.88)) and not has_key(models, near[0]):
        meant = answer_of(near[0], value, around) or Answer()
        _tell(walk, key, value, meant, f"did you mean '{near[0]}'? Then {{}}")


def _section(walk: _Walk, value: dict[str, Any], key: Key) -> None:
    """A section that is not one of fledge's, or is one at another place."""
    home = paths_by_name().get(plain_name(key[-1]))
    if home is not None and _where(home, walk.tree, key):
        walk.tell(key, f"'{'.'.join(map(str, key))}'", f" belongs {_place_of(home, walk.tree, key)}, as '{home}'")
        return
    inner = _Walk(walk.tree, walk.place, walk.wrong)
    _mapping(inner, value, (), key, key)
    if not inner.told:
        return
    answered = {item.key[: len(key) + 1] for item in inner.told}
    for name in value:
        if isinstance(name, str) and (*key, name) not in answered:
            inner.tell((*key, name), shown((*key, name), value[name]), " → not known here")
    walk.told += inner.told
    walk.tell(key, "", "")


def _tell(walk: _Walk, key: Key, value: Any, answer: Answer, form: str = "{}") -> None:
    stage = stage_of(walk.tree, key) or "STAGE"
    flags_of = stage if walk.place(key).startswith("--") else None
    text = sentence(answer, lambda path: _where(path, walk.tree, key), flags_of)
    gives = tuple(
        ("stages", stage, *path.split(".")) if is_stage_path(path) else tuple(path.split(".")) for path, _ in answer.writes
    )
    walk.tell(key, shown(key, value), f" → {form.format(text)}", gives)


def _where(path: str, tree: Mapping[str, Any], key: Key) -> str:
    """Where to write a path, if that is not just beside the key."""
    if not is_stage_path(path):
        return "" if len(key) == 1 else " at the top level"
    if key[:1] == ("stages",):
        return "" if len(key) == 3 else f" in stages.{key[1]}"
    return f" {_place_of(path, tree, key)}"


def _place_of(path: str, tree: Mapping[str, Any], key: Key) -> str:
    """Where a path stands, in words: at the top level, or in a stage."""
    stage = stage_of(tree, key)
    if not is_stage_path(path):
        return "at the top level"
    return f"in stages.{stage}" if stage else "in the stage that it is meant for"


def stage_of(tree: Mapping[str, Any], key: Key) -> str | None:
    """The stage that a key is about: its own, or the only one."""
    if key[:1] == ("stages",) and len(key) > 1:
        return str(key[1])
    stages = tree.get("stages")
    return str(next(iter(stages))) if isinstance(stages, dict) and len(stages) == 1 else None


def around_of(tree: Mapping[str, Any], key: Key) -> Around:
    """What stands around a key of a recipe with stages."""
    stages, name = tree.get("stages"), stage_of(tree, key)
    stage = stages.get(name, {}) if isinstance(stages, dict) and name is not None else {}
    stage = stage if isinstance(stage, dict) else {}
    model = tree.get("model")
    sizes = model if isinstance(model, dict) else {}
    made = sizes.get("path") is None and stage.get("init_from") is None
    positions = sizes.get("max_position_embeddings", POSITIONS)
    beside = {**flat({part: value for part, value in tree.items() if part != "stages"}), **flat(stage)}
    return Around(
        beside,
        kind_of(name, stage) if name is not None else None,
        "init_from" if key[:1] == ("stages",) else "model.path",
        positions if made and isinstance(positions, int) else None,
        sizes,
    )
