"""How the losses of tokens are distributed, before and after a stage: by size, and by position in the text."""

import math
from collections.abc import Callable, Mapping

from fledge.report.figures import Chart, Series, if_recorded
from fledge.report.i18n import UNITS, WORDS, Text
from fledge.report.read_run import mapping, mappings, number
from fledge.report.records import Stage
from fledge.report.series import Points

POSITION = Text("position (tokens)", "位置（词元）")


def loss_charts(stage: Stage) -> list[Chart]:
    """The percentiles of the losses of target tokens, their histogram, and their mean by position, as far as they were
    recorded."""
    return if_recorded(
        Chart(
            name="loss-percentiles",
            title=Text("Loss of tokens by percentile", "词元损失的百分位"),
            unit=UNITS["nats/token"],
            series=_moments(stage, _percentiles, markers=True),
            from_zero=True,
            x_title=Text("% of tokens at or below", "% 的词元不高于此"),
        ),
        Chart(
            name="loss-histogram",
            title=Text("Losses of tokens", "词元损失的分布"),
            unit=Text("% of tokens", "% 的词元"),
            series=_moments(stage, _histogram),
            from_zero=True,
            x_title=Text("nats; the last point has all above", "奈特；最后一点含更大的损失"),
        ),
        Chart(
            name="loss-by-position",
            title=Text("Loss by position", "各位置的损失"),
            unit=UNITS["nats/token"],
            series=_moments(stage, _positions, markers=True),
            from_zero=True,
            x_title=POSITION,
        ),
    )


def _moments(stage: Stage, points_of: Callable[[Mapping[str, object]], Points], markers: bool = False) -> tuple[Series, ...]:
    """The curves before and after the stage."""
    found = []
    for evaluation, role, name in (
        (stage.before, "c7", WORDS["before"]),
        (stage.after, "main", WORDS["after"]),
    ):
        points = points_of(evaluation.losses) if evaluation is not None else []
        if points:
            found.append(Series(points=points, role=role, name=name, markers=markers))
    return tuple(found)


def _percentiles(losses: Mapping[str, object]) -> Points:
    rows = [(number(row.get("percent")), number(row.get("loss"))) for row in mappings(losses.get("loss_percentiles"))]
    return [(percent, loss) for percent, loss in rows if percent is not None and loss is not None and math.isfinite(loss)]


def _histogram(losses: Mapping[str, object]) -> Points:
    table = mapping(losses.get("loss_histogram"))
    width, counts = number(table.get("width")), table.get("tokens")
    tokens = [number(count) or 0.0 for count in counts] if isinstance(counts, list) else []
    total = sum(tokens)
    return [((place + 0.5) * width, 100 * count / total) for place, count in enumerate(tokens)] if width and total else []


def _positions(losses: Mapping[str, object]) -> Points:
    """The mean loss at the beginning of each group of positions."""
    rows = [(number(row.get("from")), number(row.get("loss"))) for row in mappings(losses.get("loss_by_position"))]
    return [(start, loss) for start, loss in rows if start is not None and loss is not None and math.isfinite(loss)]
