"""The learning rate of a stage, by short runs that each have a complete schedule of their own.

A range test, in which one run raises the rate step by step, finds the rate at which training diverges, and not the one that
ends lowest; so rates are compared by whole runs of an eighth of the length, and those around the best again by runs of a half.
What is best there is carried over to the full length by a power of the length. Published is tokens^−0.32 (Bjorck et al. 2024),
for long runs; in short ones the best rate may also stay or rise, as the two lengths show. The mean of both is taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fledge.errors import FledgeError
from fledge.plan.hyperparameters import HORIZON_POWER, WIDTH_POWERS
from fledge.recipe.schema import ModelConfig
from fledge.report.plots import COLOURS
from fledge.run import StageDirectory
from fledge.sweep.documents import compare_documents
from fledge.sweep.plots import draw, has_matplotlib
from fledge.tune.fit import RATIO, Optimum, descend, optimum
from fledge.tune.lengths import MOST_EPOCHS, kept_min_rate, of_length
from fledge.tune.result import TuneResult
from fledge.tune.runs import ShortRuns

FRACTIONS = (1 / 8, 1 / 2)  # of the full length, one round each
MIN_STEPS = 16  # of a short run
FIRST_RUNS, FEWEST_RUNS = 6, 3  # of the first round, at most; of a round, at least
GRID = 7  # full runs that a person would try
BUDGET = GRID / 3  # whole runs that all short runs may take together
STEEPEST = -2 * HORIZON_POWER  # exponent of the length; the flattest is 0


@dataclass(kw_only=True)
class Round:
    """Runs of one length: their losses by rate, and their directories."""

    steps: int
    losses: dict[float, float] = field(default_factory=dict)
    directories: dict[float, StageDirectory] = field(default_factory=dict)


class LearningRateSearch:
    """Finds the learning rate of a stage. `values`: keys of the recipe that differ in all runs, as those of a narrower model;
    `transfer`: what the rate found there is multiplied by."""

    def __init__(self, runs: ShortRuns, values: Mapping[str, Any] | None = None, transfer: float = 1.0) -> None:
        """Raises FledgeError if the stage is too short for shorter runs."""
        self.runs, self.values, self.transfer = runs, dict(values or {}), transfer
        self.key = f"{runs.prefix}.optimizer.learning_rate"
        self.full = runs.plan({})
        self.lengths = [max(MIN_STEPS, round(self.full.steps * fraction)) for fraction in FRACTIONS]
        self.first_runs = min(FIRST_RUNS, int((BUDGET * self.full.steps - FEWEST_RUNS * self.lengths[1]) / self.lengths[0]))
        if self.first_runs < FEWEST_RUNS:
            raise FledgeError(f"the stage has {self.full.steps:,} steps: too few to learn from shorter runs",
                              where=f"{runs.prefix}.duration",
                              hint="search by whole runs: fledge sweep RECIPE --search KEY=log:…")  # fmt: skip

    def find(self) -> TuneResult:
        """Run both rounds, the second around the best rate of the first, and carry its best rate over to the full length."""
        first = self._round(self.lengths[0], self._prior(self.lengths[0]), self.first_runs)
        left = BUDGET * self.full.steps - first.steps * len(first.losses)
        second = self._round(self.lengths[1], optimum(first.losses).rate, int(left / self.lengths[1]))
        return self._result([first, second], optimum(second.losses), exponent_of_length(first, second))

    def _prior(self, steps: int) -> float:
        """The rate that fledge derives for a short run; where it derives none, the recipe's own, carried over."""
        try:
            return self.runs.plan({**self._of_length(steps), self.key: "auto"}).learning_rate
        except FledgeError:
            return self.full.learning_rate * (self.full.steps / steps) ** HORIZON_POWER

    def _of_length(self, steps: int) -> dict[str, Any]:
        return {**self.values, **of_length(self.runs, self.full, steps)}

    def _round(self, steps: int, centre: float, most: int) -> Round:
        """Runs of a length, around a rate. Raises FledgeError if none came to its end."""
        found = Round(steps=steps)
        self.runs.console.log(f"runs of {steps:,} steps, around {centre:.3g}")
        descend(centre, most, lambda rates: self._train(found, rates))
        if not any(map(math.isfinite, found.losses.values())):
            raise FledgeError("no run of any learning rate came to its end", where=str(self.runs.recipes.paths.folder),
                              hint="its logs say why: trials/*/*.log")  # fmt: skip
        return found

    def _train(self, found: Round, rates: Sequence[float]) -> Mapping[float, float]:
        """Train with these rates too; the losses of all."""
        directories = self.runs.run([{**self._of_length(found.steps), self.key: rate} for rate in rates])
        for rate, directory in zip(rates, directories, strict=True):
            loss = math.inf if directory is None else float(directory.metrics("after").get("loss", math.inf))
            found.losses[rate] = loss
            if directory is not None:
                found.directories[rate] = directory
            self.runs.console.log(f"  rate {rate:.4g}: validation loss {loss:.4f}")
        return found.losses

    # -- the result ---------------------------------------------------------------------------------------------------

    def _result(self, rounds: Sequence[Round], best: Optimum, exponent: float) -> TuneResult:
        cost = sum(one.steps * len(one.losses) for one in rounds) / self.full.steps
        scale = (self.full.steps / self.lengths[-1]) ** exponent * self.transfer
        rate = float(f"{best.rate * scale:.3g}")
        low, high = best.flat[0] * scale, best.flat[1] * scale
        patch: dict[str, Any] = {self.key: rate, **kept_min_rate(self.runs, self.full)}
        evidence = [self._round_sentence(one) for one in rounds]
        evidence.append(
            f"the best rate of {self.lengths[-1]:,} steps, {best.rate:.3g}, × {scale:.3g} for {self.full.steps:,} steps: "
            f"tokens^{exponent:.2g}, the mean of −{HORIZON_POWER} (Bjorck et al. 2024) and of what the two lengths show"
            + self._transfer_sentence()
        )
        evidence.append(f"cost: {sum(len(one.losses) for one in rounds)} runs, as many steps as {cost:.2g} whole runs; "
                        f"a grid of {GRID} takes {GRID}")  # fmt: skip
        if self.runs.recipes.paths.folder.exists() and has_matplotlib():
            draw(self.runs.recipes.paths.folder / "lr.svg", lambda axes: self._paint(axes, rounds, rate))
        figures = {
            "rate": rate, "flat": [low, high], "full_steps": self.full.steps, "cost_in_runs": cost, "exponent": exponent,
            "rounds": [{"steps": one.steps, "losses": {str(key): value if math.isfinite(value) else None
                                                       for key, value in one.losses.items()}} for one in rounds],
        }  # fmt: skip
        return TuneResult(
            patch=patch, evidence=evidence, confidence=self._confidence(rounds[-1], best, (low, high)), figures=figures
        )

    def _transfer_sentence(self) -> str:
        if self.transfer == 1.0:
            return ""
        return f", × {self.transfer:.3g} from the narrower model to this one"

    def _round_sentence(self, one: Round) -> str:
        shown = ", ".join(f"{rate:.3g}: {loss:.4f}" for rate, loss in sorted(one.losses.items()))
        return f"validation loss after {one.steps:,} steps by rate: {shown}"

    def _confidence(self, last: Round, best: Optimum, flat: tuple[float, float]) -> str:
        """How sure the rate is, in words: whether larger and smaller ones are worse, by the same documents."""
        low, high = flat
        if self.full.epochs > MOST_EPOCHS:
            return (
                f"low: the whole stage reads its rows {self.full.epochs:.3g} times, and the longest run of this search "
                f"{self.full.epochs * FRACTIONS[-1]:.3g} times: at its end it may learn them by heart, which no shorter run "
                "shows. Find its length first (--what duration), or take more data"
            )
        if not best.is_bracketed:
            return "low: the best rate lies at the end of those that were tried"
        chosen = min(last.losses, key=lambda rate: (last.losses[rate], rate))
        told = [self._is_worse(last, chosen, rate) for rate in (chosen / RATIO, chosen * RATIO)]
        band = f"from {low:.2g} to {high:.2g} the loss should be within 1 % of the lowest"
        if all(told):
            return f"high: half and twice the rate are both worse on the same documents; {band}"
        if any(told):
            return f"medium: on one side the documents tell no difference; {band}"
        return f"medium: the documents tell no difference between half, once and twice the rate; {band}"

    def _is_worse(self, last: Round, chosen: float, rate: float) -> bool:
        """Whether the run with about this rate is worse than the chosen one beyond what the documents allow for."""
        other = min(last.losses, key=lambda one: abs(math.log(one / rate)))
        if other == chosen or not math.isfinite(last.losses[other]) or other not in last.directories:
            return other != chosen
        first, second = (self.runs.documents(last.directories[one]) for one in (chosen, other))
        if first is None or second is None:
            return last.losses[other] > 1.01 * last.losses[chosen]
        test = compare_documents(first, second)
        return test is not None and test.is_different and test.difference > 0

    def _paint(self, axes: Any, rounds: Sequence[Round], rate: float) -> None:
        for one, style in zip(rounds, ("o:", "o-"), strict=True):
            points = sorted((key, loss) for key, loss in one.losses.items() if math.isfinite(loss))
            axes.plot(*zip(*points, strict=True), style, markersize=3, label=f"{one.steps:,} steps")
        axes.axvline(rate, color=COLOURS["eval"], linewidth=1, label=f"{rate:.3g} for {self.full.steps:,} steps")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("validation loss (nats/token)")
        axes.legend(frameon=False, fontsize=6.5)


def exponent_of_length(first: Round, second: Round) -> float:
    """The power of the length by which the best rate changes: the mean of the published one and of that between the best rates
    of the two rounds, kept between twice the published one and 0."""
    rates = [optimum(one.losses).rate for one in (first, second)]
    measured = math.log(rates[1] / rates[0]) / math.log(second.steps / first.steps) if second.steps > first.steps else 0.0
    return min(0.0, max(STEEPEST, (measured - HORIZON_POWER) / 2))


def narrowed(model: ModelConfig, width: int) -> dict[str, Any]:
    """Keys of a model of another width: heads keep their size, and all else its proportions. Raises FledgeError for a width
    that is no whole number of heads."""
    size = model.head_size
    heads, remainder = divmod(width, size)
    if remainder or not heads or width >= model.hidden_size:
        raise FledgeError(f"{width} is no width of a narrower model", where="--width",
                          hint=f"write a multiple of {size}, the size of a head, below {model.hidden_size}")  # fmt: skip
    groups = max(1, round(model.num_key_value_heads * heads / model.num_attention_heads))
    while heads % groups:
        groups -= 1
    return {
        "model.hidden_size": width,
        "model.num_attention_heads": heads,
        "model.num_key_value_heads": groups,
        "model.intermediate_size": max(8, round(model.intermediate_size * width / model.hidden_size / 8) * 8),
    }


def width_factor(optimizer: str, narrow: int, wide: int) -> float:
    """What the best rate of a narrow model is multiplied by for a wide one (`plan.hyperparameters`). Raises FledgeError for an
    optimizer whose rate is not known to transfer."""
    if optimizer not in WIDTH_POWERS:
        raise FledgeError(
            f"no rule carries the rate of {optimizer} over to another width", where="--width", hint="leave it out"
        )
    return (narrow / wide) ** WIDTH_POWERS[optimizer]
