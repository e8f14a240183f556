"""The names of metrics: what each one is called, its unit, which way is better, and whether it can choose a checkpoint."""

from dataclasses import dataclass

SHARE, OF_100, NATS = "share", "of 100", "nats/token"
FORMATS = {
    SHARE: "{:.1%}",
    OF_100: "{:.2f}",
    NATS: "{:.4f}",
    "": "{:.4g}",
    "characters": "{:.0f}",
    "units": "{:.1f}",
    "bits": "{:.4f}",
}


@dataclass(frozen=True, kw_only=True)
class MetricName:
    """What people read about a metric.

    `label`, `chinese`: its name in sentences. `unit`: a key of FORMATS; shares are in [0, 1]. `higher_is_better`: None where
    neither is. `min_change`: a smaller change is none when the metric chooses a checkpoint; None: it cannot choose one.
    """

    label: str
    chinese: str
    unit: str = SHARE
    higher_is_better: bool | None = True
    min_change: float | None = None

    @property
    def format(self) -> str:
        """The format of a value in sentences."""
        return FORMATS[self.unit]


def _lower(label: str, chinese: str, unit: str = SHARE, min_change: float | None = None) -> MetricName:
    return MetricName(label=label, chinese=chinese, unit=unit, higher_is_better=False, min_change=min_change)


MIN_CHANGE = 0.002  # nats: a smaller change of a loss is none, however small the loss
MIN_OVERLAP_CHANGE = 1.0  # of 100: BLEU and its like of some hundred answers are no more certain
MIN_RATE_CHANGE = 0.05  # of a score of some hundred answers: a smaller change may be chance

METRIC_NAMES = {
    "loss": _lower("validation loss", "验证损失", NATS, MIN_CHANGE),
    "perplexity": _lower("perplexity", "困惑度", ""),
    "bits_per_byte": _lower("bits per byte", "每字节比特数", "bits"),
    "token_accuracy": MetricName(label="token accuracy", chinese="词元准确率"),
    "reward": MetricName(label="reward of answers", chinese="回答的奖励", unit="", min_change=MIN_RATE_CHANGE),
    "exact_match": MetricName(label="share of exact answers", chinese="完全正确的回答", min_change=MIN_RATE_CHANGE),
    "valid_json": MetricName(label="share of valid JSON", chinese="有效 JSON", min_change=MIN_RATE_CHANGE),
    "f1": MetricName(label="F1 of answers", chinese="回答的 F1", min_change=MIN_RATE_CHANGE),
    "bleu": MetricName(label="BLEU-4 of answers", chinese="回答的 BLEU-4", unit=OF_100, min_change=MIN_OVERLAP_CHANGE),
    "chrf": MetricName(label="chrF of answers", chinese="回答的 chrF", unit=OF_100, min_change=MIN_OVERLAP_CHANGE),
    "rouge1": MetricName(label="ROUGE-1 of answers", chinese="回答的 ROUGE-1", unit=OF_100, min_change=MIN_OVERLAP_CHANGE),
    "rouge2": MetricName(label="ROUGE-2 of answers", chinese="回答的 ROUGE-2", unit=OF_100, min_change=MIN_OVERLAP_CHANGE),
    "rouge_l": MetricName(label="ROUGE-L of answers", chinese="回答的 ROUGE-L", unit=OF_100, min_change=MIN_OVERLAP_CHANGE),
    "passed": MetricName(label="prompts whose rules all hold", chinese="符合全部规则的提示"),
    "accuracy": MetricName(label="accuracy", chinese="准确率"),
    "accuracy_norm": MetricName(label="accuracy, by length", chinese="准确率（按长度）"),
    "refusal": _lower("refusals", "拒答"),
    "off_topic": _lower("answers off topic", "答非所问", SHARE, MIN_RATE_CHANGE),
    "identity_template": _lower("answers that recite who the model is", "套用自我介绍的回答"),
    "repetition": _lower("repeated 4-grams", "重复的四元组"),
    "distinct_2": MetricName(label="distinct 2-grams", chinese="不同的二元组"),
    "longest_loop": _lower("loop at the end of answers", "结尾的循环", "units"),
    "prompt_copy": _lower("answers that repeat the prompt", "复述提示的回答"),
    "wrong_language": _lower("answers in another language", "语言不符的回答"),
    "ended": MetricName(label="answers that the model ended", chinese="自行结束的回答"),
    "length": MetricName(label="length of answers", chinese="回答长度", unit="characters", higher_is_better=None),
}
"""Names in the order in which people read them. A metric that counts faults of a kind, other than being off topic, cannot
choose a checkpoint: an empty answer has none of them."""

SELECTION_NAMES = tuple(name for name, facts in METRIC_NAMES.items() if facts.min_change is not None)
"""The values of `metric_for_best_model`."""

ANSWER_METRICS = (
    "exact_match", "valid_json", "f1", "bleu", "chrf", "rouge1", "rouge2", "rouge_l", "refusal", "off_topic",
    "identity_template", "repetition", "distinct_2", "longest_loop", "prompt_copy", "wrong_language", "ended", "length",
)  # fmt: skip
"""Metrics of answers that a model generates (`evaluate.metrics`)."""

ALWAYS = ("exact_match", "valid_json", "f1")  # of answers that are compared with a reference
