"""A whole configuration of another trainer: an answer to each of its keys, and a recipe with all that could be converted."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fledge.recipe.foreign.answer import Answer, Context
from fledge.recipe.foreign.dialects import (
    COSINE_BY_DEFAULT,
    STAGE_KINDS,
    STAGE_NAMES,
    detect_trainer,
    guessed_kind,
    stage_of_section,
)
from fledge.recipe.foreign.explain import DEFAULT_MAX_POSITIONS, Locate
from fledge.recipe.foreign.learning import ADAPTERS, OPTIMIZER
from fledge.recipe.foreign.methods import HIGH_BETA
from fledge.recipe.foreign.recipe_text import recipe_text
from fledge.recipe.foreign.renamed import new_name
from fledge.recipe.foreign.sizes import HEADS, LAYERS, PATHS, WIDTH
from fledge.recipe.foreign.synonyms import (
    EMPTY_VALUE,
    SECTION_WORDS,
    SYNONYMS,
    answer_for,
    is_answered_as_one,
    loadable_answer,
    plain_name,
    table_name,
)
from fledge.recipe.foreign.wording import AnsweredKey, answer_lines, answer_text, shown_key
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import STAGES, Key, Models, has_key, is_stage_path, models_at, nested, paths_by_name
from fledge.recipe.sections.data import as_training_source

MAPPINGS = {"columns", "turns", "roles", "headers"}  # keys of fledge that hold a mapping and are no section
FILES = {"pretrain": "train.txt", "sft": "train.jsonl", "preference": "pairs.jsonl"}  # where no file is named
LoadError = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Leaf:
    """One key of the configuration, the section around it that names a stage (or none), and its answer."""

    key: Key
    value: Any
    scope: Key
    answer: Answer | None = None
    foreign: bool = False  # whether a recipe of fledge has no such key there

    @property
    def name(self) -> str:
        """What the tables call it."""
        return table_name(self.key)


@dataclass(frozen=True)
class StagePlan:
    """The stages of a configuration, by their sections, with their kinds; and what stands around the keys of each. The
    empty section is the whole."""

    kinds: dict[Key, str]
    contexts: dict[Key, Context]
    trainer: str


def translate(tree: Mapping[str, Any], place: Locate, refusal: LoadError, problems: Sequence[str] = ()) -> str | None:
    """What to say of a configuration without stages; None where it has no key of another trainer.

    `refusal` says why a recipe does not load, or None where it does; `problems` are told first.
    """
    leaves = list(_leaves(tree, (), ()))
    plan = _plan(leaves)
    leaves = [_with_answer(leaf, plan) for leaf in leaves]
    misplaced = [leaf for leaf in leaves if leaf.foreign and leaf.answer]
    if not misplaced:
        return None
    leaves = _without_contradictions(leaves)
    recipe, refused = _convert(leaves, plan, refusal)
    told = [*problems, *answer_lines([_answered_key(leaf, refused.get(leaf.key), place) for leaf in leaves])]
    own = all(_recipe_path(leaf.key) == ".".join(map(str, leaf.key)) for leaf in misplaced)
    what = "this recipe has no stages" if own else f"this looks like a configuration of {plan.trainer}, not a recipe of fledge"
    return "\n".join(
        [
            f"{what}. Here is each of its keys in fledge's words:",
            *(f"  {i}. {line}" for i, line in enumerate(told, 1)),
            "",
            "The same as a recipe of fledge, ready to copy; all other keys keep fledge's defaults:",
            "",
            recipe_text(recipe, _comments(recipe, plan)),
        ]
    )


def _leaves(tree: Mapping[str, Any], key: Key, scope: Key) -> Iterator[Leaf]:
    """The keys of all sections, but for mappings that are answered as one."""
    for name, value in tree.items():
        here = (*key, str(name))
        if name == "data" and isinstance(value, dict) and {"registry", "hub"} & set(value):
            value = as_training_source(value)
        whole = is_answered_as_one(str(name)) or name in MAPPINGS
        if isinstance(value, dict) and value and not whole:
            named = stage_of_section(str(name)) if not scope and not has_key((Recipe, *STAGES), str(name)) else None
            yield from _leaves(value, here, scope or (() if named is None else here))
        else:
            yield Leaf(here, value, scope)


def _key_in_scope(leaf: Leaf) -> Key:
    """A key within the section of its stage."""
    return leaf.key[len(leaf.scope) :]


def _recipe_path(key: Key) -> str | None:
    """The path in a recipe of a key that fledge has, or had under another name."""
    return _path_in((Recipe,), key) or _path_in(STAGES, key)


def _path_in(models: Models, key: Key) -> str | None:
    path = []
    for part in key:
        name = str(part)
        new = name if has_key(models, name) else new_name(models, name)
        if new is None or (not path and new == "stages"):
            return None
        path.append(new)
        models = models_at(models, new, {})
    return ".".join(path)


def _plan(leaves: list[Leaf]) -> StagePlan:
    """Which stages there are, from the sections that name one, or from all keys together."""
    scopes = list(dict.fromkeys(leaf.scope for leaf in leaves if leaf.scope))
    named = {scope: {leaf.name: leaf.value for leaf in reversed(leaves) if leaf.scope == scope} for scope in ((), *scopes)}
    common = named[()]
    trainer = detect_trainer([plain_name(leaf.key[-1]) for leaf in leaves])
    names = {scope: stage_of_section(str(scope[-1])) or "sft" for scope in scopes}
    kinds = {scope: STAGE_KINDS[names[scope]] for scope in scopes} or {(): guessed_kind(common)}
    first = next(iter(kinds))
    beside = {scope: {**common, **named[scope]} for scope in kinds}
    context = {
        scope: Context(beside[scope], kind, "model.path" if scope == first else "", _positions(beside[first], kinds[first]))
        for scope, kind in kinds.items()
    }
    context.setdefault((), Context(common, None, "model.path", _positions(beside[first], kinds[first])))
    return StagePlan(kinds, context, trainer)


def _positions(beside: Mapping[str, Any], kind: str) -> int | None:
    """The longest sequence of a model that is made for this run; None where it comes from a directory."""
    context = Context(beside)
    if context.has((*PATHS[:-1], "model")) or (kind != "pretrain" and not context.has((*WIDTH, *LAYERS, *HEADS))):
        return None
    return context.integer(("max_position_embeddings",)) or DEFAULT_MAX_POSITIONS


def _with_answer(leaf: Leaf, plan: StagePlan) -> Leaf:
    """The leaf with its answer: that of the tables, or that of its place in a recipe."""
    context = plan.contexts[leaf.scope]
    key = _key_in_scope(leaf)
    path = _recipe_path(key)
    right = not leaf.scope and _path_in((Recipe,), key) is not None
    if len(key) == 1 and leaf.name in SECTION_WORDS and not isinstance(leaf.value, dict | list):
        answer = loadable_answer(SECTION_WORDS[leaf.name](leaf.value, context), context.kind)
        return replace(leaf, answer=answer, foreign=True)
    if path is not None and leaf.name not in SYNONYMS:
        answer = loadable_answer(Answer(((path, leaf.value),)), context.kind)
        if leaf.value is None and not answer.settings:
            answer = EMPTY_VALUE
        return replace(leaf, answer=answer, foreign=path == ".".join(map(str, key)) and not right)
    return replace(leaf, answer=answer_for(leaf.name, leaf.value, context), foreign=not right)


def _without_contradictions(leaves: list[Leaf]) -> list[Leaf]:
    """Where two keys of a stage give one path different values, the first one holds, and the second one says so."""
    held: dict[tuple[Key, str], tuple[Leaf, Any]] = {}
    kept = []
    for leaf in leaves:
        writes = leaf.answer.settings if leaf.answer else ()
        for path, value in writes:
            first, given = held.setdefault((leaf.scope, path), (leaf, value))
            if given != value and first.key != leaf.key:
                leaf = replace(leaf, answer=Answer(note=f"leave it out; '{first.name}' says {path} already"))
                break
        kept.append(leaf)
    return kept


def _convert(leaves: list[Leaf], plan: StagePlan, refusal: LoadError) -> tuple[dict[str, Any], dict[Key, str]]:
    """A recipe that loads, with all answers in it that go together; and why others are not in it."""
    giving = [leaf for leaf in leaves if leaf.answer and leaf.answer.settings]
    recipe = _recipe(giving, plan)
    if refusal(recipe) is None:
        return recipe, {}
    taken: list[Leaf] = []
    left = giving
    while left:
        rest = []
        for leaf in left:
            (taken if refusal(_recipe([*taken, leaf], plan)) is None else rest).append(leaf)
        if len(rest) == len(left):
            break
        left = rest
    reasons = {leaf.key: refusal(_recipe([*taken, leaf], plan)) or "" for leaf in left if leaf not in taken}
    return _recipe(taken, plan), reasons


def _recipe(leaves: list[Leaf], plan: StagePlan) -> dict[str, Any]:
    """The recipe of some answers, completed with what every recipe needs."""
    pairs = [
        (leaf.scope, path, value) for leaf in leaves if leaf.answer for path, value in leaf.answer.settings if path != "kind"
    ]
    top = nested([(path, value) for _, path, value in pairs if not is_stage_path(path)])
    stages: dict[str, Any] = {}
    for scope, kind in plan.kinds.items():
        own = [(path, value) for owner, path, value in pairs if is_stage_path(path) and owner == scope]
        common = [(path, value) for owner, path, value in pairs if is_stage_path(path) and not owner and scope]
        stage = _completed(nested([*own, *common]), kind, plan, scope)
        name = STAGE_NAMES[kind]
        number = sum(other.rstrip("0123456789") == name for other in stages) + 1
        stages[name if number == 1 else f"{name}{number}"] = stage if number == 1 else {"kind": kind, **stage}
    model = top.get("model", {})
    first = next(iter(plan.kinds))
    if (
        isinstance(model, dict)
        and not model.get("path")
        and plan.kinds[first] != "pretrain"
        and plan.contexts[first].max_positions is None
    ):
        top["model"] = {**model, "path": "models/base"}
    return {**top, "stages": stages}


def _completed(stage: dict[str, Any], kind: str, plan: StagePlan, scope: Key) -> dict[str, Any]:
    """A stage with a file to train on, and with what its trainer does where nothing is written."""
    context = plan.contexts[scope]
    data = stage.get("data", {})
    if isinstance(data, dict) and not {"train", "path", "registry", "hub"} & set(data):
        stage["data"] = {"train": FILES[kind], **data}
    if context.max_positions is not None and context.max_positions < DEFAULT_MAX_POSITIONS:
        stage["data"] = {"max_seq_len": context.max_positions, **stage["data"]}
    if kind == "pretrain" and not context.has(OPTIMIZER) and not context.has(("use_muon",)):
        stage["optimizer"] = {"name": "adamw", **stage.get("optimizer", {})}
    if plan.trainer in COSINE_BY_DEFAULT:
        stage["schedule"] = {"name": "cosine", **stage.get("schedule", {})}
    return stage


def _comments(recipe: Mapping[str, Any], plan: StagePlan) -> dict[tuple[str, ...], str]:
    """What has to be looked at before the recipe is run."""
    found: dict[tuple[str, ...], str] = {}
    model = recipe.get("model", {}).get("path")
    if model == "models/base":
        found["model",] = "the directory of the model to start from"
    for (name, stage), context in zip(recipe["stages"].items(), plan.contexts.values(), strict=False):
        if stage["data"].get("train") in FILES.values():
            found["stages", name, "data"] = "your own files in place of this one"
        if "learning_rate" in stage.get("optimizer", {}) and context.has(ADAPTERS):
            found["stages", name, "optimizer"] = "a learning rate for adapters; full training takes about a tenth of it"
        if stage.get("beta", 0) > HIGH_BETA:
            found["stages", name, "beta"] = "write 0.1 if this one was made for the mean of log-probabilities: fledge sums them"
    return found


def _answered_key(leaf: Leaf, refused: str | None, place: Locate) -> AnsweredKey:
    was = shown_key(leaf.key, leaf.value)
    if leaf.answer is None:
        known = [*SYNONYMS, *paths_by_name()]
        near = [] if leaf.value is None else difflib.get_close_matches(leaf.name, known, 1, cutoff=0.75)
        return AnsweredKey(
            leaf.key, place(leaf.key), was, " → not known here" + (f"; did you mean '{near[0]}'?" if near else "")
        )
    if refused is not None:
        return AnsweredKey(leaf.key, place(leaf.key), was, f" → left out of the recipe below: {refused}")
    own = _key_in_scope(leaf)
    same = leaf.answer == Answer(((".".join(map(str, own)), leaf.value),))
    if same and not leaf.scope and not leaf.foreign:
        return AnsweredKey(leaf.key, place(leaf.key), was, " → the same here")
    return AnsweredKey(leaf.key, place(leaf.key), was, f" → {answer_text(leaf.answer)}")
