"""The page's own words in English and Chinese. Text from data, models and recipes is never translated."""

from collections.abc import Mapping
from typing import NamedTuple


class Text(NamedTuple):
    """One piece of text in English and in Chinese."""

    en: str
    zh: str


def same(words: str) -> Text:
    """A text that is written alike in both languages."""
    return Text(words, words)


UNITS = {
    "": same(""),
    "tokens": Text("tokens", "词元"),
    "tokens/s": Text("tokens/s", "词元/秒"),
    "parameters": Text("parameters", "参数"),
    "steps": Text("steps", "步"),
    "epochs": Text("epochs", "轮"),
    "rows": Text("rows", "行"),
    "examples": Text("examples", "样本"),
    "nats/token": Text("nats/token", "奈特/词元"),
    "nats/pair": Text("nats/pair", "奈特/对"),
    "per token": Text("per token", "每词元"),
    "per pair": Text("per pair", "每对"),
    "per answer": Text("per answer", "每个回答"),
    "nats": Text("nats", "奈特"),
    "bits": Text("bits", "比特"),
    "choices": Text("choices", "个选择"),
    "of 100": Text("of 100", "（满分 100）"),
    "characters": Text("characters", "字符"),
    "units": Text("words or characters", "词或字"),
    "%": same("%"),
}

EXAMPLES = {
    "document": Text("documents", "文档"),
    "conversation": Text("conversations", "对话"),
    "pair": Text("pairs", "样本对"),
    "prompt": Text("prompts", "提示"),
    "answer": Text("labelled answers", "带标签的回答"),
}

KINDS = {
    "pretrain": Text("pretraining", "预训练"),
    "sft": Text("supervised fine-tuning", "监督微调"),
    "preference": Text("preference optimisation", "偏好优化"),
    "grpo": Text("training on rewards (GRPO)", "基于奖励的训练（GRPO）"),
    "reward": Text("reward model", "奖励模型"),
    "kto": Text("preference optimisation of labelled answers (KTO)", "带标签回答的偏好优化（KTO）"),
}


def unit_text(unit: str) -> Text:
    """A unit in both languages. A unit without a translation is returned unchanged."""
    return UNITS.get(unit, same(unit))


def example_text(label: str) -> Text:
    """The plural of an example's label in both languages; "examples" for a label without a translation."""
    return EXAMPLES.get(label, UNITS["examples"])


NATURAL_GROUPS = {
    "small_talk": Text("small talk", "闲聊"),
    "identity": Text("about itself", "关于自己"),
    "list": Text("lists", "列举"),
    "arithmetic": Text("arithmetic", "算数"),
    "translate": Text("translation", "翻译"),
    "explain": Text("explanations", "解释"),
    "verse": Text("verse", "写诗"),
    "tidy": Text("tidying names", "整理名称"),
    "several_turns": Text("several turns", "多轮对话"),
    "outside": Text("outside of its world: it says so", "世界之外：坦白没学过"),
}
DECISIONS = {
    "release": Text("release", "可以发布"),
    "keep training": Text("keep training", "继续训练"),
    "roll back": Text("roll back", "回退"),
}
GOES_ON = {
    "trained": Text("the trained model goes on", "沿用训练后的模型"),
    "best": Text("the best checkpoint goes on", "沿用最好的检查点"),
    "start": Text("the model before the stage goes on", "沿用本阶段之前的模型"),
}


def word_of(table: Mapping[str, Text], value: object) -> Text:
    """The text of a table for a value; the value itself where the table does not have it."""
    return table.get(str(value), same("" if value is None else str(value)))


WORDS = {
    "verdict": Text("Verdict", "结论"),
    "verdict_note": Text(
        "What each figure speaks for, those that decided first. Thresholds are in the recipe, below evaluation.verdict.",
        "各项数据支持的结论，起决定作用的在前。阈值见配方中的 evaluation.verdict。",
    ),
    "speaks_for": Text("Speaks for", "支持"),
    "proofs": Text("Proofs", "验证"),
    "proofs_note": Text(
        "Changes of the recipe that were tried in short runs against the unchanged one, pair by pair with the same seed and "
        "the same held-out documents. A gain is positive where the change is better, with its 95 % interval.",
        "在短程训练中与原配方成对比较过的改动：每对使用相同的种子和相同的留出文档。增益为正表示改动更好，附 95 % 区间。",
    ),
    "patch": Text("Change", "改动"),
    "change": Text("Unchanged → changed", "原配方 → 改动后"),
    "gain": Text("Gain", "增益"),
    "undecided": Text("cannot decide", "无法判断"),
    "report": Text("Training report", "训练报告"),
    "not_recorded": Text("not recorded", "未记录"),
    "took": Text("in all", "总用时"),
    "at_a_glance": Text("Stages at a glance", "各阶段一览"),
    "glance_note": Text(
        "Arrows read “before the stage → after it”, on the validation split. Perplexity is how many equally "
        "likely tokens the model hesitates between.",
        "箭头表示“本阶段之前 → 之后”，均在验证集上测得。困惑度表示模型在多少个等可能的词元之间犹豫。",
    ),
    "stage": Text("Stage", "阶段"),
    "curves": Text("Curves", "曲线"),
    "comparison": Text("Comparison of runs", "训练运行对比"),
    "metric": Text("Metric", "指标"),
    "difference": Text("Difference, 95 % interval", "差值，95 % 区间"),
    "found": Text("Found", "结论"),
    "item_count": Text("items", "题"),
    "other_set": Text(
        "The two were not asked the same set in the same way; only common items are compared.",
        "两次运行的题目或设置不同；只比较共有的题目。",
    ),
    "recipe_differences": Text("What differs in the recipes", "配方的差别"),
    "machine_differences": Text("What differs in the machines", "运行环境的差别"),
    "no_differences": Text("Nothing differs.", "没有差别。"),
    "sets": Text("Evaluation sets", "评测集"),
    "sets_note": Text(
        "Values with 95 % intervals. A change is coloured where the intervals before and after do not overlap.",
        "数值附 95 % 区间。前后区间不重叠时，变化以颜色标出。",
    ),
    "failing": Text("answers that break a rule", "违反规则的回答"),
    "rule": Text("Rule", "规则"),
    "group": Text("Group", "类别"),
    "worst": Text("Validation rows with the highest losses", "损失最高的验证数据"),
    "worst_note": Text(
        "After the stage, by source; the mean loss of a row's targets in nats. The file is eval/errors.jsonl of the stage.",
        "本阶段之后，按来源分组；损失为该行目标词元的平均值（奈特）。完整文件为该阶段的 eval/errors.jsonl。",
    ),
    "loss": Text("Loss", "损失"),
    "row_text": Text("Text", "文本"),
    "trained_on": Text("Targets", "参与训练的部分"),
    "log_axis": Text("log", "对数"),
    "smoothing": Text("Smoothing", "平滑"),
    "smoothing_note": Text("of a curve's points are averaged for each point", "：每个点取该曲线这一比例的点求平均"),
    "curves_note": Text(
        "Point at a curve, or move along it with the arrow keys, to read its values. Drag to zoom into a range of steps; "
        "double click or Escape shows all. A name in a key hides its curve.",
        "将指针移到曲线上，或用方向键沿曲线移动，即可读数。拖动可放大一段步数，双击或按 Esc 还原。"
        "点击图例中的名称可隐藏该曲线。",
    ),
    "samples": Text("What the model writes", "模型的输出"),
    "samples_note": Text(
        "The same prompts, answered before and after each stage. “Cut off” marks an answer that reached the length "
        "limit before the model ended it.",
        "相同的提示，在每个阶段前后各回答一次。“被截断”表示模型未自行结束，回答达到了长度上限。",
    ),
    "no_samples": Text(
        "No prompts were answered. To see answers here, before and after each stage, name prompts in the recipe:",
        "没有用任何提示试过模型。若想在此看到各阶段前后的回答，请在配方中写出提示：",
    ),
    "prompt": Text("Prompt", "提示"),
    "before": Text("before", "之前"),
    "after": Text("after", "之后"),
    "start": Text("at the start", "开始时"),
    "cut": Text("cut off", "被截断"),
    "empty": Text("nothing written", "没有输出"),
    "not_sampled": Text("not sampled", "未采样"),
    "world": Text("Questions with known answers", "有标准答案的题目"),
    "world_note": Text(
        "Exact match per task after each stage; below it, the share with the right content in other words, and "
        "how often the unwanted habit shows.",
        "各阶段之后每类任务的完全匹配率；下方为内容正确（措辞不同也算）的比例，以及不良习惯出现的比例。",
    ),
    "natural": Text("Prompts in natural words", "自然语言提问"),
    "natural_note": Text(
        "Prompts that were written without knowing the phrasings of the training data; each answer is judged by a rule.",
        "写这些提问时不看训练数据的措辞；每个回答按一条规则判断。",
    ),
    "all_groups": Text("All groups", "全部"),
    "acceptable": Text("acceptable", "合格"),
    "not_acceptable": Text("answers that are not acceptable", "不合格的回答"),
    "task": Text("Task", "任务"),
    "all_tasks": Text("All tasks", "全部任务"),
    "exact": Text("exact", "完全匹配"),
    "content": Text("content", "内容"),
    "habit": Text("habit", "习惯"),
    "questions": Text("questions", "题"),
    "interval": Text("95 % interval", "95 % 区间"),
    "errors": Text("wrong answers", "答错的题"),
    "shown": Text("shown", "已显示"),
    "question": Text("Question", "问题"),
    "answer": Text("Answer", "回答"),
    "reference": Text("Reference", "参考答案"),
    "data": Text("Where the data went", "数据账目"),
    "data_note": Text(
        "Every row read is either used or dropped for a named reason.",
        "读入的每一行，要么被使用，要么因注明的原因被舍弃。",
    ),
    "source": Text("Source", "来源"),
    "split": Text("continued in another row", "跨行续接"),
    "shortened": Text("shortened (oldest turns left out)", "缩短（略去最早的轮次）"),
    "rows": Text("rows", "行"),
    "packed_rows": Text("packed rows", "打包行"),
    "used": Text("used", "使用"),
    "dropped": Text("dropped", "舍弃"),
    "balanced": Text("adds up", "账目相符"),
    "unaccounted": Text("rows unaccounted for", "行去向不明"),
    "truncated": Text("of the used rows truncated", "行（已使用）被截断"),
    "tokens": Text("tokens", "词元"),
    "supervised": Text("supervised tokens", "受监督词元"),
    "padding": Text("padding", "填充占比"),
    "train": Text("train", "训练"),
    "validation": Text("validation", "验证"),
    "where_dropped": Text("Where rows were dropped or changed", "哪些行被舍弃或改动过"),
    "reason": Text("Reason", "原因"),
    "where": Text("Where", "位置"),
    "detail": Text("Detail", "详情"),
    "log": Text("Alerts, stops and checkpoints", "警告、停止与检查点"),
    "no_alerts": Text("No alerts and no early stops were recorded.", "没有记录到警告或提前停止。"),
    "step": Text("Step", "步"),
    "what": Text("What", "类别"),
    "message": Text("Message", "内容"),
    "checkpoints": Text("checkpoints", "检查点"),
    "machine": Text("The machine", "运行环境"),
    "tokenizer": Text("Tokenizer", "分词器"),
    "recipe": Text("The recipe", "配方"),
    "show_recipe": Text("Show the resolved recipe", "显示完整配方"),
    "broken_lines": Text("Unreadable lines, skipped:", "无法读取而跳过的行数："),
    "unreadable": Text("Could not be read:", "无法读取："),
    "no_stages": Text("This run directory holds no stages yet.", "此运行目录中还没有任何阶段。"),
    "noscript": Text(
        "The curves need JavaScript. `fledge report RUN --plots DIR` writes them as files.",
        "曲线需要 JavaScript 才能显示。`fledge report RUN --plots DIR` 可将其写成文件。",
    ),
    "language": Text("Language", "语言"),
}
