"""The verdicts on a stage in English and Chinese, made from their figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fledge.metric_names import METRIC_NAMES, SHARE
from fledge.report import formatting
from fledge.report.i18n import Text, same
from fledge.report.read_run import mapping, number, text

Evidence = Mapping[str, object]


@dataclass(frozen=True)
class Verdict:
    """A verdict for the headline (`sentence`) and for the table (`label`). `severity`: info, warning or error."""

    severity: str
    label: Text
    sentence: Text


LABELS = {
    "collapsed": Text("destroyed", "模型已损坏"),
    "displaced": Text("chosen answers less likely", "被选答案的概率下降"),
    "worse_than_start": Text("worse than its start", "比开始时更差"),
    "worse_than_best": Text("worse than its best", "比最好时更差"),
    "nothing_learned": Text("nothing learned", "没有学到东西"),
    "few_validation_rows": Text("too few validation rows", "验证数据太少"),
    "equal_answers": Text("all answers equal", "所有回答都相同"),
}


def _loss(evidence: Evidence, key: str) -> str:
    return formatting.loss(known(evidence, key))


def _figures(evidence: Evidence, key: str) -> str:
    return formatting.three_figures(known(evidence, key))


def _percent(evidence: Evidence, key: str) -> str:
    return f"{formatting.percent(known(evidence, key))} %"


def known(evidence: Evidence, key: str) -> float:
    """The figure. Raises KeyError if it was not recorded."""
    value = number(evidence.get(key))
    if value is None:
        raise KeyError(key)
    return value


def _collapsed(evidence: Evidence) -> Text:
    accuracy = f"{_percent(evidence, 'accuracy_before')} → {_percent(evidence, 'accuracy_after')}"
    perplexity = f"{_figures(evidence, 'perplexity_before')} → {_figures(evidence, 'perplexity_after')}"
    return Text(
        f"The model is destroyed: token accuracy {accuracy}, perplexity {perplexity} on the validation answers.",
        f"模型已损坏：验证答案的词元准确率 {accuracy}，困惑度 {perplexity}。",
    )


def _displaced(evidence: Evidence) -> Text:
    change = f"{_figures(evidence, 'perplexity_before')} → {_figures(evidence, 'perplexity_after')}"
    return Text(f"The chosen answers became less likely: perplexity {change}.", f"被选答案的概率下降：困惑度 {change}。")


def _metric(evidence: Evidence) -> tuple[Text, Callable[[Evidence, str], str]]:
    """The name of the metric that chooses the checkpoint, and how its values are written."""
    name = text(evidence.get("metric")) or "loss"
    facts = METRIC_NAMES[name]
    return Text(facts.label, facts.chinese), _percent if facts.unit in (SHARE, "") else _loss


def _worse_than_start(evidence: Evidence) -> Text:
    metric, value = _metric(evidence)
    change = f"{value(evidence, 'start')} → {value(evidence, 'last')}"
    start_goes_on = bool(evidence.get("start_goes_on"))
    en = "; the model it started from goes on" if start_goes_on else ""
    zh = "；沿用开始时的模型" if start_goes_on else ""
    return Text(f"The stage made the model worse: {metric.en} {change}{en}.", f"本阶段使模型变差：{metric.zh} {change}{zh}。")


def _worse_than_best(evidence: Evidence) -> Text:
    metric, value = _metric(evidence)
    step, best, last = formatting.whole(known(evidence, "best_step")), value(evidence, "best"), value(evidence, "last")
    best_goes_on = bool(evidence.get("best_goes_on"))
    en = "; the best checkpoint goes on" if best_goes_on else ""
    zh = "；沿用最好的检查点" if best_goes_on else ""
    why = same("")
    if number(evidence.get("train_before")) is not None:
        change = f"{_loss(evidence, 'train_before')} → {_loss(evidence, 'train_after')}"
        why = Text(f" while the training loss fell ({change}): it overfits", f"，而训练损失仍在下降（{change}）：过拟合")
    return Text(
        f"Worse than its best since step {step}: {metric.en} {best} then, {last} at the end{why.en}{en}.",
        f"自第 {step} 步起比最好时更差：当时{metric.zh} {best}，结束时 {last}{why.zh}{zh}。",
    )


def _nothing_learned(evidence: Evidence) -> Text:
    change = f"{formatting.loss(known(evidence, 'before'))} → {formatting.loss(known(evidence, 'after'))}"
    named = {"training": ("training loss", "训练损失"), "reward": ("mean reward", "平均奖励")}
    en, zh = named.get(str(evidence.get("split")), ("validation loss", "验证损失"))
    steps = formatting.whole(known(evidence, "steps"))
    return Text(f"Nothing was learned in {steps} steps: {en} {change}.", f"{steps} 步没有学到东西：{zh} {change}。")


def _few_validation_rows(evidence: Evidence) -> Text:
    rows = formatting.whole(known(evidence, "rows"))
    return Text(f"{rows} validation rows are too few to judge by.", f"只有 {rows} 行验证数据，不足以作出判断。")


def _equal_answers(evidence: Evidence) -> Text:
    prompts, answer = formatting.whole(known(evidence, "prompts")), text(evidence.get("answer"))
    return Text(
        f"All {prompts} sampled prompts get the same answer: “{answer}”.", f"{prompts} 个提示得到的回答完全相同：“{answer}”。"
    )


SENTENCES: dict[str, Callable[[Evidence], Text]] = {
    "collapsed": _collapsed,
    "displaced": _displaced,
    "worse_than_start": _worse_than_start,
    "worse_than_best": _worse_than_best,
    "nothing_learned": _nothing_learned,
    "few_validation_rows": _few_validation_rows,
    "equal_answers": _equal_answers,
}


def read_verdict(finding: Mapping[str, object]) -> Verdict:
    """A verdict of result.json. One that this version does not know, or whose figures are missing, keeps its own message."""
    check, message = text(finding.get("check")), text(finding.get("message"))
    severity = text(finding.get("severity"))
    try:
        sentence = SENTENCES[check](mapping(finding.get("evidence")))
    except KeyError:
        sentence = same(message)
    return Verdict(severity if severity in ("error", "warning") else "info", LABELS.get(check, same(message)), sentence)
