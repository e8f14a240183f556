"""The table of metrics of answers: how one answer is measured, and how measured answers make the value of a set."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from fledge.errors import FledgeError
from fledge.evaluate.answers import RIGHT, AnsweredRow, Mark, answer_f1, field_f1, is_object, mark
from fledge.evaluate.bleu import BleuScore, corpus_bleu, corpus_chrf, sentence_score
from fledge.evaluate.intervals import bootstrap_interval, percentiles, resampled_sums, wilson_interval
from fledge.evaluate.metrics.answer import Answer
from fledge.evaluate.metrics.identity import is_identity_template
from fledge.evaluate.metrics.language import is_wrong_language
from fledge.evaluate.metrics.off_topic import is_off_topic
from fledge.evaluate.metrics.overlap import copies_prompt, rouge_l, rouge_n, rouge_signature
from fledge.evaluate.metrics.refusal import answer_kind
from fledge.evaluate.metrics.repetition import distinct, loop_at_end, repetition
from fledge.evaluate.records import MetricValue
from fledge.metric_names import METRIC_NAMES, OF_100, SHARE, MetricName

OfAnswer = Callable[[Answer], float | bool | None]
OfSet = Callable[[str, Sequence[Answer], Sequence[float]], MetricValue]


@dataclass(frozen=True, kw_only=True)
class AnswerMetric:
    """A metric of answers.

    `of_answer`: the value of one, None where the metric does not apply to it. `of_set`: that of all answers to which it
    applies, at least one, from its name, these answers and their values. `needs_gain`: whether answers must have gains.
    `needs_sacrebleu`: whether that library computes it.
    """

    name: str
    of_answer: OfAnswer
    of_set: OfSet
    needs_gain: bool = False
    needs_sacrebleu: bool = False

    @property
    def facts(self) -> MetricName:
        """Its name in sentences, unit and direction."""
        return METRIC_NAMES[self.name]


# -- one answer ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _marked(answer: Answer) -> Mark | None:
    """The comparison with the reference; None without one."""
    if answer.expected is None:
        return None
    reason = "length" if answer.finish_reason == "length" else "stop"
    row = AnsweredRow(where="", question=answer.prompt, expected=answer.expected, given=answer.given, finish_reason=reason)
    return mark(row)


def _exact(answer: Answer) -> bool | None:
    marked = _marked(answer)
    return None if marked is None else marked.kind == RIGHT


def _valid_json(answer: Answer) -> bool | None:
    """Of an answer without a reference, whether it is a JSON object; None where the reference is none."""
    marked = _marked(answer)
    return is_object(answer.given.strip()) if marked is None else marked.valid_json


def _f1(answer: Answer) -> float | None:
    marked = _marked(answer)
    return None if marked is None or marked.valid_json is None else answer_f1(marked)


def _against_reference(score: Callable[[str, str], float]) -> OfAnswer:
    return lambda answer: None if answer.expected is None else score(answer.given, answer.expected)


def _prompt_copy(answer: Answer) -> bool:
    return copies_prompt(answer.prompt, answer.given, answer.expected)


def _ended(answer: Answer) -> bool | None:
    return None if answer.finish_reason is None else answer.finish_reason == "stop"


# -- a set of answers ----------------------------------------------------------------------------------------------------


def _value(
    name: str, value: float, count: int, interval: tuple[float, float] | None, signature: str | None = None
) -> MetricValue:
    better = METRIC_NAMES[name].higher_is_better
    return MetricValue(value=value, interval=interval, count=count, higher_is_better=better, signature=signature)


def _rate(name: str, answers: Sequence[Answer], values: Sequence[float]) -> MetricValue:
    """The share of answers, with Wilson's interval."""
    return _value(name, sum(values) / len(values), len(values), wilson_interval(sum(values), len(values)))


def _mean(name: str, answers: Sequence[Answer], values: Sequence[float], signature: str | None = None) -> MetricValue:
    """The mean of the answers, with an interval of 1,000 resamplings; of lengths that are all equal, none."""
    most = {SHARE: 1.0, OF_100: 100.0}.get(METRIC_NAMES[name].unit)
    counts = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    if most is not None:
        low, high = bootstrap_interval(counts / [most, 1.0], lambda sums: sums[..., 0] / sums[..., 1])
        return _value(name, float(np.mean(values)), len(values), (low * most, high * most), signature)
    sums = resampled_sums(counts)
    low, high = percentiles(sums[:, 0] / sums[:, 1])
    return _value(name, float(np.mean(values)), len(values), (low, high) if low < high else None, signature)


def _rouge(kind: str) -> OfSet:
    return lambda name, answers, values: _mean(name, answers, values, rouge_signature(kind))


def _by_library(score: Callable[[Sequence[str], Sequence[str]], BleuScore]) -> OfSet:
    """The score of all answers together; not the mean of their scores."""

    def of_set(name: str, answers: Sequence[Answer], values: Sequence[float]) -> MetricValue:
        found = score([answer.given for answer in answers], [answer.expected or "" for answer in answers])
        return _value(name, found.value, len(answers), found.interval, found.signature)

    return of_set


def _field_f1(name: str, answers: Sequence[Answer], values: Sequence[float]) -> MetricValue:
    """F1 over the fields of all answers together."""
    score, interval = field_f1([marked for answer in answers if (marked := _marked(answer)) is not None])
    return _value(name, score, len(answers), interval)


def _distinct(name: str, answers: Sequence[Answer], values: Sequence[float]) -> MetricValue:
    """Of all answers together. Resampling would draw answers twice, which repeats their n-grams: there is no interval."""
    return _value(name, distinct([answer.given for answer in answers], 2) or 0.0, len(answers), None)


def _metric(
    name: str, of_answer: OfAnswer, of_set: OfSet = _rate, *, gain: bool = False, sacrebleu: bool = False
) -> AnswerMetric:
    return AnswerMetric(name=name, of_answer=of_answer, of_set=of_set, needs_gain=gain, needs_sacrebleu=sacrebleu)


METRICS: dict[str, AnswerMetric] = {
    metric.name: metric
    for metric in (
        _metric("exact_match", _exact),
        _metric("valid_json", _valid_json),
        _metric("f1", _f1, _field_f1),
        _metric(
            "bleu",
            _against_reference(partial(sentence_score, "bleu")),
            _by_library(partial(corpus_bleu, interval=True)),
            sacrebleu=True,
        ),
        _metric(
            "chrf",
            _against_reference(partial(sentence_score, "chrf")),
            _by_library(partial(corpus_chrf, interval=True)),
            sacrebleu=True,
        ),
        _metric("rouge1", _against_reference(partial(rouge_n, n=1)), _rouge("rouge1")),
        _metric("rouge2", _against_reference(partial(rouge_n, n=2)), _rouge("rouge2")),
        _metric("rouge_l", _against_reference(rouge_l), _rouge("rouge_l")),
        _metric("refusal", lambda answer: answer_kind(answer.given, answer.prompt) == "refusal"),
        _metric("off_topic", is_off_topic, gain=True),
        _metric("identity_template", lambda answer: is_identity_template(answer.prompt, answer.given)),
        _metric("repetition", lambda answer: repetition(answer.given), _mean),
        _metric("distinct_2", lambda answer: distinct([answer.given], 2), _distinct),
        _metric("longest_loop", lambda answer: loop_at_end(answer.given), _mean),
        _metric("prompt_copy", _prompt_copy),
        _metric("wrong_language", lambda answer: is_wrong_language(answer.prompt, answer.given, answer.expected)),
        _metric("ended", _ended),
        _metric("length", lambda answer: len(answer.given.strip()), _mean),
    )
}
"""All metrics of answers. A new one is an entry here and its names in `metric_names`."""


def check_metrics(names: Collection[str], where: str) -> None:
    """Raise FledgeError, with the place in `where`, for a name that is no metric of answers."""
    if unknown := [name for name in names if name not in METRICS]:
        raise FledgeError(f"'{unknown[0]}' is no metric of answers", where=where, hint=f"they are {', '.join(METRICS)}")


def needs_gain(names: Collection[str]) -> bool:
    """Whether one of these metrics reads the gains of an answer."""
    return any(METRICS[name].needs_gain for name in names)


def needs_sacrebleu(names: Collection[str]) -> bool:
    """Whether that library computes one of these metrics."""
    return any(METRICS[name].needs_sacrebleu for name in names)


def measure_answers(names: Collection[str], answers: Sequence[Answer]) -> list[dict[str, float]]:
    """For each answer the values of the metrics that apply to it; 0.0 or 1.0 where it is yes or no."""
    result: list[dict[str, float]] = []
    for answer in answers:
        values = {name: METRICS[name].of_answer(answer) for name in names}
        result.append({name: float(value) for name, value in values.items() if value is not None})
    return result


def measure_set(
    names: Collection[str], answers: Sequence[Answer], values: Sequence[Mapping[str, float]]
) -> dict[str, MetricValue]:
    """The value of each metric of a set, of the answers to which it applies; a metric that applies to none is left out.
    `values`: those of `measure_answers`."""
    result = {}
    for name in names:
        applies = [(answer, one[name]) for answer, one in zip(answers, values, strict=True) if name in one]
        if applies:
            result[name] = METRICS[name].of_set(name, [answer for answer, _ in applies], [value for _, value in applies])
    return result
