"""The few sentences a reader should take away, drawn from the numbers alone."""

import re

from fledge.report import formatting
from fledge.report.i18n import KINDS, Text, same, unit_text
from fledge.report.read_run import number
from fledge.report.records import Run, Stage, World
from fledge.report.summary_table import metric, preference_accuracy, stage_tokens


def verdict_lines(run: Run) -> list[tuple[str, Text]]:
    """(stage name, sentence) per stage, then one sentence about what went wrong, if anything did."""
    lines: list[tuple[str, Text]] = []
    previous: World | None = None
    for stage in run.stages:
        parts = [part for part in (loss_part(stage), preference_part(stage), world_part(stage.world, previous)) if part]
        opening = opening_part(stage)
        if not parts:
            parts = [Text("no validation was recorded", "没有验证记录")]
        lines.append((stage.name, joined(opening, parts)))
        previous = stage.world or previous
    return lines


def joined(opening: Text, parts: list[Text]) -> Text:
    en = "; ".join(part.en for part in parts)
    zh = "；".join(part.zh for part in parts)
    return Text(unbroken(f"{opening.en}: {en}."), unbroken(f"{opening.zh}：{zh}。"))


def unbroken(line: str) -> str:
    """Keeps a number and the `%` or the `M` after it on one line."""
    return re.sub(r"(?<=\d) (?=%|[kMBT]\b)", "\u00a0", line)


def opening_part(stage: Stage) -> Text:
    kind = KINDS.get(stage.kind, same(stage.kind or stage.name))
    tokens, size = stage_tokens(stage), number(stage.plan.get("parameters"))
    en, zh = kind.en[:1].upper() + kind.en[1:], kind.zh
    if size is not None:
        en, zh = f"{en} of {formatting.compact(size)} parameters", f"{zh}（{formatting.compact(size)} 参数）"
    if tokens is not None:
        en, zh = f"{en} on {formatting.compact(tokens)} tokens", f"{zh}，{formatting.compact(tokens)} 词元"
    return Text(en, zh)


def moved(before: str, after: str, rose: bool) -> Text:
    if before == after:
        return Text(f"stayed at {after}", f"保持在 {after}")
    verb = Text("rose", "升") if rose else Text("fell", "降")
    return Text(f"{verb.en} from {before} to {after}", f"由 {before} {verb.zh}至 {after}")


def loss_part(stage: Stage) -> Text | None:
    before, after = metric(stage, "loss", "before"), metric(stage, "loss", "after")
    unit = unit_text(stage.loss_unit)
    if after is None:
        return None
    if before is None:
        return Text(f"validation loss {formatting.loss(after)} {unit.en}", f"验证损失 {formatting.loss(after)} {unit.zh}")
    change = moved(formatting.loss(before), formatting.loss(after), after > before)
    part = Text(f"validation loss {change.en} {unit.en}", f"验证损失{change.zh} {unit.zh}")
    old, new = metric(stage, "perplexity", "before"), metric(stage, "perplexity", "after")
    per_token = stage.loss_unit.endswith("/token")  # of such a loss alone, perplexity says the same in other words
    if per_token and old is not None and new is not None:
        spelled = f"{formatting.three(old)} → {formatting.three(new)}"
        part = Text(f"{part.en} (perplexity {spelled})", f"{part.zh}（困惑度 {spelled}）")
    return part


def preference_part(stage: Stage) -> Text | None:
    before, after = preference_accuracy(stage, "before"), preference_accuracy(stage, "after")
    if after is None:
        return None
    if before is None:
        share = f"{formatting.percent(after)} %"
        return Text(f"prefers the chosen answer in {share} of pairs", f"在 {share} 的样本对中偏好被选答案")
    change = moved(f"{formatting.percent(before)} %", f"{formatting.percent(after)} %", after > before)
    return Text(f"preference accuracy {change.en}", f"偏好准确率{change.zh}")


def world_part(world: World | None, previous: World | None) -> Text | None:
    if world is None or world.overall.exact_match is None:
        return None
    part = score_change("exact match", "完全匹配率", world.overall.exact_match, previous and previous.overall.exact_match)
    if world.overall.habit_rate is not None:
        habit = score_change("habit rate", "不良习惯率", world.overall.habit_rate, previous and previous.overall.habit_rate)
        part = Text(f"{part.en}; {habit.en}", f"{part.zh}；{habit.zh}")
    return part


def score_change(en: str, zh: str, now: float, earlier: float | None) -> Text:
    share = f"{formatting.percent(now)} %"
    if earlier is None:
        return Text(f"{en} {share}", f"{zh} {share}")
    change = moved(f"{formatting.percent(earlier)} %", share, now > earlier)
    return Text(f"{en} {change.en}", f"{zh}{change.zh}")
