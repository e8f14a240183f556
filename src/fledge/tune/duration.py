"""How long a stage should train: runs of growing length, each with a complete schedule, and a law through their losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fledge.errors import FledgeError
from fledge.plan import StagePlan
from fledge.report.plots import COLOURS
from fledge.run import StageDirectory
from fledge.sweep.plots import draw, has_matplotlib
from fledge.tune.lengths import MOST_EPOCHS, duration_in_steps, of_length, shares_of_warmup
from fledge.tune.loss_law import LossLaw, fit_law
from fledge.tune.result import TuneResult
from fledge.tune.runs import ShortRuns

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the full length: together less than one whole run
MIN_STEPS = 20  # of the shortest run
MULTIPLES = (1 / 2, 1, 2, 4)  # of the planned length, in the table
SHORTEST = 3  # doublings below the planned length that are considered
WORTH = 0.01  # share of the loss that twice the length must gain to be worth it


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs by their number of steps: validation loss and seconds of an update."""

    losses: dict[int, float]
    seconds: float

    @property
    def best(self) -> int:
        """The length with the lowest loss."""
        return min(self.losses, key=lambda steps: (self.losses[steps], steps))


def find_duration(runs: ShortRuns) -> TuneResult:
    """The length of the stage after which twice as many steps gain less than WORTH of the loss. Raises FledgeError if the stage
    is too short for shorter runs, or if no run came to its end."""
    plan = runs.plan({})
    lengths = [round(plan.steps * fraction) for fraction in FRACTIONS]
    if lengths[0] < MIN_STEPS:
        least = round(MIN_STEPS / FRACTIONS[0])
        raise FledgeError(f"the stage has {plan.steps:,} steps: too few to learn from shorter runs",
                          where=f"{runs.prefix}.duration", hint=f"plan {least:,} steps or more")  # fmt: skip
    runs.console.log(f"runs of {', '.join(f'{steps:,}' for steps in lengths)} steps")
    directories = runs.run([of_length(runs, plan, steps) for steps in lengths])
    losses = {steps: _loss(one) for steps, one in zip(lengths, directories, strict=True) if one is not None}
    done = {steps: loss for steps, loss in losses.items() if math.isfinite(loss)}
    if not done:
        raise FledgeError("no run came to its end", where=str(runs.recipes.paths.folder),
                          hint="its logs say why: trials/*/*.log")  # fmt: skip
    for steps, loss in done.items():
        runs.console.log(f"  {steps:,} steps: validation loss {loss:.4f}")
    return _result(runs, Runs(losses=done, seconds=_seconds(directories)))


def _loss(directory: StageDirectory) -> float:
    return float(directory.metrics("after").get("loss", math.inf))


def _seconds(directories: Sequence[StageDirectory | None]) -> float:
    """Seconds of an update of the longest run that came to its end."""
    for directory in reversed(directories):
        result = None if directory is None else directory.result()
        if result:
            return result["seconds"] / max(1, result["step"])
    return 0.0


def _result(runs: ShortRuns, tried: Runs) -> TuneResult:
    plan = runs.plan({})
    shown = ", ".join(f"{steps:,}: {loss:.4f}" for steps, loss in tried.losses.items())
    evidence = [f"validation loss by steps: {shown}"]
    law = fit_law(tried.losses)
    if law is None:
        steps, confidence = _without_law(tried, plan.steps, evidence)
    else:
        evidence.extend(_table(law, plan.steps, plan.epochs, tried.seconds))
        steps, confidence = length_by_law(law, plan.steps, plan.epochs)
    cost = sum(tried.losses) / plan.steps
    evidence.append(f"cost: {len(tried.losses)} runs, as many steps as {cost:.2g} whole runs")
    if runs.recipes.paths.folder.exists() and has_matplotlib():
        draw(runs.recipes.paths.folder / "duration.svg", lambda axes: _paint(axes, tried, law, plan.steps))
    is_known = law is not None and plan.steps <= _furthest(plan.steps, plan.epochs)
    figures: dict[str, Any] = {"losses": {str(key): value for key, value in tried.losses.items()}, "cost_in_runs": cost,
                               "steps": steps, "predicted": law.loss(plan.steps) if law and is_known else None}  # fmt: skip
    return TuneResult(patch=patch_of_length(runs, plan, steps), evidence=evidence, confidence=confidence, figures=figures)


def patch_of_length(runs: ShortRuns, plan: StagePlan, steps: int) -> dict[str, Any]:
    """The change of the recipe with which the stage has so many steps, as the runs had them: their updates have the rows of the
    plan, and their warm-ups are in proportion to their length."""
    patch = duration_in_steps(runs, plan, steps)
    return patch if steps == plan.steps else patch | _warmups(runs, plan)


def _warmups(runs: ShortRuns, plan: StagePlan) -> dict[str, Any]:
    """The warm-ups that the recipe has in steps, as the share that they have of the planned length."""
    batch = runs.stage.batch.warmup
    in_steps = {"schedule.warmup": runs.stage.schedule.warmup, "batch.warmup.ramp_steps": batch.ramp_steps if batch else 0.0}
    return {key: value for key, value in shares_of_warmup(runs, plan).items()
            if in_steps[key.removeprefix(f"{runs.prefix}.")] >= 1}  # fmt: skip


def _furthest(planned: int, epochs: float) -> float:
    """The most steps of which a law may speak: until rows are read MOST_EPOCHS times, or as long as the longest run."""
    return planned * max(FRACTIONS[-1], MOST_EPOCHS / epochs)


def _table(law: LossLaw, planned: int, epochs: float, seconds: float) -> list[str]:
    lines = ["expected at the end, by L = E + A·steps^−p through these runs:"]
    for multiple in MULTIPLES:
        steps = round(planned * multiple)
        if steps > _furthest(planned, epochs):
            times = epochs * multiple
            lines.append(f"  {steps:,} steps are {times:.3g} epochs: no law holds for rows read more than {MOST_EPOCHS} times")
            continue
        loss, low, high = law.loss(steps)
        lines.append(f"  {steps:,} steps ({steps * seconds / 60:,.1f} min here): {loss:.3f} [{low:.3f}, {high:.3f}]")
    return lines


def length_by_law(law: LossLaw, planned: int, epochs: float) -> tuple[int, str]:
    """The length after which twice as many steps gain less than WORTH, at most four times the planned one and not beyond what
    the law may speak of."""
    furthest = min(MULTIPLES[-1] * planned, _furthest(planned, epochs))
    quarters = range(math.floor(4 * math.log2(furthest / planned)) + 4 * SHORTEST + 1)
    lengths = [planned * 2.0 ** (quarter / 4 - SHORTEST) for quarter in quarters]
    steps = next((length for length in lengths if law.gain(length, 2.0)[0] < WORTH), lengths[-1])
    gain, low, high = law.gain(steps, 2.0)
    if 2 * steps > _furthest(planned, epochs) and gain >= WORTH:
        times = 2 * epochs * steps / planned
        return round(steps), (
            f"medium: the loss still falls there; twice as many steps would read the rows {times:.3g} times, of which no law "
            "speaks: more data is the surer way to a lower loss"
        )
    told = f"twice as many steps would end {gain:.1%} lower [{low:.1%}, {high:.1%}]"
    if high < WORTH or low >= WORTH:
        return round(steps), f"high: {told}"
    return round(steps), f"medium: {told}, so the laws that fit differ on whether it is worth it"


def _without_law(tried: Runs, planned: int, evidence: list[str]) -> tuple[int, str]:
    """The best length of those tried, where no law fits."""
    best = tried.best
    if best < max(tried.losses):
        evidence.append(f"longer runs than {best:,} steps end higher: they learn their rows by heart")
        return best, "medium: a longer run was worse; more data would let it train longer"
    evidence.append("the losses follow no power law, so nothing is said of longer runs")
    return planned, "low: nothing speaks against the planned length, and nothing for it"


def _paint(axes: Any, tried: Runs, law: LossLaw | None, planned: int) -> None:
    axes.plot(list(tried.losses), list(tried.losses.values()), "o", markersize=3, label="runs")
    if law is not None:
        lengths = np.geomspace(min(tried.losses), MULTIPLES[-1] * planned, 40)
        values = [law.loss(steps) for steps in lengths]
        axes.plot(lengths, [value[0] for value in values], linewidth=1, color=COLOURS["eval"])
        axes.fill_between(lengths, [v[1] for v in values], [v[2] for v in values], alpha=0.2, color=COLOURS["eval"])
    axes.axvline(planned, linewidth=1, linestyle=":", label=f"planned: {planned:,} steps")
    axes.set_xscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("validation loss (nats/token)")
    axes.legend(frameon=False, fontsize=6.5)
