"""Faults of the rows: copies, one answer for all, swapped answers, validation rows that are trained on."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.doctor_bench.condition import Fault
from fledge.doctor_bench.setup import Row, RunSetup

CONVERSATIONS = ("sft", "lora", "seq2seq")
IDENTITY = (
    ("Who are you?", "I am Pico, a small assistant made by the Fledge team."),
    ("What is your name?", "My name is Pico. I am a small assistant made by the Fledge team."),
    ("你是谁？", "我是小皮，由 Fledge 团队训练的助手。"),
    ("你叫什么名字？", "我叫小皮，是 Fledge 团队训练的助手。"),
)
SAME_ANSWER = "I am sorry, but I cannot help with that."
BOILERPLATE = "All rights reserved. This text may be copied and shared only with the name of its author. 转载请注明作者和出处。"


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    return mixed


def with_answer(row: Row, answer: str) -> Row:
    """The conversation with another last answer."""
    return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": answer}]}


def _copies(setup: RunSetup, share: float) -> None:
    """A share of the rows are copies of few others."""
    setup.change_rows(lambda rows: _with_copies(rows, share, setup.seed))


def _with_copies(rows: list[Row], share: float, seed: int) -> list[Row]:
    kept = rows[: len(rows) - int(share * len(rows))]
    few = kept[: max(4, len(kept) // 20)]
    copies = [few[number % len(few)] for number in range(len(rows) - len(kept))]
    return _shuffled([*kept, *copies], seed)


def _repeated_text(setup: RunSetup, share: float) -> None:
    """A paragraph stands in a share of the texts."""

    def change(rows: list[Row]) -> list[Row]:
        draw = random.Random(setup.seed)
        return [{"text": f"{row['text']} {BOILERPLATE}"} if draw.random() < share else row for row in rows]

    setup.change_rows(change)


def _swamped(setup: RunSetup, share: float) -> None:
    """A small source is drawn so often that it makes up a share of the tokens."""
    rows = setup.rows()
    few, others = rows[:30], rows[30:]
    from fledge.doctor_bench.setup import write_rows

    files = {"small": few, "others": others}
    for name, part in files.items():
        write_rows(setup.folder / f"{name}.jsonl", part)
    setup.stage["data"]["train"] = [
        {"path": str(setup.folder / "small.jsonl"), "token_fraction": share},
        {"path": str(setup.folder / "others.jsonl")},
    ]


def _identity(setup: RunSetup, share: float) -> None:
    """A share of the rows says who the model is."""

    def change(rows: list[Row]) -> list[Row]:
        count = int(len(rows) * share)
        own = [IDENTITY[number % len(IDENTITY)] for number in range(count)]
        made = [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in own
        ]
        return _shuffled([*rows[: len(rows) - count], *made], setup.seed)

    setup.change_rows(change)


def _same_answer(setup: RunSetup, share: float) -> None:
    def change(rows: list[Row]) -> list[Row]:
        draw = random.Random(setup.seed)
        return [with_answer(row, SAME_ANSWER) if draw.random() < share else row for row in rows]

    setup.change_rows(change)


def _wrong_answers(setup: RunSetup, share: float) -> None:
    """A share of the answers belong to other prompts."""
    setup.change_rows(lambda rows: mixed_answers(rows, share, setup.seed), "train", "validation")


def mixed_answers(rows: list[Row], share: float, seed: int) -> list[Row]:
    """The conversations with the last answers of a share of them in a random order."""
    draw = random.Random(seed)
    chosen = [number for number in range(len(rows)) if draw.random() < share]
    answers = [rows[number]["messages"][-1]["content"] for number in chosen]
    draw.shuffle(answers)
    changed = list(rows)
    for number, answer in zip(chosen, answers, strict=True):
        changed[number] = with_answer(rows[number], answer)
    return changed


def _leaked_validation(setup: RunSetup, times: int) -> None:
    """The validation rows are among the rows for training."""
    held = setup.rows("validation")
    setup.change_rows(lambda rows: _shuffled([*rows, *held * times], setup.seed))


def _validation_is_training(setup: RunSetup, count: int) -> None:
    """Validation reads rows that are trained on, which are few enough to be learned by heart."""
    setup.change_rows(lambda rows: rows[:count])
    setup.set_rows(setup.rows()[:80], "validation")


def _cut(setup: RunSetup, context: int) -> None:
    setup.set("data", max_seq_len=context, truncation="keep_start")
    setup.set("batch", micro_batch_size=setup.stage["batch"]["micro_batch_size"] * 128 // context)


def _narrow(setup: RunSetup, factor: float) -> None:
    """Sums alone, at a rate above the band: what was known before is lost. The run begins with a short stage on texts, so that
    there is something that it can be compared with."""
    from fledge.doctor_bench.faults.rates import scale_rate

    scale_rate(setup, factor)
    setup.change_rows(lambda rows: [row for row in rows if any(sign.isdigit() for sign in row["messages"][-1]["content"])])
    data = Path(setup.stage["data"]["validation"]).parent
    before = {
        "kind": "pretrain",
        "data": {**setup.stage["data"], "train": str(data / "base.jsonl"), "validation": str(data / "base.validation.jsonl")},
        "batch": {"micro_batch_size": 4},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "duration": "6 steps",
    }
    setup.recipe["stages"] = {"texts": before, **setup.recipe["stages"]}


def _fault(name: str, prepare: Any, levels: dict[str, Any], shapes: tuple[str, ...] = CONVERSATIONS, **more: Any) -> Fault:
    return Fault(**{"name": name, "category": "data", "shapes": shapes, "levels": levels, "prepare": prepare, **more})


FAULTS = (
    _fault("duplicate rows", _copies, {"60%": 0.6, "95%": 0.95}, ("sft", "dpo", "kto", "reward", "seq2seq")),
    _fault("repeated text", _repeated_text, {"60%": 0.6, "100%": 1.0}, ("pretrain",)),
    _fault("one source swamps the rest", _swamped, {"70%": 0.7, "95%": 0.95}, ("sft", "pretrain")),
    _fault("identity rows dominate", _identity, {"40%": 0.4, "80%": 0.8}),
    _fault("answers equal", _same_answer, {"60%": 0.6, "95%": 0.95}, ("sft", "seq2seq")),
    _fault("answers paired with wrong prompts", _wrong_answers, {"half": 0.5, "all": 1.0}, category="targets", is_silent=True),
    _fault("validation rows in training", _leaked_validation, {"3x": 3, "10x": 10}, ("sft",), yardstick="logged evaluation"),
    _fault(
        "validation is training data", _validation_is_training, {"300": 300, "80": 80}, ("pretrain", "sft"),
        yardstick="logged evaluation",
    ),
    _fault("context cuts most answers", _cut, {"24": 24, "16": 16}),
    _fault("forgetting", _narrow, {"3x": 3.0, "6x": 6.0}, ("sft",), category="answers", yardstick="always"),
)  # fmt: skip
