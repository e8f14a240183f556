"""The words of `--given`: what people and trainers write for a setting that is no number, and what is meant."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fledge.diagnosis.causes.objectives import LOSSES
from fledge.diagnosis.rate_bands import OPTIMIZERS
from fledge.errors import FledgeError
from fledge.recipe.foreign.adapters import LORA, OFF
from fledge.recipe.foreign.answer import word
from fledge.recipe.foreign.learning import SCHEDULES
from fledge.recipe.foreign.stage_kinds import METHODS_BY_NAME, loss_types
from fledge.training_log.setting_names import SETTINGS

ANOTHER = "another"  # for what has no name here, and is not to be taken for the usual one
STARTS = {
    **dict.fromkeys(("fresh", "scratch", "from_scratch", "new", "random"), "fresh"),
    **dict.fromkeys(("trained", "pretrained", "base", "checkpoint", "resume", "finetune"), "trained"),
}
ADAPTERS = {
    **{name: "full" for name in OFF if name},
    **{name: "qlora" if name.startswith("q") else "lora" for name in LORA},
    "prefix": "prefix",
}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
FAMILIES = ("adam", *OPTIMIZERS)  # words in the names of optimizers
CONVERT = {one.field: one.convert for one in SETTINGS}


@dataclass(frozen=True)
class Words:
    """The words for one setting. `meaning`: a word as it is written → the value of the setting, None for an unknown one.
    `known`: the words that a person is told."""

    meaning: Callable[[str], str | None]
    known: tuple[str, ...]


def _table(meanings: Mapping[str, str]) -> Words:
    return Words(lambda text: meanings.get(word(text)), tuple(sorted(meanings)))


def _precision(text: str) -> str | None:
    return word(text) if word(text) in PRECISIONS else CONVERT["precision"](text)


def _optimizer(text: str) -> str | None:
    name = CONVERT["optimizer"](text)
    return name if name and any(family in name for family in FAMILIES) else None


def _schedule(text: str) -> str | None:
    return CONVERT["schedule"](text) if word(text).rpartition(".")[2] in (*SCHEDULES, ANOTHER) else None


WORDS = {
    "kind": _table({name: method.kind for name, method in METHODS_BY_NAME.items()}),
    "initial": _table(STARTS),
    "method": _table(ADAPTERS),
    "schedule": Words(_schedule, (*sorted(SCHEDULES), ANOTHER)),
    "precision": Words(_precision, PRECISIONS),
    "optimizer": Words(_optimizer, tuple(sorted({"adamw", *FAMILIES}))),
    "loss_type": _table({**{name: name for name in (*LOSSES, *loss_types(None), ANOTHER)}, "dpo": "sigmoid"}),
}
"""Field of TrainingSettings → its words."""


def word_meant(name: str, text: str) -> str:
    """The value of a setting that a word means. Raises FledgeError for a word that is not known."""
    meant = WORDS[name].meaning(text)
    if meant is None:
        known = ", ".join(WORDS[name].known)
        raise FledgeError(f"the doctor knows no {name} '{text}'", where="--given", hint=f"these are: {known}")
    return meant


def loss_of_kind(text: str) -> str | None:
    """The loss that the name of a method says beside its kind of stage: `simpo` is a preference stage with that loss."""
    method = METHODS_BY_NAME.get(word(text))
    return method.loss_type if method else None
