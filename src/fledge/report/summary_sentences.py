"""The summary of a run in a few sentences, made from its numbers alone."""

import re

from fledge.report import formatting
from fledge.report.i18n import KINDS, Text, same, unit_text
from fledge.report.read_run import number
from fledge.report.records import Run, Stage, World
from fledge.report.stage_values import metric, preference_accuracy, stage_tokens
from fledge.report.summary_table import trained_share
from fledge.report.verdicts import Verdict, read_verdict


def summary_sentences(run: Run) -> list[tuple[str, Text]]:
    """One (stage name, sentence) pair for each stage."""
    lines: list[tuple[str, Text]] = []
    previous: World | None = None
    for stage in run.stages:
        clauses = [
            clause for clause in (loss_clause(stage), preference_clause(stage), world_clause(stage.world, previous)) if clause
        ]
        opening = opening_clause(stage)
        if not clauses:
            clauses = [Text("no validation was recorded", "没有验证记录")]
        lines.append((stage.name, join_clauses(opening, clauses)))
        previous = stage.world or previous
    return lines


def verdict_sentences(stage: Stage) -> list[Verdict]:
    """The verdicts on a stage, the gravest first."""
    return [read_verdict(finding) for finding in stage.verdicts]


def join_clauses(opening: Text, clauses: list[Text]) -> Text:
    """The opening and the clauses as one sentence."""
    en = "; ".join(clause.en for clause in clauses)
    zh = "；".join(clause.zh for clause in clauses)
    return Text(keep_units_attached(f"{opening.en}: {en}."), keep_units_attached(f"{opening.zh}：{zh}。"))


def keep_units_attached(line: str) -> str:
    """The line with no-break spaces between a number and the `%`, `k`, `M`, `B` or `T` after it."""
    return re.sub(r"(?<=\d) (?=%|[kMBT]\b)", "\u00a0", line)


def opening_clause(stage: Stage) -> Text:
    """The opening of the sentence: the kind of the stage, the model's size and the number of training tokens."""
    kind = KINDS.get(stage.kind, same(stage.kind or stage.name))
    tokens, size = stage_tokens(stage), number(stage.plan.get("parameters"))
    en, zh = kind.en[:1].upper() + kind.en[1:], kind.zh
    if size is not None:
        en, zh = f"{en} of {formatting.compact(size)} parameters", f"{zh}（{formatting.compact(size)} 参数）"
    if share := trained_share(stage):
        count, percent = formatting.compact(share[0]), formatting.percent(share[1])
        en, zh = f"{en}, {count} ({percent} %) of them trained,", f"{zh}，训练其中 {count}（{percent} %）"
    if tokens is not None:
        en, zh = f"{en} on {formatting.compact(tokens)} tokens", f"{zh}，{formatting.compact(tokens)} 词元"
    return Text(en, zh)


def change_phrase(before: str, after: str, rose: bool) -> Text:
    """`rose from … to …`, `fell from … to …` or `stayed at …`."""
    if before == after:
        return Text(f"stayed at {after}", f"保持在 {after}")
    verb = Text("rose", "升") if rose else Text("fell", "降")
    return Text(f"{verb.en} from {before} to {after}", f"由 {before} {verb.zh}至 {after}")


def loss_clause(stage: Stage) -> Text | None:
    """The change of the validation loss (and perplexity), or None when no loss was recorded."""
    before, after = metric(stage, "loss", "before"), metric(stage, "loss", "after")
    unit = unit_text(stage.loss_unit)
    if after is None:
        return None
    if before is None:
        return Text(f"validation loss {formatting.loss(after)} {unit.en}", f"验证损失 {formatting.loss(after)} {unit.zh}")
    change = change_phrase(formatting.loss(before), formatting.loss(after), after > before)
    clause = Text(f"validation loss {change.en} {unit.en}", f"验证损失{change.zh} {unit.zh}")
    old, new = metric(stage, "perplexity", "before"), metric(stage, "perplexity", "after")
    per_token = stage.loss_unit.endswith("/token")  # only then is the perplexity the exponential of the loss
    if per_token and old is not None and new is not None:
        spelled = f"{formatting.three_figures(old)} → {formatting.three_figures(new)}"
        clause = Text(f"{clause.en} (perplexity {spelled})", f"{clause.zh}（困惑度 {spelled}）")
    return clause


def preference_clause(stage: Stage) -> Text | None:
    """The change of the share of pairs whose chosen answer is the more likely one, and the accuracy of the rewards, which
    compares with the model before the stage and has no value there. None when neither was recorded."""
    before, after = metric(stage, "logps/accuracies", "before"), metric(stage, "logps/accuracies", "after")
    rewards = preference_accuracy(stage, "after")
    if before is not None and after is not None:
        change = change_phrase(f"{formatting.percent(before)} %", f"{formatting.percent(after)} %", after > before)
        clause = Text(f"pairs whose chosen answer is more likely {change.en}", f"被选答案概率更高的样本对占比{change.zh}")
        if rewards is None:
            return clause
        share = f"{formatting.percent(rewards)} %"
        return Text(f"{clause.en}; reward accuracy {share}", f"{clause.zh}；奖励准确率 {share}")
    before, after = preference_accuracy(stage, "before"), rewards
    if after is None:
        return None
    if before is None:
        share = f"{formatting.percent(after)} %"
        return Text(f"prefers the chosen answer in {share} of pairs", f"在 {share} 的样本对中偏好被选答案")
    change = change_phrase(f"{formatting.percent(before)} %", f"{formatting.percent(after)} %", after > before)
    return Text(f"preference accuracy {change.en}", f"偏好准确率{change.zh}")


def world_clause(world: World | None, previous: World | None) -> Text | None:
    """The change of the scores on questions with known answers, or None when none were recorded."""
    if world is None or world.overall.exact_match is None:
        return None
    clause = score_change("exact match", "完全匹配率", world.overall.exact_match, previous and previous.overall.exact_match)
    if world.overall.habit_rate is not None:
        habit = score_change("habit rate", "不良习惯率", world.overall.habit_rate, previous and previous.overall.habit_rate)
        clause = Text(f"{clause.en}; {habit.en}", f"{clause.zh}；{habit.zh}")
    return clause


def score_change(en: str, zh: str, now: float, earlier: float | None) -> Text:
    """A score in percent, with its change since the earlier stage when there is one."""
    share = f"{formatting.percent(now)} %"
    if earlier is None:
        return Text(f"{en} {share}", f"{zh} {share}")
    change = change_phrase(f"{formatting.percent(earlier)} %", share, now > earlier)
    return Text(f"{en} {change.en}", f"{zh}{change.zh}")
