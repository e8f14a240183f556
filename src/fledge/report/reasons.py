"""The reasons of a stage's verdict in English and Chinese. The Chinese ones are made from their figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fledge.metric_names import METRIC_NAMES
from fledge.report.i18n import Text, same
from fledge.report.read_run import mapping, number, text
from fledge.report.verdicts import SENTENCES, Evidence, known


@dataclass(frozen=True)
class ReasonText:
    """What a reason says, and what to do."""

    message: Text
    hint: Text


def read_reason(reason: Mapping[str, object]) -> ReasonText:
    """A reason of result.json. One that this version does not know, or whose figures are missing, keeps its own words in both
    languages."""
    check, message, hint = text(reason.get("check")), text(reason.get("message")), text(reason.get("hint"))
    evidence, decides = mapping(reason.get("evidence")), bool(reason.get("decision"))
    try:
        chinese = SENTENCES[check](evidence).zh if check in SENTENCES else MESSAGES[check](evidence, decides)
    except KeyError:
        return ReasonText(same(message), same(hint))
    what_to_do = HINTS.get(f"{check}/{text(evidence.get('split'))}", HINTS.get(check, hint))
    return ReasonText(Text(message, chinese), Text(hint, what_to_do) if hint else same(""))


def _share(evidence: Evidence, key: str) -> str:
    return f"{known(evidence, key):.1%}"


def _interval(evidence: Evidence, form: str) -> str:
    found = evidence.get("interval")
    bounds = [value for bound in found if (value := number(bound)) is not None] if isinstance(found, list | tuple) else []
    return f" [{', '.join(format(bound, form) for bound in bounds)}]" if len(bounds) == 2 else ""


def _name(evidence: Evidence) -> str:
    name = text(evidence.get("metric"))
    return METRIC_NAMES[name].chinese if name in METRIC_NAMES else name


def _change(evidence: Evidence) -> str:
    return f"{_name(evidence)} {known(evidence, 'before'):.3f} → {known(evidence, 'after'):.3f}"


def _rate(what: str, limit: str) -> Callable[[Evidence, bool], str]:
    """A rate of the answers to a set, beyond its threshold."""

    def message(evidence: Evidence, decides: bool) -> str:
        few = "" if decides else f"；只有 {known(evidence, 'count'):,.0f} 个回答，不足以作出判断"
        rate = f"{_share(evidence, 'value')}{_interval(evidence, '.1%')}"
        return f"{text(evidence.get('set'))}：{rate} {what}，应{limit} {known(evidence, 'threshold'):.0%}{few}。"

    return message


def _of_rows(what: str) -> Callable[[Evidence, bool], str]:
    """A share of the training rows."""
    return lambda evidence, _: f"{_share(evidence, 'value')}{_interval(evidence, '.1%')} {what}。"


def _of_items(evidence: Evidence) -> str:
    change = f"{_share(evidence, 'before')} → {_share(evidence, 'after')}{_interval(evidence, '+.1%')}"
    return f"{text(evidence.get('set'))}：{_name(evidence)} {change}"


def _worse_answers(evidence: Evidence, decides: bool) -> str:
    return f"{_of_items(evidence)}：比本阶段之前更差{'' if decides else '，但降幅未超过 evaluation.verdict.max_drop'}。"


def _too_few_items(evidence: Evidence, _: bool) -> str:
    return f"{_of_items(evidence)}：{known(evidence, 'count'):,.0f} 个条目太少，分辨不出有意义的差异。"


def _forgetting(evidence: Evidence, _: bool) -> str:
    change = f"{known(evidence, 'before'):.3f} → {known(evidence, 'after'):.3f}"
    return f"{text(evidence.get('set'))}：每字节比特数 {change}（{known(evidence, 'share'):+.1%}）：比之前遗忘了一部分。"


def _loss_above(evidence: Evidence, _: bool) -> str:
    most = f"高于 {known(evidence, 'threshold'):g}"
    return f"验证损失为每词元 {known(evidence, 'loss'):.3f} 纳特，{most}（{_change(evidence)}）。"


def _bleu(evidence: Evidence, _: bool) -> str:
    return f"回答的 BLEU-4 为 {known(evidence, 'after'):.1f}（满分 100），低于 {known(evidence, 'threshold'):g}。"


def _no_better_than_length(evidence: Evidence, _: bool) -> str:
    accuracy, baseline = _share(evidence, "accuracy"), _share(evidence, "length_baseline")
    return f"奖励模型判对 {accuracy} 的验证样本对，仅凭回答长度就能判对 {baseline}：它学到的可能只是长度。"


MESSAGES: dict[str, Callable[[Evidence, bool], str]] = {
    "nothing_measured": lambda evidence, _: "没有任何测量能说明模型已足够好。",
    "learned": lambda evidence, _: f"本阶段有所学习：{_change(evidence)}。",
    "not_better": lambda evidence, _: f"{_change(evidence)}：改善很小，可能是偶然。",
    "loss_above_threshold": _loss_above,
    "ended": _rate("的回答能自行结束", "不低于"),
    "passed": _rate("的回答遵守全部规则", "不低于"),
    "repetition": _rate("的 n 元组是重复", "不高于"),
    "prompt_copy": _rate("的回答内容照抄提示", "不高于"),
    "refusal": _rate("的回答是拒绝", "不高于"),
    "off_topic": _rate("的回答与提示无关", "不高于"),
    "identity_template": _rate("的回答在未被问及时介绍自己是谁", "不高于"),
    "wrong_language": _rate("的回答用了另一种语言", "不高于"),
    "too_few_items": _too_few_items,
    "worse_answers": _worse_answers,
    "better_answers": lambda evidence, _: f"{_of_items(evidence)}：比之前更好。",
    "forgetting": _forgetting,
    "bleu": _bleu,
    "prompt_targets": _of_rows("的训练目标词元位于提示中，而不在回答中"),
    "trained_ends": _of_rows("的训练回答训练了结束符：模型学不会停止"),
    "identity_targets": _of_rows("的训练回答在介绍助手是谁：会淹没其他回答"),
    "misfits": _of_rows("的训练回答在别的提示之后反而更可能：它们也许属于别的提示"),
    "no_better_than_length": _no_better_than_length,
}
"""The Chinese sentence of each check that is not in `verdicts.SENTENCES`, from its evidence and whether it decides."""

LOOK = "请用 fledge data show 查看"
FEWER_IDENTITIES = "用 token_fraction、ratio 或 max_rows 降低身份数据的占比"
HINTS: dict[str, str] = {
    "nothing_measured": "为本阶段提供验证数据（data.validation）或评测集（evaluation.sets）",
    "loss_above_threshold": "训练更久、用更多数据或更大的模型；或设置 evaluation.verdict.max_loss",
    "ended": f"检查结束符是否参与训练：{LOOK}",
    "passed": "查看错误案例中未通过的回答",
    "repetition": "训练更久，使用更多样的回答",
    "prompt_copy": "训练更久，并遮蔽提示部分",
    "refusal": "降低训练数据中拒绝类回答的占比",
    "off_topic": f"检查训练回答是否与提示对应：{LOOK}",
    "identity_template": FEWER_IDENTITIES,
    "wrong_language": "检查训练数据",
    "worse_answers": "在本阶段混入需要保留的数据，降低 optimizer.learning_rate，或减少步数",
    "forgetting": "在本阶段混入这类文本，降低 optimizer.learning_rate，或训练适配器",
    "bleu": "训练更久；自由回答的 BLEU 本来就低：把 evaluation.verdict.min_bleu 设为此处够用的值",
    "prompt_targets": f"只训练回答：{LOOK}各词元的权重",
    "trained_ends": f"训练回答的结束符：{LOOK}各词元的权重",
    "identity_targets": FEWER_IDENTITIES,
    "misfits": f"检查问题与回答是否正确配对：{LOOK}；否则训练更久",
    "collapsed": "降低 optimizer.learning_rate，减少步数；偏好训练还可设置 sft_loss_weight 或更大的 beta",
    "displaced": "降低 optimizer.learning_rate，或设置 sft_loss_weight",
    "worse_than_start": "降低 optimizer.learning_rate；如果验证数据并非要学的内容，设置 select_checkpoint"
    "（last 沿用训练后的模型，best 保留开始时的模型）",
    "worse_than_best": "减少轮数，降低 optimizer.learning_rate，或设置 early_stopping.patience",
    "nothing_learned": "提高 optimizer.learning_rate，延长训练（duration），或减小批大小以增加更新次数",
    "nothing_learned/reward": "查看奖励全相等的组的占比：更难或更易的提示、更大的 num_generations 或更高的温度能让组内有差别；"
    "否则提高 optimizer.learning_rate 或训练更久",
    "few_validation_rows": "把 data.validation 设为更大的比例或一个文件",
    "equal_answers": "模型还不会区分提示：训练更久，或使用更多、更多样的数据",
    "no_better_than_length": "比较 rewards/accuracies_shorter 与 rewards/accuracies_longer，并补充相反类型的样本对",
}
"""What to do, in Chinese, by check; a name behind a slash is the `split` of the evidence."""
