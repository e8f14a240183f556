"""The rules that turn the figures of a finished stage into reasons of its verdict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fledge.evaluate.comparison import MetricComparison, compare_sets
from fledge.evaluate.intervals import wilson_interval
from fledge.evaluate.records import MetricValue, SetResult
from fledge.evaluate.statistics import LEVEL
from fledge.evaluate.training_targets import TargetFacts
from fledge.evaluate.verdict import Decision, Reason
from fledge.findings import Finding
from fledge.metric_names import METRIC_NAMES
from fledge.plan.evaluation import METRICS, MIN_VALIDATION_ROWS
from fledge.recipe.sections.verdict import NEXT_TOKEN_KINDS, VerdictConfig


@dataclass(frozen=True, kw_only=True)
class StageEvidence:
    """What is known about a finished stage of some `kind`.

    `findings`: of `monitor.verdicts`. `before`, `after`: metrics on validation data, of the start and of what goes on; empty
    without such data. `validation_rows`: their number, `deciding_rows`: of those that `metric` is of, which says whether the
    stage has learned. `sets_before`, `sets_after`: results by the name of the set. `targets`:
    of the training rows; None where they were not looked at. `diagnosed`: the `finding` events of the stage.
    """

    kind: str
    config: VerdictConfig
    findings: Sequence[Finding] = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    validation_rows: int | None = None
    deciding_rows: int | None = None
    metric: str = "loss"
    sets_before: Mapping[str, SetResult] = field(default_factory=dict)
    sets_after: Mapping[str, SetResult] = field(default_factory=dict)
    targets: TargetFacts | None = None
    diagnosed: Sequence[Mapping[str, Any]] = ()

    def threshold(self, key: str) -> float | None:
        """A threshold of the recipe; None where it decides nothing."""
        return self.config.thresholds(self.kind)[key]


FINDINGS: dict[str, Decision | None] = {
    "collapsed": "roll back",
    "worse_than_start": "roll back",
    "displaced": "keep training",
    "nothing_learned": "keep training",
    "no_better_than_length": "keep training",
    "equal_answers": "keep training",
    "few_validation_rows": None,
}
"""What a finding on a stage speaks for. `worse_than_best` speaks for a roll back unless the best checkpoint goes on anyway."""
BY_METRIC = ("worse_than_start", "worse_than_best")  # what too few rows of the metric cannot decide


def findings(stage: StageEvidence) -> Iterator[Reason]:
    """What the findings on the stage speak for. Those on validation data decide nothing where there are too few rows."""
    for one in stage.findings:
        decision = FINDINGS.get(one.check)
        if one.check == "worse_than_best" and not one.evidence.get("best_goes_on"):
            decision = "roll back"
        of_validation = one.check == "nothing_learned" and one.evidence.get("split") == "validation"
        rows = stage.validation_rows if of_validation else stage.deciding_rows if one.check in BY_METRIC else None
        if _too_few(rows):
            decision = None
        yield Reason(check=one.check, decision=decision, message=one.message, hint=one.hint, evidence=one.evidence)


def learned(stage: StageEvidence) -> Iterator[Reason]:
    """The metric of the stage became better, which speaks for it, or validation data are less likely than the recipe asks."""
    loss, most = _number(stage.after, "loss"), stage.threshold("max_loss")
    if loss is not None and most is not None and loss > most and not _too_few(stage.validation_rows):
        change, evidence = _change(stage, _shown_loss(stage))
        yield Reason(
            check="loss_above_threshold",
            decision="keep training",
            message=f"the validation loss is {loss:.3f} nats per token, above {most:g} ({change})",
            hint="train longer, on more data, or with a larger model; or set evaluation.verdict.max_loss",
            evidence={**evidence, "loss": loss, "threshold": most, "key": "max_loss"},
        )
        return
    metric, before, after = METRICS[stage.metric], _number(stage.before, stage.metric), _number(stage.after, stage.metric)
    if before is None or after is None or _too_few(stage.deciding_rows):
        return
    change, evidence = _change(stage, _shown_loss(stage) if stage.metric == "loss" else stage.metric)
    if metric.better(after, before, metric.min_change):
        yield Reason(check="learned", decision="release", message=f"the stage has learned: {change}", evidence=evidence)
    elif stage.metric != "loss":  # of a loss, the findings tell it
        message = f"{change}: not better by more than {metric.min_change:g}, which may be chance"
        yield Reason(check="not_better", decision=None, message=message, evidence=evidence)


def _shown_loss(stage: StageEvidence) -> str:
    """What a loss of next tokens is shown as: bits per byte, which do not depend on the tokenizer, where both are known."""
    name = "bits_per_byte"
    is_known = all(_number(metrics, name) is not None for metrics in (stage.before, stage.after))
    return name if stage.kind in NEXT_TOKEN_KINDS and is_known else "loss"


def _change(stage: StageEvidence, name: str) -> tuple[str, dict[str, Any]]:
    """A metric before and after the stage, as text and as evidence."""
    text = f"{METRIC_NAMES[name].label} {_shown(stage.before, name)} → {_shown(stage.after, name)}"
    return text, {"metric": name, "before": _number(stage.before, name), "after": _number(stage.after, name)}


def _too_few(rows: int | None) -> bool:
    """Whether there are rows to measure a metric on, but too few to decide."""
    return rows is not None and rows < MIN_VALIDATION_ROWS


def _is_least(key: str) -> bool:
    """Whether a threshold is the least value that is good enough; else it is the largest."""
    return key.startswith("min_")


def _is_beyond(key: str, bound: float, low: float, high: float) -> bool:
    """Whether an interval lies on the bad side of its threshold as a whole."""
    return high < bound if _is_least(key) else low > bound


BOUNDS: dict[str, tuple[str, str, str]] = {
    "ended": ("min_ended", "of the answers end by themselves", "look whether the end token is trained: fledge data show"),
    "passed": ("min_pass_rate", "of the answers keep all rules", "look at the failing ones in the error cases"),
    "repetition": ("max_repetition", "of the n-grams in answers are repetitions", "train longer, on more varied answers"),
    "prompt_copy": ("max_prompt_copy", "of the answers is copied from their prompts", "train longer, mask the prompts"),
    "refusal": ("max_refusal", "of the answers refuse", "lower the share of refusals in the training rows"),
    "off_topic": (
        "max_off_topic",
        "of the answers have nothing to do with their prompts",
        "look whether the training answers belong to their prompts: fledge data show",
    ),
    "identity_template": (
        "max_identity_template",
        "of the answers say who the assistant is, to prompts that do not ask",
        "lower the share of identity rows: token_fraction, ratio or max_rows of their source",
    ),
    "wrong_language": ("max_wrong_language", "of the answers are in another language", "look at the training rows"),
}
"""Rates of answers: the key of their threshold, what they are, and what to do."""
MENDED = ("refusal", "identity_template", "prompt_copy", "wrong_language")
"""Rates that never roll back by themselves: a stage may well teach to refuse, to say who it is, to quote, or a language."""


def answers(stage: StageEvidence) -> Iterator[Reason]:
    """Rates of the answers to a set, against their thresholds. A rate decides where its interval lies beyond the threshold:
    roll back if it was better before the stage, by more than the chance of one in so many rates, else keep training."""
    tests = sum(
        metric in result.metrics and stage.threshold(key) is not None and metric not in MENDED and _is_same(stage, name)
        for name, result in stage.sets_after.items()
        for metric, (key, *_) in BOUNDS.items()
    )
    for name, result in stage.sets_after.items():
        for metric, (key, what, hint) in BOUNDS.items():
            value, bound = result.metrics.get(metric), stage.threshold(key)
            if value is None or bound is None or not value.count:
                continue
            low, high = value.interval or (value.value, value.value)
            if not _is_beyond(key, bound, value.value, value.value):
                continue
            compared = _compared(stage, name, metric)
            grew_worse = compared is not None and compared.better is False and compared.p_value <= LEVEL / max(tests, 1)
            decides = _is_beyond(key, bound, low, high)
            decision: Decision = "roll back" if grew_worse and metric not in MENDED else "keep training"
            limit = f"{'at least' if _is_least(key) else 'at most'} {bound:.0%}"
            before = "" if compared is None else f"; before the stage {compared.first:.1%}"
            message = f"{name}: {value.value:.1%} [{low:.1%}, {high:.1%}] {what}; {limit} should{before}"
            yield Reason(
                check=metric,
                decision=decision if decides else None,
                message=message if decides else f"{message}; {value.count:,} answers are too few to decide",
                hint=hint,
                evidence={**_evidence(name, metric, value), "threshold": bound, "key": key},
            )


PRIMARY = ("accuracy", "exact_match", "passed", "f1")  # of a set, the first that it has is compared with before


def tasks(stage: StageEvidence) -> Iterator[Reason]:
    """The main figure of each set before and after the stage, item by item. What a set is too small to show decides nothing,
    and what it shows decides only where it is more than the chance of one in so many sets, and more than `max_drop`."""
    compared = [
        (name, one) for name in stage.sets_after if (one := next(filter(None, _primary(stage, name)), None)) is not None
    ]
    most = stage.threshold("max_drop")
    for name, one in compared:
        low, high = one.interval
        change = f"{name}: {one.metric.replace('_', ' ')} {one.first:.1%} → {one.second:.1%} [{low:+.1%}, {high:+.1%}]"
        evidence = {"set": name, "metric": one.metric, "before": one.first, "after": one.second, "interval": one.interval}
        evidence |= {"count": one.count, "p_value": one.p_value, "detectable": one.detectable}
        if not one.decides:
            needed = "" if one.items_needed is None else f"; {one.items_needed:,} would be needed"
            message = f"{change}: {one.count:,} items are too few to tell a difference of {one.relevant:.0%}{needed}"
            yield Reason(check="too_few_items", decision=None, message=message, evidence=evidence)
        elif one.better is False and one.p_value <= LEVEL / len(compared):
            is_large = most is not None and -one.difference > most
            yield Reason(
                check="worse_answers",
                decision="roll back" if is_large else None,
                message=f"{change}: worse than before the stage"
                + ("" if is_large else ", and less than evaluation.verdict.max_drop"),
                hint="mix rows of what is to be kept into the stage, lower optimizer.learning_rate, or train fewer steps",
                evidence={**evidence, "threshold": most, "key": "max_drop"},
            )
        elif one.better:
            yield Reason(check="better_answers", decision="release", message=f"{change}: better than before", evidence=evidence)


def _primary(stage: StageEvidence, name: str) -> Iterator[MetricComparison | None]:
    return (_compared(stage, name, metric) for metric in PRIMARY)


def forgetting(stage: StageEvidence) -> Iterator[Reason]:
    """Texts of before the stage became less likely."""
    for name in stage.sets_after:
        one = _compared(stage, name, "bits_per_byte")
        if one is None or not one.first or one.better is not False:
            continue
        share, most = one.difference / one.first, stage.threshold("max_forgetting")
        is_large = most is not None and share > most
        yield Reason(
            check="forgetting",
            decision="roll back" if is_large else None,
            message=f"{name}: bits per byte {one.first:.3f} → {one.second:.3f} ({share:+.1%}): less of it is known than before",
            hint="mix such texts into the stage, lower optimizer.learning_rate, or train an adapter",
            evidence={
                "set": name,
                "before": one.first,
                "after": one.second,
                "interval": one.interval,
                "count": one.count,
                "share": share,
                "threshold": most,
                "key": "max_forgetting",
            },
        )


def scores(stage: StageEvidence) -> Iterator[Reason]:
    """The BLEU-4 of answers to validation questions is below its threshold."""
    value, least = _number(stage.after, "bleu"), stage.threshold("min_bleu")
    if value is None or least is None or value >= least:
        return
    yield Reason(
        check="bleu",
        decision="keep training",
        message=f"BLEU-4 of the answers is {value:.1f} of 100, below {least:g}",
        hint="train longer; BLEU of free answers is low by nature: set evaluation.verdict.min_bleu to what is enough here",
        evidence={"after": value, "threshold": least, "key": "min_bleu"},
    )


def targets(stage: StageEvidence) -> Iterator[Reason]:
    """The training rows teach what they should not: prompts, answers without an end, answers to other prompts."""
    facts = stage.targets
    if facts is None:
        return
    blind = facts.telling < TELLING
    checks: tuple[tuple[str, str, int, int, Decision, str, str], ...] = (
        ("prompt_targets", "max_prompt_targets", facts.prompt_targets, facts.targets, "roll back",
         "of the trained tokens stand in prompts, not in answers",
         "train the answers only: look at the weights with fledge data show"),
        ("trained_ends", "min_trained_ends", facts.trained_ends, facts.answers, "roll back",
         "of the training answers have an end that is trained: the model cannot learn to stop",
         "train the token that ends an answer: look at the weights with fledge data show"),
        ("identity_targets", "max_identity_targets", facts.identities, facts.answers, "keep training",
         "of the training answers say who the assistant is: they will swamp the others",
         "lower the share of identity rows: token_fraction, ratio or max_rows of their source"),
        ("misfits", "max_misfits", facts.misfits, facts.compared, "keep training" if blind else "roll back",
         "of the training answers are likelier after another prompt than after their own: they may belong to other prompts"
         + (", or the model does not read prompts yet" if blind else ""),
         "look whether questions and answers are paired rightly: fledge data show" + ("; else train longer" if blind else "")),
    )  # fmt: skip
    for check, key, count, of, decision, what, hint in checks:
        bound = stage.threshold(key)
        if bound is None or not of:
            continue
        low, high = wilson_interval(count, of)
        if _is_beyond(key, bound, low, high):
            yield Reason(
                check=check,
                decision=decision,
                message=f"{count / of:.1%} [{low:.1%}, {high:.1%}] {what}",
                hint=hint,
                evidence={"value": count / of, "interval": (low, high), "count": of, "threshold": bound, "key": key},
            )


def diagnosed(stage: StageEvidence) -> Iterator[Reason]:
    """The severe causes that the doctor found while the stage trained. They say why; what the model can do decides."""
    newest = {event.get("cause"): event for event in stage.diagnosed}
    for cause, event in newest.items():
        if event.get("severity") == "error":
            yield Reason(
                check="diagnosed",
                decision=None,
                message=f"{event.get('message')} (found while training, at step {event.get('step')})",
                hint=str(event.get("hint") or ""),
                evidence={"cause": cause, "step": event.get("step"), **(event.get("evidence") or {})},
            )


TELLING = 0.2  # nats a token by which the best fitting answers are likelier after their own prompts, at least

RULES: tuple[Callable[[StageEvidence], Iterator[Reason]], ...] = (
    targets,
    findings,
    answers,
    tasks,
    forgetting,
    scores,
    learned,
    diagnosed,
)


def reasons(stage: StageEvidence) -> list[Reason]:
    """All reasons that the figures of a stage give. Misfits alone do not roll back a stage that has learned."""
    found = [reason for rule in RULES for reason in rule(stage)]
    if any(reason.check in IMPROVED and reason.decision == "release" for reason in found):
        found = [_at_most_mended(reason) if reason.check == "misfits" else reason for reason in found]
    return found


IMPROVED = ("learned", "better_answers")  # checks that say that the stage made the model better


def _at_most_mended(reason: Reason) -> Reason:
    return replace(reason, decision="keep training") if reason.decision == "roll back" else reason


def _is_same(stage: StageEvidence, name: str) -> bool:
    """Whether a set was asked the same before and after the stage."""
    before = stage.sets_before.get(name)
    return before is not None and before.fingerprint == stage.sets_after[name].fingerprint


def _compared(stage: StageEvidence, name: str, metric: str) -> MetricComparison | None:
    """A metric of a set before and after the stage; None unless both were asked the same."""
    if not _is_same(stage, name):
        return None
    return compare_sets(stage.sets_before[name], stage.sets_after[name], metrics=(metric,)).metrics.get(metric)


def _evidence(name: str, metric: str, value: MetricValue) -> dict[str, Any]:
    return {"set": name, "metric": metric, "value": value.value, "interval": value.interval, "count": value.count}


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return value if isinstance(value, int | float) else None


def _shown(metrics: Mapping[str, Any], name: str) -> str:
    value = _number(metrics, name)
    return "?" if value is None else f"{value:.3f}"
