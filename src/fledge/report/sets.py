"""Results of evaluation sets in a stage's folder: what the report shows of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fledge.evaluate.records import AFTER, BEFORE, ItemResult, MetricValue, SetResult, read_set_results
from fledge.metric_names import METRIC_NAMES, OF_100, SHARE, MetricName
from fledge.report import formatting
from fledge.report.i18n import Text
from fledge.report.records import Problem

MAX_FAILING = 40  # items of a set on the page
MAX_TEXT = 1_000  # characters of a text on the page


@dataclass(frozen=True, kw_only=True)
class SetRow:
    """A metric of a set before and after a stage, as text with 95 % intervals. `better`: whether the change is an improvement
    that the intervals tell apart; None if they overlap, or where neither way is better."""

    label: Text
    before: str
    after: str
    better: bool | None


@dataclass(frozen=True, kw_only=True)
class StageSet:
    """A set of a stage: its metrics, and items whose rules do not hold after the stage, by group."""

    name: str
    kind: str
    count: int
    rows: tuple[SetRow, ...]
    failing: tuple[ItemResult, ...]
    failing_count: int
    notes: tuple[str, ...]


def metric_name(name: str) -> MetricName:
    """What people read about a metric; its own name if this version does not know it."""
    return METRIC_NAMES.get(name) or MetricName(label=name, chinese=name, unit="", higher_is_better=None)


def read_sets(folder: Path, problems: list[Problem]) -> dict[str, SetResult]:
    """The results in a folder by name. One that cannot be read is added to the problems."""
    return read_set_results(folder, lambda file, error: problems.append(Problem("/".join(file.parts[-4:]), None)))


def stage_sets(folder: Path, problems: list[Problem]) -> list[StageSet]:
    """The sets of a stage, from `eval/before` and `eval/after` of its folder."""
    before = read_sets(folder / "eval" / BEFORE, problems)
    after = read_sets(folder / "eval" / AFTER, problems)
    return [_stage_set(before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]


def _stage_set(before: SetResult | None, after: SetResult | None) -> StageSet:
    shown = after or before
    assert shown is not None
    old = before.metrics if before is not None and before.fingerprint == shown.fingerprint else {}
    new: Mapping[str, MetricValue] = {} if after is None else after.metrics
    failing = [item for item in (after.items if after else ()) if item.failures]
    return StageSet(
        name=shown.name,
        kind=shown.kind,
        count=max((value.count for value in shown.metrics.values()), default=len(shown.items)),
        rows=tuple(_row(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])),
        failing=tuple(sorted(failing, key=lambda item: (item.group, item.failures))[:MAX_FAILING]),
        failing_count=len(failing),
        notes=shown.notes,
    )


def _row(name: str, before: MetricValue | None, after: MetricValue | None) -> SetRow:
    facts = metric_name(name)
    better = None
    if before and after and before.interval and after.interval and after.higher_is_better is not None:
        higher, lower = after.interval[0] > before.interval[1], after.interval[1] < before.interval[0]
        better = after.higher_is_better == higher if higher or lower else None
    label = Text(facts.label[:1].upper() + facts.label[1:], facts.chinese)
    return SetRow(label=label, before=_value(before, facts), after=_value(after, facts), better=better)


def _value(value: MetricValue | None, facts: MetricName) -> str:
    """A value with its interval, such as `81.2 % [75.4, 85.9]`; "" without one."""
    if value is None:
        return ""
    written = (lambda number: formatting.percent(number)) if facts.unit == SHARE else formatting.three_figures
    unit = " %" if facts.unit == SHARE else "" if facts.unit in ("", OF_100) else f" {facts.unit}"
    interval = "" if value.interval is None else f" [{written(value.interval[0])}, {written(value.interval[1])}]"
    return f"{written(value.value)}{unit}{interval}"


def cut(text: str | None) -> str:
    """The beginning of a text, with a sign where it was cut."""
    return "" if text is None else text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"
