"""The kinds of stages that `fledge init` writes, in one table."""

from dataclasses import dataclass

from fledge.data.formats import FORMATS


@dataclass(frozen=True, kw_only=True)
class KindRules:
    """What `fledge init` knows about a kind of stage. Numbers are chosen by fledge, or found by trial, see decision 063.

    `stage`: its name in a recipe. `what`: its rows, in words. `wanted`: tokens of texts that go on in the next row, rows of
    others, that are to be seen in training; passes over the data are made until then, from `least_passes` to `most_passes`.
    `by_heart`: whether few rows are learned by heart.
    """

    stage: str
    what: str
    wanted: int
    least_passes: float
    most_passes: float
    optimizer: str
    by_heart: bool = False


PAIRS = {
    "wanted": 1000, "least_passes": 1.0, "most_passes": 3.0, "optimizer": "adamw",
}  # fmt: skip
RULES: dict[str, KindRules] = {
    "pretrain": KindRules(
        stage="pretrain",
        what="texts",
        wanted=4_000_000,
        least_passes=1.0,
        most_passes=10.0,
        optimizer="muon",
    ),
    "sft": KindRules(
        stage="sft",
        what="conversations",
        wanted=8000,
        least_passes=2.0,
        most_passes=20.0,
        optimizer="muon",
        by_heart=True,
    ),
    "preference": KindRules(stage="dpo", what="pairs", **PAIRS),
    "kto": KindRules(stage="kto", what="labelled answers", **PAIRS),
}
"""By kind of stage, in the order of the stages."""


def compares(kind: str) -> bool:
    """Whether an example is several answers to compare, which a model must be able to give already."""
    return len(FORMATS[kind].sequence_names) > 1
