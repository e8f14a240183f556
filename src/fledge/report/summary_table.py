"""The stage summary: one row per measure and one cell per stage, for the page and for the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fledge.metric_names import ANSWER_METRICS, METRIC_NAMES, SHARE
from fledge.report import formatting
from fledge.report.i18n import KINDS, UNITS, Text, same, unit_text
from fledge.report.read_run import number, text
from fledge.report.records import Scores, Stage
from fledge.report.series import last_value
from fledge.report.stage_values import (
    metric,
    predicted_memory,
    predicted_seconds,
    preference_accuracy,
    stage_memory,
    stage_mfu,
    stage_seconds,
    stage_speed,
    stage_tokens,
)
from fledge.report.verdicts import read_verdict


@dataclass(frozen=True)
class Cell:
    """One value with its unit. `before` is the value before the stage, `better` tells whether the change is an improvement."""

    value: Text
    unit: Text = UNITS[""]
    before: str | None = None
    better: bool | None = None
    note: Text = UNITS[""]

    @property
    def plain(self) -> str:
        """The cell as plain English text."""
        return self.plain_in("en")

    def plain_in(self, code: str) -> str:
        """The cell as plain text in a language."""
        arrow = f"{self.before} → " if self.before is not None else ""
        value, unit, note = (getattr(words, code) for words in (self.value, self.unit, self.note))
        return " ".join(word for word in (f"{arrow}{value}", unit, note) if word)


@dataclass(frozen=True)
class Row:
    """One measure: its label and one cell per stage; None stands for a value that was not recorded."""

    label: Text
    cells: tuple[Cell | None, ...]


def tokens_cell(stage: Stage) -> Cell | None:
    """The tokens trained on, or the planned tokens while none are recorded."""
    trained, planned = stage_tokens(stage), number(stage.plan.get("tokens"))
    if trained is None and planned is not None:
        return Cell(same(formatting.compact(planned)), Text("tokens planned", "词元（计划）"))
    return plain_cell(trained, "tokens", formatting.compact)


def plain_cell(value: float | None, unit: str, format_: Callable[[float], str]) -> Cell | None:
    """A value with its unit, or None when there is no value."""
    return None if value is None else Cell(same(format_(value)), unit_text(unit))


def change_cell(
    before: float | None, after: float | None, unit: str, format_: Callable[[float], str], falling: bool | None
) -> Cell | None:
    """A value after the stage with its value before. `falling`: whether lower is better; None where neither is."""
    if after is None and before is None:
        return None
    if after is None:
        return Cell(Text("not recorded", "未记录"), UNITS[""], before=format_(before or 0.0))
    better = None
    if falling is not None and before is not None and format_(before) != format_(after):
        better = (after < before) if falling else (after > before)
    return Cell(same(format_(after)), unit_text(unit), formatting.format_or_none(format_, before), better)


def kind_cell(stage: Stage) -> Cell | None:
    """The kind of the stage in words."""
    return Cell(KINDS.get(stage.kind, same(stage.kind))) if stage.kind else None


def size_of_model(stage: Stage) -> Cell | None:
    """The number of parameters."""
    return plain_cell(number(stage.plan.get("parameters")), "parameters", formatting.compact)


def trained_share(stage: Stage) -> tuple[float, float] | None:
    """Number and share of the trained parameters, where they are not all of them."""
    trained, parameters = stage.trained or (0, 0)
    return (trained, trained / parameters) if 0 < trained < parameters else None


def trained_cell(stage: Stage) -> Cell | None:
    """The trained parameters with their share, where an adapter is trained."""
    share = trained_share(stage)
    if share is None:
        return None
    percent = formatting.percent(share[1])
    return Cell(same(formatting.compact(share[0])), Text(f"parameters ({percent} %)", f"参数（{percent} %）"))


def steps_cell(stage: Stage) -> Cell | None:
    """The steps done, with the planned steps if some are missing."""
    done, planned = last_value(stage.events.steps, "step"), number(stage.plan.get("steps"))
    if done is None:
        return None if planned is None else Cell(same(formatting.whole(planned)), Text("steps planned", "步（计划）"))
    if planned is None or done >= planned:
        return Cell(same(formatting.whole(done)), UNITS["steps"])
    target = formatting.whole(planned)
    return Cell(same(formatting.whole(done)), Text(f"of {target} steps", f"/ {target} 步"))


def size_cell(value: float | None, format_: Callable[[float], str]) -> Cell | None:
    """A value whose formatted text already ends in its unit."""
    return None if value is None else Cell(same(format_(value)))


def score_cell(stage: Stage, pick: Callable[[Scores], float | None], interval: bool) -> Cell | None:
    """A score on questions with known answers, in percent, with its 95 % interval when `interval` is set."""
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


def natural_cell(stage: Stage) -> Cell | None:
    """The share of acceptable answers to prompts in natural words, with its 95 % interval."""
    natural = stage.world.natural if stage.world else None
    if natural is None:
        return None
    ends = [formatting.percent(end) for end in natural.interval or ()]
    note = same(f"[{', '.join(ends)}] %") if ends else UNITS[""]
    return Cell(same(formatting.percent(natural.acceptable)), UNITS["%"], note=note)


def prompts_cell(stage: Stage) -> Cell | None:
    """The pass rate of the last prompt tests. None are run before the stage, so the first ones are named with their step."""
    rows = [(row, rate) for row in stage.events.prompt_tests if (rate := number(row.get("prompt_tests/pass_rate"))) is not None]
    if not rows:
        return None
    (first, first_rate), (_, last_rate) = rows[0], rows[-1]
    note = UNITS[""]
    if len(rows) > 1:
        rate, step = formatting.percent(first_rate), formatting.whole(number(first.get("step")) or 0)
        note = Text(f"({rate} % after step {step})", f"（第 {step} 步后 {rate} %）")
    return Cell(same(formatting.percent(last_rate)), UNITS["%"], note=note)


def verdict_cell(stage: Stage) -> Cell | None:
    """The verdicts on the stage in a few words."""
    found = [read_verdict(finding) for finding in stage.verdicts]
    if not found:
        return None
    words = Text("; ".join(one.label.en for one in found), "；".join(one.label.zh for one in found))
    return Cell(words, better=False)


def without_praise(stage: Stage, cell: Cell | None) -> Cell | None:
    """The cell; for a stage with a verdict of an error, no change of it counts as an improvement."""
    is_bad = any(finding.get("severity") == "error" for finding in stage.verdicts)
    return replace(cell, better=None) if cell is not None and cell.better and is_bad else cell


def stop_cell(stage: Stage) -> Cell | None:
    """The reason why the stage ended: the recorded one, or that all steps are done."""
    if stage.events.stops:
        return Cell(same(text(stage.events.stops[-1].get("reason")) or "?"))
    done, planned = last_value(stage.events.steps, "step"), number(stage.plan.get("steps"))
    if done is not None and planned is not None and done >= planned:
        return Cell(Text("all steps done", "完成全部步数"))
    return None


def predicted_time_cell(stage: Stage) -> Cell | None:
    """The predicted time of the stage, and where the measured one lies."""
    predicted, took = predicted_seconds(stage), stage_seconds(stage)
    if predicted is None:
        return None
    low, high = (formatting.duration(end) for end in predicted)
    note = Text("", "")
    if took is not None and stage.prediction.get("measured"):
        place = "inside" if predicted[0] <= took <= predicted[1] else "below" if took < predicted[0] else "above"
        note = Text(f"(measured: {place})", f"（实测：{PLACES_ZH[place]}）")
    return Cell(Text(f"{low} to {high}", f"{low} 到 {high}"), note=note)


PLACES_ZH = {"inside": "在范围内", "below": "更短", "above": "更长"}
ANSWER_SCORES = ("reward", *ANSWER_METRICS)


def answer_score(name: str) -> tuple[tuple[str, str], tuple[str, Callable[[float], str], bool | None]]:
    """The label of a score of answers in English and Chinese; its unit, its format, and whether a lower one is better."""
    facts = METRIC_NAMES[name]
    unit, format_ = ("%", formatting.percent) if facts.unit == SHARE else (facts.unit, formatting.three_figures)
    falling = None if facts.higher_is_better is None else not facts.higher_is_better
    return (facts.label[0].upper() + facts.label[1:], facts.chinese), (unit, format_, falling)


def stage_rows(stages: Sequence[Stage]) -> list[Row]:
    """All rows of the summary. Optional measures appear only when some stage recorded them."""

    def row(en: str, zh: str, cell: Callable[[Stage], Cell | None]) -> Row:
        return Row(Text(en, zh), tuple(without_praise(stage, cell(stage)) for stage in stages))

    def before_and_after(name: str, unit: str, format_: Callable[[float], str], falling: bool | None):
        return lambda s: change_cell(metric(s, name, "before"), metric(s, name, "after"), unit or s.loss_unit, format_, falling)

    always = [
        row("Kind", "类型", kind_cell),
        row("Model size", "模型规模", size_of_model),
        row("Context", "上下文长度", lambda s: plain_cell(number(s.plan.get("context")), "tokens", formatting.compact)),
        row("Steps", "步数", steps_cell),
        row("Tokens seen", "训练词元", tokens_cell),
        row("Time", "用时", lambda s: size_cell(stage_seconds(s), formatting.duration)),
        row("Speed", "速度", lambda s: plain_cell(stage_speed(s), "tokens/s", formatting.compact)),
        row("Peak memory", "内存峰值", lambda s: size_cell(stage_memory(s), formatting.size)),
        row("Validation loss", "验证损失", before_and_after("loss", "", formatting.loss, True)),
        row("Perplexity", "困惑度", before_and_after("perplexity", "choices", formatting.three_figures, True)),
        row("Token accuracy", "词元准确率", before_and_after("token_accuracy", "%", formatting.percent, False)),
    ]
    optional = [
        row("Trained", "训练的参数", trained_cell),
        row("Predicted time", "预计用时", predicted_time_cell),
        row("Predicted memory", "预计内存", lambda s: size_cell(predicted_memory(s), formatting.size)),
        row("Bits per byte", "每字节比特数", before_and_after("bits_per_byte", "bits", formatting.loss, True)),
        row("Share of the peak (MFU)", "占峰值比例（MFU）", lambda s: plain_cell(stage_mfu(s), "%", formatting.percent)),
        row(
            "Preference accuracy",
            "偏好准确率",
            lambda s: change_cell(
                preference_accuracy(s, "before"), preference_accuracy(s, "after"), "%", formatting.percent, False
            ),
        ),
        row(
            "Chosen answer more likely",
            "被选答案概率更高",
            before_and_after("logps/accuracies", "%", formatting.percent, False),
        ),
        row("Reward margin", "奖励差", before_and_after("rewards/margins", "nats", formatting.loss, False)),
        *(row(*label, before_and_after(name, *shown)) for name in ANSWER_SCORES for label, shown in [answer_score(name)]),
        row("Exact match", "完全匹配率", lambda s: score_cell(s, lambda scores: scores.exact_match, True)),
        row("Natural prompts", "自然提问合格率", natural_cell),
        row("Habit rate", "不良习惯率", lambda s: score_cell(s, lambda scores: scores.habit_rate, False)),
        row("Prompt tests passed", "提示测试通过率", prompts_cell),
        row("Ended because", "结束原因", stop_cell),
        row("Verdict", "结论", verdict_cell),
    ]
    return always + [measure for measure in optional if any(measure.cells)]
