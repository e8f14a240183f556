"""The rules of the guards that watch a stage on preferences: whether the model learns to prefer, and what it gives up for it.

They read the metrics of `objective.preference`, `objective.kto` and `objective.reward`, and find nothing in the events of other
stages.
"""

import math

from fledge.monitor.rules import Event, GuardTrigger, Rule, trigger
from fledge.monitor.window_means import WindowMeans
from fledge.recipe.sections.guards import ChanceAccuracyGuard, DisplacementGuard, LengthBiasGuard, NoPreferenceGuard

MIN_STEPS = 20  # of a stage in which growth can be expected
MOST_WRONG = 0.5  # accuracy below which most pairs are wrong
ERRORS = 4  # standard errors that a mean over a few steps is from a bound before it counts


class Displacement(Rule):
    """Triggers when chosen and rejected answers have both become less likely than under the reference, the chosen ones by more
    than `max_drop` nats per token (likelihood displacement: Razin et al. 2024). In a stage without reference, less likely than
    in its first steps, by more than four standard errors too: other steps have other pairs. Once per stage."""

    def __init__(self, config: DisplacementGuard) -> None:
        self.config, self.reported = config, False
        self.drift = WindowMeans(("train/drift/chosen", "train/drift/rejected"), config.window)
        self.per_token = WindowMeans(("chosen", "rejected"), config.window)  # nats per token, without a reference

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger the first time that the means of the last steps are that low."""
        means, since = self.drift.add(event), "against the reference"
        if self.drift.is_empty:
            means, since = self._since_the_first_steps(event), f"since the first {self.config.window}"
        if means is None or self.reported or means[0] >= -self.config.max_drop or means[1] >= 0:
            return None
        self.reported = True
        message = (
            f"both answers become less likely: over {self.config.window} steps, the chosen ones by {-means[0]:.2f} nats/token "
            f"and the rejected ones by {-means[1]:.2f}, {since}"
        )
        evidence = {"drift_chosen": means[0], "drift_rejected": means[1]}
        return trigger("displacement", self.config.action, message, event, evidence=evidence, stop_scope="stage")

    def _since_the_first_steps(self, event: Event) -> tuple[float, float] | None:
        """How much likelier both answers are than in the first steps; None where chance could make the chosen ones as
        unlikely."""
        keys = [f"train/{figure}/{side}" for side in ("chosen", "rejected") for figure in ("logps", "lengths")]
        if event["kind"] != "step" or not all(event.get(key) for key in keys):
            return None
        logp, length, others_logp, others_length = (event[key] for key in keys)
        now = self.per_token.add_values((logp / length, others_logp / others_length))
        if now is None or not self.per_token.is_apart:
            return None
        before, error = self.per_token.first, math.hypot(self.per_token.errors[0], self.per_token.first_errors[0])
        chosen, rejected = (new - old for new, old in zip(now, before, strict=True))
        return None if chosen >= -ERRORS * error else (chosen, rejected)


class LengthBias(Rule):
    """Triggers when the margins of the rewards follow the difference in length and most pairs with a shorter chosen answer are
    wrong (length exploitation: Park et al. 2024); for a reward model, also when short answers are rewarded and most pairs with
    a longer chosen answer are wrong. Once per stage."""

    def __init__(self, config: LengthBiasGuard) -> None:
        self.config, self.reported = config, False
        correlation = "train/length_correlation"
        self.directions = (  # the pairs that are wrong, the sign of the correlation, the means
            ("shorter", 1, WindowMeans((correlation, "train/rewards/accuracies_shorter"), config.window)),
            ("longer", -1, WindowMeans((correlation, "train/rewards/accuracies_longer"), config.window)),
        )

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger the first time that the means of the last steps say so."""
        found = [(which, sign, means.add(event)) for which, sign, means in self.directions]
        for which, sign, means in found:
            follows = means is not None and sign * means[0] > self.config.max_correlation and means[1] < MOST_WRONG
            if means is None or not follows or self.reported:
                continue
            self.reported = True
            message = (
                f"the rewards follow the length of the answers: over {self.config.window} steps, margin and difference in "
                f"length are correlated by {means[0]:.2f}, and of the pairs with a {which} chosen answer only {means[1]:.0%} "
                "are right"
            )
            evidence = {"correlation": means[0], f"accuracy_{which}": means[1]}
            return trigger("length_bias", self.config.action, message, event, evidence=evidence, stop_scope="stage")
        return None


class NoPreference(Rule):
    """Triggers when, in the second half of a stage of at least MIN_STEPS steps, nothing has come to be preferred: the mean
    margin of the rewards is below `min_growth`, or, in a stage without reference, the log-odds have not grown by it since the
    first steps, by more than four standard errors in both cases: a few pairs say little. Once per stage."""

    def __init__(self, config: NoPreferenceGuard) -> None:
        self.config, self.total_steps, self.reported = config, 0, False
        self.margins = WindowMeans(("train/rewards/margins", "train/drift/chosen"), config.window)
        self.log_odds = WindowMeans(("train/log_odds",), config.window)

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger the first time that the growth up to now is too small."""
        if event["kind"] == "start":
            self.total_steps = event["steps"]
        margins, log_odds = self.margins.add(event), self.log_odds.add(event)
        found = self._growth(margins, log_odds)
        late = event["step"] > max(self.total_steps // 2, 2 * self.config.window) and self.total_steps >= MIN_STEPS
        if found is None or not late or self.reported:
            return None
        growth, highest = found[0], found[0] + ERRORS * found[1]
        if highest >= self.config.min_growth:
            return None
        self.reported = True
        what = "the margin of the rewards is" if margins is not None else "the log-odds have grown by"
        why = (
            "chosen and rejected answers may be swapped"
            if highest < -self.config.min_growth
            else "the loss stands still at its value of the start"
        )
        message = f"after {event['step']:,} of {self.total_steps:,} steps nothing is preferred: {what} {growth:+.4f}; {why}"
        return trigger("no_preference", self.config.action, message, event, evidence={"growth": growth}, stop_scope="stage")

    def _growth(self, margins: tuple[float, ...] | None, log_odds: tuple[float, ...] | None) -> tuple[float, float] | None:
        """The growth and the standard error of its last steps; None if it is not known."""
        if margins is not None:
            return margins[0], self.margins.errors[0]
        if not self.margins.is_empty or log_odds is None:
            return None
        return log_odds[0] - self.log_odds.first[0], self.log_odds.errors[0]


class ChanceAccuracy(Rule):
    """Triggers when, in the second half of a stage of at least MIN_STEPS steps, a reward model is right in too few pairs, and
    more than two standard errors of a share of so many pairs too few. Once per stage."""

    def __init__(self, config: ChanceAccuracyGuard) -> None:
        self.config, self.total_steps, self.reported = config, 0, False
        self.means = WindowMeans(("train/rewards/accuracies", "train/rewards/margins", "train/pairs"), config.window)

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger the first time that the mean accuracy of the last steps is that low."""
        if event["kind"] == "start":
            self.total_steps = event["steps"]
        means = self.means.add(event)
        late = event["step"] > max(self.total_steps // 2, self.config.window) and self.total_steps >= MIN_STEPS
        if means is None or not late or self.reported:
            return None
        pairs = max(means[2], 1.0) * self.config.window
        if means[0] + 2 * math.sqrt(0.25 / pairs) >= self.config.min_accuracy:
            return None
        self.reported = True
        why = "hardly more than by chance" if means[0] >= MOST_WRONG - 0.05 else "chosen and rejected answers may be swapped"
        message = (
            f"after {event['step']:,} of {self.total_steps:,} steps the reward model is right in {means[0]:.0%} of "
            f"{pairs:,.0f} pairs over {self.config.window} steps: {why}"
        )
        evidence = {"accuracy": means[0], "margin": means[1], "pairs": pairs}
        return trigger("chance_accuracy", self.config.action, message, event, evidence=evidence, stop_scope="stage")
