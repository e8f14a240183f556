"""The verdict on a stage or a run: release it, keep training, or roll back, with reasons and the figures behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fledge.recipe.sections.verdict import ORIGINS, VerdictConfig

Decision = Literal["release", "keep training", "roll back"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)  # the worse, the later
EXIT_CODES: dict[Decision, int] = {"release": 0, "keep training": 10, "roll back": 11}
GoesOn = Literal["trained", "best", "start"]
GOES_ON: dict[GoesOn, str] = {
    "trained": "the trained model goes on",
    "best": "its best checkpoint goes on",
    "start": "the model before the stage goes on",
}


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One figure that speaks for a decision. `decision`: None where it cannot decide, which `message` says.

    `check`: its name, in tests and translations. `evidence`: JSON values, among them `threshold` and `key` of the recipe where
    there is one.
    """

    check: str
    decision: Decision | None
    message: str
    hint: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The reason as JSON values."""
        return {
            "check": self.check,
            "decision": self.decision,
            "message": self.message,
            "hint": self.hint,
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision with its reasons, those that made it first.

    `goes_on`: the model that the next stage starts from: `trained`, `best` (an earlier checkpoint of the stage), `start` (the
    model before the stage). `thresholds`: by key of the recipe, the value and where it comes from.
    """

    decision: Decision
    reasons: tuple[Reason, ...]
    goes_on: GoesOn = "trained"
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def deciding(self) -> list[Reason]:
        """The reasons that speak for the decision."""
        return [reason for reason in self.reasons if reason.decision == self.decision]

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "decision": self.decision,
            "goes_on": self.goes_on,
            "reasons": [reason.as_dict() for reason in self.reasons],
            "thresholds": {key: dict(value) for key, value in self.thresholds.items()},
        }


NOTHING_MEASURED = Reason(
    check="nothing_measured",
    decision="keep training",
    message="nothing was measured that says that the model is good enough",
    hint="give the stage validation data (data.validation) or sets (evaluation.sets)",
)


def decide(reasons: Sequence[Reason]) -> tuple[Decision, tuple[Reason, ...]]:
    """The worst decision that a reason speaks for, and the reasons in the order of their weight.

    Without a reason to release, nothing is released.
    """
    if not any(reason.decision for reason in reasons):
        reasons = [NOTHING_MEASURED, *reasons]
    decision = DECISIONS[max(map(_weight, reasons))]
    return decision, tuple(sorted(reasons, key=_weight, reverse=True))


def _weight(reason: Reason) -> int:
    """The place of a reason's decision, the worst one last; −1 without a decision."""
    return -1 if reason.decision is None else DECISIONS.index(reason.decision)


def thresholds(config: VerdictConfig, kind: str) -> dict[str, dict[str, Any]]:
    """The thresholds of a stage of a kind by their keys: `value`, and `from`: `recipe`, or where the default comes from."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in config.thresholds(kind).items():
        if value is None:
            continue
        is_given = getattr(config, key) != VerdictConfig.model_fields[key].default  # a run's own recipe has every key
        found[key] = {"value": value, "from": "recipe" if is_given else f"default: {ORIGINS.get(key, 'of fledge')}"}
    return found


def describe_verdict(verdict: Verdict) -> list[str]:
    """The verdict as lines for a person: the decision, why, and what to do."""
    goes_on = "" if verdict.goes_on == "trained" else f"; {GOES_ON[verdict.goes_on]}"
    lines = [f"verdict: {verdict.decision}{goes_on}"]
    for reason in verdict.deciding:
        lines.append(f"  {reason.message}")
        used = verdict.thresholds.get(reason.evidence.get("key", ""))
        if used is not None and used["from"] != "recipe":
            lines.append(f"    (evaluation.verdict.{reason.evidence['key']} is a {used['from']})")
        if reason.hint:
            lines.append(f"    → {reason.hint}")
    return lines
