"""The verdicts on a finished stage: what its figures say besides that all steps are done. They are written to result.json,
shown at the end of the stage, and stand in the headline of the report."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fledge.findings import Finding, Severity
from fledge.metric_names import MIN_CHANGE
from fledge.plan.evaluation import METRICS, MIN_VALIDATION_ROWS, SelectionMetric

NOISE = 0.005  # relative change of a loss that is no change
WORSE = 0.01  # relative increase of a loss that is worth a word
COLLAPSED_ACCURACY = 0.5  # of the token accuracy before, or less
MIN_ACCURACY = 0.02  # token accuracy that can collapse
COLLAPSED_NATS = 2.0  # increase of the negative log-likelihood of a token
DISPLACED_NATS = 0.5  # the same increase where the answers' likelihood is not what is optimized
MIN_PROMPTS = 3  # equal answers to fewer prompts are no surprise
FEW_STEPS = 8  # training losses of fewer steps are not compared

Metrics = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """The figures of a finished stage.

    `before`, `after`: metrics on validation data, of the start and of the checkpoint that goes on; empty without validation
    data. `metric_name`: the stage's `metric_for_best_model`. `evaluations`: (step, its value) in order, that of the start
    included. `losses`: (step, validation loss) in the same way, where the metric is another one. `train_losses`: of every
    step. `train_rewards`: mean rewards of the rollouts, of a stage that trains on rewards, whose losses scatter around 0.
    `selected_step`: of the checkpoint that goes on. `validation_rows`: as `plan.evaluation.validation_rows`. `answers`:
    (prompt, answer) after the stage.
    """

    before: Metrics = field(default_factory=dict)
    after: Metrics = field(default_factory=dict)
    evaluations: Sequence[tuple[int, float]] = ()
    losses: Sequence[tuple[int, float]] = ()
    train_losses: Sequence[float] = ()
    train_rewards: Sequence[float] = ()
    steps: int
    selected_step: int
    metric_name: str = "loss"
    validation_rows: int | None = None
    answers: Sequence[tuple[str, str]] = ()

    def change(self, name: str) -> tuple[float, float] | None:
        """A metric before and after the stage; None unless both are finite."""
        before, after = self.before.get(name), self.after.get(name)
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            return None
        return before, after

    @property
    def reward_change(self) -> tuple[float, float] | None:
        """The mean reward of held-out answers before and after, else of the first and the last third of the rollouts; None for
        a stage without rewards, or with too few."""
        third = len(self.train_rewards) // 3
        if not third:
            return None
        return self.change("reward") or (
            statistics.fmean(self.train_rewards[:third]),
            statistics.fmean(self.train_rewards[-third:]),
        )

    @property
    def metric(self) -> SelectionMetric:
        """The metric that decides which checkpoint is the best."""
        return METRICS[self.metric_name]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best evaluation; None without a finite one."""
        finite = [(step, value) for step, value in self.evaluations if math.isfinite(value)]
        return min(finite, key=lambda one: self.metric.badness(one[1]), default=None)

    def is_worse(self, value: float, reference: float, share: float) -> bool:
        """Whether a value is worse than a reference by more than this share of it, and by more than chance."""
        by = self.metric.badness(value) - self.metric.badness(reference)
        return by > max(self.metric.min_change, share * abs(reference))


def verdicts(outcome: StageOutcome) -> list[Finding]:
    """All verdicts, the gravest first. A stage of which nothing is to be said has none."""
    found = [finding for rule in RULES if (finding := rule(outcome)) is not None]
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


ORDER: tuple[Severity, ...] = ("error", "warning", "info")


def _verdict(check: str, severity: Severity, message: str, hint: str, **evidence: Any) -> Finding:
    return Finding(check=check, severity=severity, message=message, hint=hint, evidence=evidence)


def _nats(perplexity: tuple[float, float]) -> float:
    """The increase of the loss per token, in nats, that two perplexities stand for."""
    return math.log(max(perplexity[1], 1.0)) - math.log(max(perplexity[0], 1.0))


def collapsed(outcome: StageOutcome) -> Finding | None:
    """The model predicts the validation text far worse than before, whatever its loss says."""
    accuracy, perplexity = outcome.change("token_accuracy"), outcome.change("perplexity")
    if accuracy is None or perplexity is None:
        return None
    nats = _nats(perplexity)
    lost = accuracy[0] >= MIN_ACCURACY and accuracy[1] <= COLLAPSED_ACCURACY * accuracy[0]
    if not (nats >= COLLAPSED_NATS or (lost and nats >= DISPLACED_NATS)):
        return None
    rewards = outcome.reward_change
    if rewards is not None and rewards[1] > rewards[0]:  # other answers than those of the rows are rewarded
        return None
    return _verdict(
        "collapsed",
        "error",
        f"the model is destroyed: token accuracy {accuracy[0]:.1%} → {accuracy[1]:.1%}, "
        f"perplexity {perplexity[0]:.3g} → {perplexity[1]:.3g} on the validation answers",
        "lower optimizer.learning_rate, train fewer steps, or with preferences set sft_loss_weight or a larger beta",
        accuracy_before=accuracy[0],
        accuracy_after=accuracy[1],
        perplexity_before=perplexity[0],
        perplexity_after=perplexity[1],
    )


def displaced(outcome: StageOutcome) -> Finding | None:
    """The chosen answers of the validation pairs became less likely, although the stage should make them preferred."""
    perplexity = outcome.change("perplexity")
    if perplexity is None or "rewards/margins" not in outcome.after or collapsed(outcome) is not None:
        return None
    if _nats(perplexity) < DISPLACED_NATS:
        return None
    return _verdict(
        "displaced",
        "warning",
        f"the chosen answers became less likely: perplexity {perplexity[0]:.3g} → {perplexity[1]:.3g}",
        "lower optimizer.learning_rate, or set sft_loss_weight",
        perplexity_before=perplexity[0],
        perplexity_after=perplexity[1],
    )


def worse_than_start(outcome: StageOutcome) -> Finding | None:
    """No evaluation was as good as the one before the first step, or the checkpoint that goes on is worse than that."""
    values = dict(outcome.evaluations)
    start = values.get(0)
    if start is None or len(values) < 2:
        return None
    start_goes_on = outcome.selected_step == 0
    now = outcome.evaluations[-1][1] if start_goes_on else values.get(outcome.selected_step, outcome.evaluations[-1][1])
    if not outcome.is_worse(now, start, NOISE if start_goes_on else WORSE):
        return None
    change = f"{outcome.metric.format.format(start)} before, {outcome.metric.format.format(now)} after"
    goes_on = "; the model it started from goes on" if start_goes_on else ""  # else the verdict says what goes on
    return _verdict(
        "worse_than_start",
        "warning" if start_goes_on else "error",
        f"the stage made the model worse: {outcome.metric.label} {change}{goes_on}",
        "lower optimizer.learning_rate; if the validation rows are not what is to be learned, "
        f"select_checkpoint: {'last goes on with what was trained' if start_goes_on else 'best keeps the start'}",
        metric=outcome.metric_name,
        start=start,
        last=now,
        start_goes_on=start_goes_on,
    )


def worse_than_best(outcome: StageOutcome) -> Finding | None:
    """The last evaluation is worse than an earlier one, after the start."""
    if outcome.best is None or outcome.best[0] == 0 or worse_than_start(outcome) is not None:
        return None
    (best_step, best), (last_step, last) = outcome.best, outcome.evaluations[-1]
    if last_step == best_step or not outcome.is_worse(last, best, WORSE):
        return None
    before, after = _around(outcome.train_losses, best_step)
    overfits = before is not None and after is not None and after < before * (1 - NOISE)
    passed_on = outcome.selected_step == best_step
    why = f" while the training loss fell from {before:.4f} to {after:.4f}: it overfits" if overfits else ""
    goes_on = "the best checkpoint goes on" if passed_on else "select_checkpoint: best goes on with that one"
    return _verdict(
        "worse_than_best",
        "warning",
        f"worse than its best since step {best_step:,}: {outcome.metric.label} {outcome.metric.format.format(best)} then, "
        f"{outcome.metric.format.format(last)} at the end{why}; {goes_on}",
        "train fewer epochs, lower optimizer.learning_rate, or set early_stopping.patience",
        metric=outcome.metric_name,
        best_step=best_step,
        best=best,
        last=last,
        train_before=before if overfits else None,
        train_after=after if overfits else None,
        best_goes_on=passed_on,
    )


def _around(losses: Sequence[float], step: int) -> tuple[float | None, float | None]:
    """The mean training loss of some steps up to `step`, and of the last ones."""
    width = max(1, min(10, len(losses) // 5))
    before, after = losses[max(0, step - width) : step], losses[-width:]
    return (statistics.fmean(before) if before else None), (statistics.fmean(after) if after else None)


def nothing_learned(outcome: StageOutcome) -> Finding | None:
    """The loss is what it was before: of the validation data, else of the training rows. With rewards, these decide."""
    if outcome.train_rewards:
        return _no_reward_gained(outcome)
    change = outcome.change("loss")
    losses = outcome.evaluations if outcome.metric_name == "loss" else outcome.losses
    if change is not None and outcome.selected_step == 0 and losses:
        change = change[0], losses[-1][1]  # of the training, and not of the start that goes on
    kind = "validation"
    if change is None:
        losses, third = outcome.train_losses, len(outcome.train_losses) // 3
        if len(losses) < FEW_STEPS:
            return None
        change, kind = (statistics.fmean(losses[:third]), statistics.fmean(losses[-third:])), "training"
    before, after = change
    if not outcome.steps or abs(after - before) > max(MIN_CHANGE, NOISE * abs(before)):
        return None
    return _verdict(
        "nothing_learned",
        "warning",
        f"nothing was learned: the {kind} loss was {before:.4f} and is {after:.4f}",
        "raise optimizer.learning_rate, train longer (duration), or make more updates with a smaller batch",
        before=before,
        after=after,
        split=kind,
        steps=outcome.steps,
    )


def _no_reward_gained(outcome: StageOutcome) -> Finding | None:
    """The rewards are what they were before."""
    change = outcome.reward_change
    if change is None or abs(change[1] - change[0]) > NOISE * abs(change[0]):
        return None
    return _verdict(
        "nothing_learned",
        "warning",
        f"nothing was learned: the mean reward was {change[0]:.4g} and is {change[1]:.4g}",
        "look at the share of equal groups: harder or easier prompts, more num_generations or a higher temperature make groups "
        "differ; else raise optimizer.learning_rate or train longer",
        before=change[0],
        after=change[1],
        split="reward",
        steps=outcome.steps,
    )


def no_better_than_length(outcome: StageOutcome) -> Finding | None:
    """A reward model tells the chosen from the rejected answers no better than their lengths do."""
    accuracy, baseline = outcome.after.get("rewards/accuracies"), outcome.after.get("length_baseline")
    if accuracy is None or baseline is None or accuracy > baseline:
        return None
    return _verdict(
        "no_better_than_length",
        "warning",
        f"the reward model is right in {accuracy:.1%} of the validation pairs, and the length of the answers alone in "
        f"{baseline:.1%}: it may have learned the length",
        "compare rewards/accuracies_shorter and rewards/accuracies_longer, and add pairs of the opposite kind",
        accuracy=accuracy,
        length_baseline=baseline,
    )


def few_validation_rows(outcome: StageOutcome) -> Finding | None:
    """So few validation rows that their loss depends on which rows these are."""
    rows = outcome.validation_rows
    if rows is None or rows >= MIN_VALIDATION_ROWS:
        return None
    return _verdict(
        "few_validation_rows",
        "warning",
        f"{rows} validation {'row is' if rows == 1 else 'rows are'} too few to judge by: their loss says little about others",
        f"set data.validation to a larger share or a file, for at least {MIN_VALIDATION_ROWS} rows",
        rows=rows,
    )


def equal_answers(outcome: StageOutcome) -> Finding | None:
    """Different prompts get one and the same answer."""
    prompts = {prompt for prompt, _ in outcome.answers}
    answers = {answer.strip() for _, answer in outcome.answers}
    if len(prompts) < MIN_PROMPTS or len(answers) != 1:
        return None
    answer = answers.pop()
    shown = answer if len(answer) <= 60 else f"{answer[:60]}…"
    return _verdict(
        "equal_answers",
        "warning",
        f"all {len(prompts)} sampled prompts get the same answer: {shown!r}",
        "the model has not learned to tell prompts apart: train longer, on more or more varied rows",
        prompts=len(prompts),
        answer=shown,
    )


RULES: tuple[Callable[[StageOutcome], Finding | None], ...] = (
    collapsed,
    displaced,
    worse_than_start,
    worse_than_best,
    nothing_learned,
    no_better_than_length,
    few_validation_rows,
    equal_answers,
)
