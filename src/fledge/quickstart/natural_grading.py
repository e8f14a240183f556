"""Grades of answers to prompts in natural words, which were written without knowing the world's phrasings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fledge.evaluate import chat_batch
from fledge.evaluate.intervals import wilson_interval
from fledge.generation import Engine, SamplingParams
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Message, Tokenizer
from fledge.world.natural.acceptable import acceptable

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class NaturalPrompt:
    """What a person says, turn by turn, and the rule for the answer to the last turn."""

    id: str
    group: str
    lang: str
    turns: tuple[str, ...]
    accept: dict[str, Any]


def load_natural_prompts(name: str = "prompts.jsonl") -> list[NaturalPrompt]:
    """The prompts of this package."""
    lines = (resources.files("fledge.world.natural") / name).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [NaturalPrompt(r["id"], r["group"], r["lang"], tuple(r["turns"]), r["accept"]) for r in rows]


def answer_in_turns(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[NaturalPrompt]) -> list[str]:
    """The greedy answers to the last turns. The answers to the turns before are the model's own."""
    engine, params = Engine(model, tokenizer.stop_ids), SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    histories: list[list[Message]] = [[] for _ in prompts]
    for turn in range(max(len(prompt.turns) for prompt in prompts)):
        asked = [i for i, prompt in enumerate(prompts) if turn < len(prompt.turns)]
        for i in asked:
            histories[i].append(Message("user", prompts[i].turns[turn]))
        answers = chat_batch(engine, tokenizer, [histories[i] for i in asked], params)
        for i, answer in zip(asked, answers, strict=True):
            histories[i].append(Message("assistant", answer.text))
    return [history[-1].content for history in histories]


def grade_natural_prompts(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[NaturalPrompt]) -> dict[str, Any]:
    """The fraction of acceptable answers, overall and by group, and the answers that are not acceptable, as JSON values."""
    answers = answer_in_turns(model, tokenizer, prompts)
    good = [acceptable(answer, prompt.accept) for prompt, answer in zip(prompts, answers, strict=True)]
    groups: dict[str, list[bool]] = {}
    for prompt, ok in zip(prompts, good, strict=True):
        groups.setdefault(prompt.group, []).append(ok)
    return {
        "n": len(prompts),
        "acceptable": sum(good) / len(good),
        "interval": wilson_interval(sum(good), len(good)),
        "groups": {group: {"n": len(marks), "acceptable": sum(marks) / len(marks)} for group, marks in groups.items()},
        "errors": [
            {"group": prompt.group, "turns": list(prompt.turns), "answer": answer, "accept": prompt.accept}
            for prompt, answer, ok in zip(prompts, answers, good, strict=True)
            if not ok
        ],
    }


def describe_natural_grades(stage: str, grades: dict[str, Any]) -> str:
    """The rates on two lines, for the console."""
    groups = ", ".join(f"{group.replace('_', ' ')} {rates['acceptable']:.0%}" for group, rates in grades["groups"].items())
    return f"{stage}: {grades['n']} natural prompts: {grades['acceptable']:.1%} of the answers acceptable\n  {groups}"
