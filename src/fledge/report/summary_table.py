"""The stage summary: one row per measure, one cell per stage, for the page and for the terminal."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fledge.report import formatting
from fledge.report.i18n import KINDS, UNITS, Text, same, unit_text
from fledge.report.read_run import number, text
from fledge.report.records import Scores, Stage
from fledge.report.series import last


@dataclass(frozen=True)
class Cell:
    value: Text
    unit: Text = UNITS[""]
    before: str | None = None
    better: bool | None = None
    note: Text = UNITS[""]

    @property
    def plain(self) -> str:
        arrow = f"{self.before} → " if self.before is not None else ""
        return " ".join(part for part in (f"{arrow}{self.value.en}", self.unit.en, self.note.en) if part)


@dataclass(frozen=True)
class Row:
    label: Text
    cells: tuple[Cell | None, ...]


def metric(stage: Stage, name: str, moment: str) -> float | None:
    """A validation metric before or after a stage; the last evaluation stands in for a missing `after`."""
    evaluation = stage.before if moment == "before" else stage.after
    found = evaluation.metrics.get(name) if evaluation else None
    if found is None and moment == "after":
        return last(stage.events.evals, f"eval/{name}")
    return found


def stage_seconds(stage: Stage) -> float | None:
    return last(stage.events.resources, "system/seconds")


def stage_tokens(stage: Stage) -> float | None:
    return last(stage.events.steps, "train/tokens")


def tokens_cell(stage: Stage) -> Cell | None:
    seen, planned = stage_tokens(stage), number(stage.plan.get("tokens"))
    if seen is None and planned is not None:
        return Cell(same(formatting.compact(planned)), Text("tokens planned", "词元（计划）"))
    return plain_cell(seen, "tokens", formatting.compact)


def stage_speed(stage: Stage) -> float | None:
    speeds = [number(row.get("system/tokens_per_second")) for row in stage.events.resources]
    known = [speed for speed in speeds if speed is not None and math.isfinite(speed)]
    if known:
        return statistics.median(known)
    seconds, tokens = stage_seconds(stage), stage_tokens(stage)
    return tokens / seconds if seconds and tokens else None


def stage_use(stage: Stage) -> float | None:
    """Median share of the machine's measured peak."""
    shares = [number(row.get("system/mfu")) for row in stage.events.resources]
    known = [share for share in shares if share is not None and math.isfinite(share)]
    return statistics.median(known) if known else None


def stage_memory(stage: Stage) -> float | None:
    sizes = [number(row.get("system/peak_memory_bytes", row.get("system/memory_bytes"))) for row in stage.events.resources]
    return max((size for size in sizes if size is not None), default=None)


def preference_accuracy(stage: Stage, moment: str) -> float | None:
    """None too while policy and reference still agree: every pair is then a tie, which is no 0 %."""
    found = metric(stage, "rewards/accuracies", moment)
    if found == 0.0 and abs(metric(stage, "rewards/margins", moment) or 0.0) < 1e-6:
        return None
    if found is None and moment == "after" and stage.world:
        return stage.world.preference_accuracy
    return found


def plain_cell(value: float | None, unit: str, format_: Callable[[float], str]) -> Cell | None:
    return None if value is None else Cell(same(format_(value)), unit_text(unit))


def change_cell(
    before: float | None, after: float | None, unit: str, format_: Callable[[float], str], falling: bool
) -> Cell | None:
    if after is None and before is None:
        return None
    if after is None:
        return Cell(Text("not recorded", "未记录"), UNITS[""], before=format_(before or 0.0))
    better = None
    if before is not None and format_(before) != format_(after):
        better = (after < before) if falling else (after > before)
    return Cell(same(format_(after)), unit_text(unit), formatting.spelled(format_, before), better)


def kind_cell(stage: Stage) -> Cell | None:
    return Cell(KINDS.get(stage.kind, same(stage.kind))) if stage.kind else None


def steps_cell(stage: Stage) -> Cell | None:
    done, planned = last(stage.events.steps, "step"), number(stage.plan.get("steps"))
    if done is None:
        return None if planned is None else Cell(same(formatting.whole(planned)), Text("steps planned", "步（计划）"))
    if planned is None or done >= planned:
        return Cell(same(formatting.whole(done)), UNITS["steps"])
    goal = formatting.whole(planned)
    return Cell(same(formatting.whole(done)), Text(f"of {goal} steps", f"/ {goal} 步"))


def size_cell(value: float | None, format_: Callable[[float], str]) -> Cell | None:
    """A quantity whose spelling already ends in its unit."""
    return None if value is None else Cell(same(format_(value)))


def score_cell(stage: Stage, pick: Callable[[Scores], float | None], interval: bool) -> Cell | None:
    if stage.world is None:
        return None
    value = pick(stage.world.overall)
    if value is None:
        return None
    note = UNITS[""]
    if interval and stage.world.interval:
        low, high = (formatting.percent(end) for end in stage.world.interval)
        note = same(f"[{low}, {high}] %")
    return Cell(same(formatting.percent(value)), UNITS["%"], note=note)


def prompts_cell(stage: Stage) -> Cell | None:
    """The first and the last time that the regression prompts were asked."""
    rates = [rate for row in stage.events.regressions if (rate := number(row.get("prompt_tests/pass_rate"))) is not None]
    if not rates:
        return None
    return change_cell(rates[0] if len(rates) > 1 else None, rates[-1], "%", formatting.percent, False)


def stop_cell(stage: Stage) -> Cell | None:
    if stage.events.stops:
        return Cell(same(text(stage.events.stops[-1].get("reason")) or "?"))
    done, planned = last(stage.events.steps, "step"), number(stage.plan.get("steps"))
    if done is not None and planned is not None and done >= planned:
        return Cell(Text("all steps done", "完成全部步数"))
    return None


def stage_rows(stages: Sequence[Stage]) -> list[Row]:
    def row(en: str, zh: str, cell: Callable[[Stage], Cell | None]) -> Row:
        return Row(Text(en, zh), tuple(cell(stage) for stage in stages))

    def changed(name: str, unit: str, format_: Callable[[float], str], falling: bool):
        return lambda s: change_cell(
            metric(s, name, "before"), metric(s, name, "after"), unit or s.loss_unit, format_, falling
        )

    always = [
        row("Kind", "类型", kind_cell),
        row(
            "Model size",
            "模型规模",
            lambda s: plain_cell(number(s.plan.get("parameters")), "parameters", formatting.compact),
        ),
        row("Context", "上下文长度", lambda s: plain_cell(number(s.plan.get("context")), "tokens", formatting.compact)),
        row("Steps", "步数", steps_cell),
        row("Tokens seen", "训练词元", tokens_cell),
        row("Time", "用时", lambda s: size_cell(stage_seconds(s), formatting.duration)),
        row("Speed", "速度", lambda s: plain_cell(stage_speed(s), "tokens/s", formatting.compact)),
        row("Peak memory", "内存峰值", lambda s: size_cell(stage_memory(s), formatting.size)),
        row("Validation loss", "验证损失", changed("loss", "", formatting.loss, True)),
        row("Perplexity", "困惑度", changed("perplexity", "choices", formatting.three, True)),
        row("Token accuracy", "词元准确率", changed("token_accuracy", "%", formatting.percent, False)),
    ]
    optional = [
        row("Bits per byte", "每字节比特数", changed("bits_per_byte", "bits", formatting.loss, True)),
        row("Share of the peak (MFU)", "占峰值比例（MFU）", lambda s: plain_cell(stage_use(s), "%", formatting.percent)),
        row(
            "Preference accuracy",
            "偏好准确率",
            lambda s: change_cell(
                preference_accuracy(s, "before"), preference_accuracy(s, "after"), "%", formatting.percent, False
            ),
        ),
        row("Reward margin", "奖励差", changed("rewards/margins", "nats", formatting.loss, False)),
        row("Exact match", "完全匹配率", lambda s: score_cell(s, lambda scores: scores.exact_match, True)),
        row("Habit rate", "不良习惯率", lambda s: score_cell(s, lambda scores: scores.habit_rate, False)),
        row("Regression prompts passed", "回归提示通过率", prompts_cell),
        row("Ended because", "结束原因", stop_cell),
    ]
    return always + [one for one in optional if any(one.cells)]
