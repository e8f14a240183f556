"""The proofs of a stage, `proofs/*.json` in its folder: what was tried, and what came of it, in two languages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from fledge.report import formatting
from fledge.report.i18n import Text, same, unit_text, word_of
from fledge.report.read_run import items, mapping, mappings, number, text
from fledge.report.records import Problem

OUTCOMES = {
    "helps": Text("helps", "有效"),
    "does not help": Text("does not help", "无效"),
    "makes it worse": Text("makes it worse", "更差"),
    "cannot tell": Text("cannot be told", "无法判断"),
}
BETTER = {"helps": "better", "makes it worse": "worse"}  # outcome → class of the page
LABELS = {
    "loss": Text("loss of held-out documents", "留出文档的损失"),
    "answer_loss": Text("loss of held-out answers", "留出答案的损失"),
    "chosen_loss": Text("loss of wanted answers", "期望答案的损失"),
    "earlier_loss": Text("loss of documents of the stage before", "上一阶段文档的损失"),
    "preference_loss": Text("loss of held-out preferences and of the wanted answers", "留出偏好与期望答案的损失"),
    "pair_accuracy": Text("share of held-out preferences that were learned", "学会的留出偏好所占的比例"),
    "reward_loss": Text("loss of held-out pairs", "留出样本对的损失"),
    "ended": Text("share of greedy answers that end themselves", "贪心回答中自行结束的比例"),
    "prompt_copy": Text("share of greedy answers that repeat their prompt", "贪心回答中重复提示的比例"),
    "repetition": Text("repeated 4-grams in greedy answers", "贪心回答中重复的 4 元组"),
    "reward": Text("reward of answers", "回答的奖励"),
    "microseconds_per_token": Text("time of training for each token", "每个词元的训练时间"),
}
"""Names of the figures that judge (`doctor.prove_yardsticks`)."""


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """A proof as the page shows it. `patch`: keys with their new values. `kind`: class of the outcome's cell. `effects`: label,
    change and gain with its interval, of the figure that judges and of others."""

    patch: tuple[str, ...]
    outcome: Text
    kind: str
    effects: tuple[tuple[Text, Text, str], ...]
    how: Text


def stage_proofs(folder: Path, problems: list[Problem]) -> list[ProofRow]:
    """The proofs of a stage by name. A file that cannot be read is added to the problems."""
    found: list[ProofRow] = []
    for file in sorted((folder / "proofs").glob("*.json")):
        try:
            found.append(_row(mapping(orjson.loads(file.read_bytes()))))
        except (OSError, ValueError, KeyError):
            problems.append(Problem("/".join(file.parts[-3:]), None))
    return found


def _row(proof: Mapping[str, object]) -> ProofRow:
    outcome = text(proof["outcome"])
    effects = [mapping(proof["effect"]), *mappings(proof.get("beside"))]
    return ProofRow(
        patch=tuple(f"{key}: {text(value)}" for key, value in mapping(proof["patch"]).items()),
        outcome=word_of(OUTCOMES, outcome),
        kind=BETTER.get(outcome, ""),
        effects=tuple(_effect(one) for one in effects),
        how=_how(proof, effects[0]),
    )


def _effect(effect: Mapping[str, object]) -> tuple[Text, Text, str]:
    label = LABELS.get(text(effect["name"]), same(text(effect.get("label"))))
    if effect.get("identical"):
        return label, Text("the same weights: nothing changes", "权重相同：没有变化"), ""
    unit = unit_text(text(effect.get("unit")))
    change = f"{_figure(effect['given'])} → {_figure(effect['patched'])}"
    low, high = (_figure(value) for value in items(effect["interval"]))
    return (
        label,
        Text(f"{change} {unit.en}".strip(), f"{change} {unit.zh}".strip()),
        f"{_figure(effect['gain'])} [{low}, {high}]",
    )


def _figure(value: object) -> str:
    found = number(value)
    if found is None:
        raise KeyError("a figure")
    return formatting.three_figures(found)


def _how(proof: Mapping[str, object], effect: Mapping[str, object]) -> Text:
    """How it was tried: pairs, where they began, updates, documents."""
    pairs, documents = len(items(proof["seeds"])), formatting.whole(round(number(effect["documents"]) or 0))
    first, second = (formatting.whole(number(value) or 0) for value in items(proof["steps"]))
    updates = first if first == second else f"{first} / {second}"
    begins = proof["start"] == "stage"
    en = "from the start of the stage" if begins else "from the newest checkpoint"
    zh = "从阶段开始处" if begins else "从最新的检查点"
    return Text(
        f"{pairs} pairs {en}, {updates} updates, {documents} held-out documents",
        f"{pairs} 对，{zh}开始，{updates} 次更新，{documents} 篇留出文档",
    )
