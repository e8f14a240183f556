"""Translation of a configuration of another trainer: an answer to each key, and a recipe with the converted keys."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fledge.recipe.foreign.adapters import ADAPTERS, LORA_BY_DEFAULT, is_off
from fledge.recipe.foreign.answer import Answer, Context
from fledge.recipe.foreign.dialects import COSINE_BY_DEFAULT, detect_trainer
from fledge.recipe.foreign.explain import DEFAULT_MAX_POSITIONS, Locate
from fledge.recipe.foreign.learning import OPTIMIZER
from fledge.recipe.foreign.methods import HIGH_BETA, LOSSES_OF_MEANS
from fledge.recipe.foreign.recipe_text import recipe_text
from fledge.recipe.foreign.renamed import new_name
from fledge.recipe.foreign.sizes import HEADS, LAYERS, PATHS, WIDTH
from fledge.recipe.foreign.stage_kinds import DEFAULT_KIND, STAGE_KINDS, guessed_kind, kind_of_section
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

MAPPINGS = {"columns", "turns", "roles", "headers"}  # keys of fledge whose value is a mapping and not a section
EXAMPLE_MODEL = "models/base"  # where a configuration names no model
LoadError = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Leaf:
    """One key of the configuration with its value and answer.

    `scope` is the section that describes the stage of the key; it is empty for keys of all stages.
    """

    key: Key
    value: Any
    scope: Key
    answer: Answer | None = None
    foreign: bool = False  # whether a recipe has no such key at this position

    @property
    def name(self) -> str:
        """The name of the key in the tables of answers."""
        return table_name(self.key)


@dataclass(frozen=True)
class StagePlan:
    """The stages of a configuration: the kind and the context of each section that describes a stage.

    The empty section stands for the whole configuration.
    """

    kinds: dict[Key, str]
    contexts: dict[Key, Context]
    trainer: str


def translate(tree: Mapping[str, Any], locate: Locate, load_error: LoadError, problems: Sequence[str] = ()) -> str | None:
    """The message for a configuration without stages; None if it has no key of another trainer.

    `locate` gives the file and line of a key. `load_error` gives the reason why a recipe does not load, or None if it loads.
    `problems` are listed before the answers.
    """
    leaves = list(_leaves(tree, (), ()))
    plan = _plan(leaves)
    leaves = [_with_answer(leaf, plan) for leaf in leaves]
    misplaced = [leaf for leaf in leaves if leaf.foreign and leaf.answer]
    if not misplaced:
        return None
    leaves = _without_contradictions(leaves)
    recipe, rejected = _convert(leaves, plan, load_error)
    lines = [*problems, *answer_lines([_answered_key(leaf, rejected.get(leaf.key), locate) for leaf in leaves])]
    own = all(_recipe_path(leaf.key) == ".".join(map(str, leaf.key)) for leaf in misplaced)
    what = "this recipe has no stages" if own else f"this looks like a configuration of {plan.trainer}, not a recipe of fledge"
    return "\n".join(
        [
            f"{what}. Here is each of its keys as a key of fledge:",
            *(f"  {i}. {line}" for i, line in enumerate(lines, 1)),
            "",
            "As a recipe of fledge, ready to copy; all other keys keep fledge's defaults:",
            "",
            recipe_text(recipe, _comments(recipe, plan)),
        ]
    )


def _leaves(tree: Mapping[str, Any], key: Key, scope: Key) -> Iterator[Leaf]:
    """All keys that are not sections; a mapping that is answered as one value counts as a key."""
    for name, value in tree.items():
        path = (*key, str(name))
        if name == "data" and isinstance(value, dict) and {"registry", "hub"} & set(value):
            value = as_training_source(value)
        is_section = not is_answered_as_one(str(name)) and name not in MAPPINGS
        if isinstance(value, dict) and value and is_section:
            is_stage = not scope and not has_key((Recipe, *STAGES), str(name)) and kind_of_section(str(name), tree) is not None
            yield from _leaves(value, path, path if is_stage else scope)
        else:
            yield Leaf(path, value, scope)


def _key_in_scope(leaf: Leaf) -> Key:
    """The key relative to the section of its stage."""
    return leaf.key[len(leaf.scope) :]


def _recipe_path(key: Key) -> str | None:
    """The dotted path in a recipe of a key that fledge has, or had under an earlier name; None for other keys."""
    return _path_in((Recipe,), key) or _path_in(STAGES, key)


def _path_in(models: Models, key: Key) -> str | None:
    path = []
    for name in map(str, key):
        new = name if has_key(models, name) else new_name(models, name)
        if new is None or (not path and new == "stages"):
            return None
        path.append(new)
        models = models_at(models, new, {})
    return ".".join(path)


def _plan(leaves: list[Leaf]) -> StagePlan:
    """The stages of a configuration: one for each section that describes a stage, or one for all keys together."""
    scopes = list(dict.fromkeys(leaf.scope for leaf in leaves if leaf.scope))
    named = {scope: {leaf.name: leaf.value for leaf in reversed(leaves) if leaf.scope == scope} for scope in ((), *scopes)}
    common = named[()]
    trainer = detect_trainer([plain_name(leaf.key[-1]) for leaf in leaves])
    kinds = {scope: kind_of_section(str(scope[-1])) or DEFAULT_KIND for scope in scopes} or {(): guessed_kind(common)}
    first = next(iter(kinds))
    siblings = {scope: {**common, **named[scope]} for scope in kinds}
    max_positions = _max_positions(siblings[first], kinds[first])
    contexts = {
        scope: Context(siblings[scope], kind, "model.path" if scope == first else "", max_positions)
        for scope, kind in kinds.items()
    }
    contexts.setdefault((), Context(common, None, "model.path", max_positions))
    return StagePlan(kinds, contexts, trainer)


def _max_positions(keys: Mapping[str, Any], kind: str) -> int | None:
    """The longest sequence of a model that is made from sizes; None for a model that is read from a directory."""
    context = Context(keys)
    from_scratch = STAGE_KINDS[kind].from_scratch or context.has((*WIDTH, *LAYERS, *HEADS))
    if context.has((*PATHS, "model")) or not from_scratch:
        return None
    return context.integer(("max_position_embeddings",)) or DEFAULT_MAX_POSITIONS


def _with_answer(leaf: Leaf, plan: StagePlan) -> Leaf:
    """The leaf with its answer, from the tables of other trainers or from the schema of fledge."""
    context = plan.contexts[leaf.scope]
    key = _key_in_scope(leaf)
    path = _recipe_path(key)
    is_in_place = not leaf.scope and _path_in((Recipe,), key) is not None
    if len(key) == 1 and leaf.name in SECTION_WORDS and not isinstance(leaf.value, dict | list):
        answer = loadable_answer(SECTION_WORDS[leaf.name](leaf.value, context), context.kind)
        return replace(leaf, answer=answer, foreign=True)
    if path is not None and leaf.name not in SYNONYMS:
        answer = loadable_answer(Answer(((path, leaf.value),)), context.kind)
        if leaf.value is None and not answer.settings:
            answer = EMPTY_VALUE
        return replace(leaf, answer=answer, foreign=path == ".".join(map(str, key)) and not is_in_place)
    return replace(leaf, answer=answer_for(leaf.name, leaf.value, context), foreign=not is_in_place)


def _without_contradictions(leaves: list[Leaf]) -> list[Leaf]:
    """The leaves; if two keys of a stage set one path to different values, the answer to the second one refers to the first."""
    owners: dict[tuple[Key, str], tuple[Leaf, Any]] = {}
    consistent = []
    for leaf in leaves:
        for path, value in leaf.answer.settings if leaf.answer else ():
            owner, owner_value = owners.setdefault((leaf.scope, path), (leaf, value))
            if owner_value != value and owner.key != leaf.key:
                leaf = replace(leaf, answer=Answer(note=f"leave it out; '{owner.name}' already sets {path}"))
                break
        consistent.append(leaf)
    return consistent


def _convert(leaves: list[Leaf], plan: StagePlan, load_error: LoadError) -> tuple[dict[str, Any], dict[Key, str]]:
    """A recipe that loads, with every answer that is compatible with the others; and the reasons against the other answers."""
    pending = [leaf for leaf in leaves if leaf.answer and leaf.answer.settings]
    recipe = _recipe(pending, plan)
    if load_error(recipe) is None:
        return recipe, {}
    accepted: list[Leaf] = []
    while pending:
        rejected = []
        for leaf in pending:
            (accepted if load_error(_recipe([*accepted, leaf], plan)) is None else rejected).append(leaf)
        if len(rejected) == len(pending):
            break
        pending = rejected
    reasons = {leaf.key: load_error(_recipe([*accepted, leaf], plan)) or "" for leaf in pending}
    return _recipe(accepted, plan), reasons


def _recipe(leaves: list[Leaf], plan: StagePlan) -> dict[str, Any]:
    """The recipe of some answers, completed with the keys that every recipe needs."""
    pairs = [
        (leaf.scope, path, value) for leaf in leaves if leaf.answer for path, value in leaf.answer.settings if path != "kind"
    ]
    top = nested([(path, value) for _, path, value in pairs if not is_stage_path(path)])
    stages: dict[str, Any] = {}
    for scope, kind in plan.kinds.items():
        own = [(path, value) for owner, path, value in pairs if is_stage_path(path) and owner == scope]
        common = [(path, value) for owner, path, value in pairs if is_stage_path(path) and not owner and scope]
        stage = _completed(nested([*own, *common]), kind, plan, scope)
        name = STAGE_KINDS[kind].stage_name
        number = sum(other.rstrip("0123456789") == name for other in stages) + 1
        stages[name if number == 1 else f"{name}{number}"] = stage if number == 1 else {"kind": kind, **stage}
    model = top.get("model", {})
    first = next(iter(plan.kinds))
    begins = next(iter(stages.values()))
    fine_tunes = not STAGE_KINDS[plan.kinds[first]].from_scratch and plan.contexts[first].max_positions is None
    adapts = "adapter" in begins and "init_from" not in begins  # also where the model that is named could not be read
    if isinstance(model, dict) and not model.get("path") and (fine_tunes or adapts):
        top["model"] = {**model, "path": EXAMPLE_MODEL}
    return {**top, "stages": stages}


def _completed(stage: dict[str, Any], kind: str, plan: StagePlan, scope: Key) -> dict[str, Any]:
    """The stage with a training file, and with the defaults of its trainer that differ from the defaults of fledge."""
    context = plan.contexts[scope]
    data = stage.get("data", {})
    if isinstance(data, dict) and not {"train", "path", "registry", "hub"} & set(data):
        stage["data"] = {"train": STAGE_KINDS[kind].example_file, **data}
    if context.max_positions is not None and context.max_positions < DEFAULT_MAX_POSITIONS:
        stage["data"] = {"max_seq_len": context.max_positions, **stage["data"]}
    for name, example in STAGE_KINDS[kind].required:
        stage.setdefault(name, example)
    default = STAGE_KINDS[kind].optimizer
    if default is not None and not context.has((*OPTIMIZER, "use_muon")):
        stage["optimizer"] = {"name": default, **stage.get("optimizer", {})}
    if plan.trainer in COSINE_BY_DEFAULT:
        stage["schedule"] = {"name": "cosine", **stage.get("schedule", {})}
    adapts = context.has((*PATHS, "model")) or not STAGE_KINDS[kind].from_scratch
    if plan.trainer in LORA_BY_DEFAULT and adapts and not context.has(ADAPTERS):
        stage["adapter"] = dict(LORA_BY_DEFAULT[plan.trainer])
    return stage


def _comments(recipe: Mapping[str, Any], plan: StagePlan) -> dict[tuple[str, ...], str]:
    """Comments behind the keys that need a decision before the recipe is run."""
    comments: dict[tuple[str, ...], str] = {}
    example_files = [kind.example_file for kind in STAGE_KINDS.values()]
    model = recipe.get("model", {}).get("path")
    if model == EXAMPLE_MODEL:
        comments["model",] = "the directory of the model to start from"
    examples = [item for kind in STAGE_KINDS.values() for item in kind.required]
    for (name, stage), context in zip(recipe["stages"].items(), plan.contexts.values(), strict=False):
        if "adapter" in stage and not context.has(ADAPTERS):
            comments["stages", name, "adapter"] = f"{plan.trainer} trains this unless it is told otherwise; null: all weights"
        if stage["data"].get("train") in example_files:
            comments["stages", name, "data"] = "your own files in place of this one"
        comments |= {("stages", name, key): "your own in place of this" for key, value in examples if stage.get(key) == value}
        if (
            "learning_rate" in stage.get("optimizer", {})
            and context.has(ADAPTERS)
            and not (is_off(context) or "adapter" in stage)
        ):
            comments["stages", name, "optimizer"] = "a learning rate for adapters; full training takes about a tenth of it"
        if stage.get("beta", 0) > HIGH_BETA and stage.get("loss_type") not in LOSSES_OF_MEANS:
            comments["stages", name, "beta"] = (
                "write 0.1 if this beta was chosen for the mean of log-probabilities: fledge sums them"
            )
    return comments


def _answered_key(leaf: Leaf, rejected: str | None, locate: Locate) -> AnsweredKey:
    """The leaf with its answer in words; `rejected` is the reason why the answer is not in the converted recipe."""
    written = shown_key(leaf.key, leaf.value)
    if leaf.answer is None:
        known = [*SYNONYMS, *paths_by_name()]
        near = [] if leaf.value is None else difflib.get_close_matches(leaf.name, known, 1, cutoff=0.75)
        return AnsweredKey(
            leaf.key, locate(leaf.key), written, " → unknown key" + (f"; did you mean '{near[0]}'?" if near else "")
        )
    if rejected is not None:
        return AnsweredKey(leaf.key, locate(leaf.key), written, f" → left out of the recipe below: {rejected}")
    own = _key_in_scope(leaf)
    unchanged = leaf.answer == Answer(((".".join(map(str, own)), leaf.value),))
    if unchanged and not leaf.scope and not leaf.foreign:
        return AnsweredKey(leaf.key, locate(leaf.key), written, " → the key is the same in fledge")
    return AnsweredKey(leaf.key, locate(leaf.key), written, f" → {answer_text(leaf.answer)}")
