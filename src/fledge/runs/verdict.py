"""The verdict on a whole run: that on its last finished stage, whose model is the result of the run once all are finished."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.evaluate.verdict import EXIT_CODES, GOES_ON, Decision
from fledge.report.read_run import recipe_stages
from fledge.run import RunDirectory
from fledge.runs.read import Subject


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """The verdict on a run. `stage`: the last finished stage, whose `verdict` it is. `model`: what goes on. `stages`: the
    decision on each finished stage. `unfinished`: stages of the recipe that are not finished or not begun: with one, nothing is
    released."""

    decision: Decision
    stage: str
    model: Path
    verdict: dict[str, Any]
    stages: dict[str, str]
    unfinished: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """The exit code for scripts: 0 release, 10 keep training, 11 roll back."""
        return EXIT_CODES[self.decision]

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "decision": self.decision,
            "stage": self.stage,
            "model": str(self.model),
            "verdict": self.verdict,
            "stages": self.stages,
            "unfinished": list(self.unfinished),
        }


def run_verdict(subject: Subject) -> RunVerdict:
    """The verdict on a run or a stage. Raises FledgeError where no stage has one."""
    if subject.run is None or subject.step is not None:
        raise FledgeError("a verdict is made at the end of a stage", where=subject.name, hint="name a run or a stage")
    run = RunDirectory(subject.run)
    planned = recipe_stages(subject.run) if subject.stage is None else []
    results = {name: run.stage(name).result() for name in dict.fromkeys([*planned, *subject.stages])}
    judged = [(name, result) for name, result in results.items() if result is not None and result.get("verdict")]
    if not judged:
        what = "no stage is finished" if not any(results.values()) else "its stages were finished before there were verdicts"
        raise FledgeError(f"there is no verdict yet: {what}", where=subject.name, hint="let a stage reach its end")
    judged.sort(key=lambda one: one[1]["order"])
    name, result = judged[-1]
    decision: Decision = result["verdict"]["decision"]
    unfinished = tuple(one for one, each in results.items() if each is None)
    return RunVerdict(
        decision="keep training" if unfinished and decision == "release" else decision,
        stage=name,
        model=run.stage(name).root / result["model"],
        verdict=result["verdict"],
        stages={one: each["verdict"]["decision"] for one, each in judged},
        unfinished=unfinished,
    )


def verdict_lines(found: RunVerdict) -> list[str]:
    """The verdict as text: the decision, the reasons that made it, then the others."""
    first, *rest = reason_lines(found.verdict)
    lines = [f"{found.stage}: {first} ({found.model})", *rest]
    if found.unfinished:
        lines.insert(0, f"verdict on the run: {found.decision}; not finished: {', '.join(found.unfinished)}")
    return lines


def reason_lines(verdict: Mapping[str, Any]) -> list[str]:
    """A verdict of result.json as lines: the decision, its reasons, and the thresholds that it was made by."""
    lines = [f"verdict: {verdict['decision']}; {GOES_ON[verdict['goes_on']]}"]
    for reason in verdict["reasons"]:
        lines.append(f"  {reason['decision'] or 'note'}: {reason['message']}")
        if reason["hint"] and reason["decision"] not in (None, "release"):
            lines.append(f"    → {reason['hint']}")
    for title, is_given in (("from the recipe", True), ("by default", False)):
        chosen = {key: one for key, one in verdict["thresholds"].items() if (one["from"] == "recipe") == is_given}
        if chosen:
            lines.append(f"  thresholds {title}: " + ", ".join(f"{key} {one['value']:g}" for key, one in chosen.items()))
    return lines
