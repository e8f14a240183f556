"""Probes of sampled answers: whether they end, repeat themselves or the prompt, are all the same, or say who the model is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fledge.diagnosis.case import Figure
from fledge.diagnosis.measures import SAMPLED_ANSWERS
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import DIALOGUES, figure, left_out
from fledge.doctor.probes.rows import Row
from fledge.evaluate.evenly import evenly
from fledge.evaluate.metrics.identity import is_identity_template
from fledge.evaluate.metrics.overlap import copies_prompt
from fledge.evaluate.metrics.repetition import repetition
from fledge.generation import Completion, Engine, SamplingParams
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Message, TemplateError

LEAST_NEW, MOST_NEW = 32, 96  # tokens of an answer, where the model has the positions
ROOM = 12  # positions behind a prompt, at least
LONGER = 1.5  # than the longest but a tenth of the data's own answers: room to end
BEGINNING = 12  # tokens of a text that a model continues
SAMPLED = SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=7)
UNRELATED = (
    "What is the capital of France?", "Write two sentences about the sea.", "How do I boil an egg?",
    "Give me three tips for better sleep.", "Which is heavier, iron or wood?", "Translate 'good morning' into Chinese.",
    "今天适合做什么运动？", "请写一句关于春天的话。", "怎样煮米饭？", "三加五等于几？", "请推荐一种水果。",
    "为什么天空是蓝色的？",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A prompt as tokens and as text; `expected`: the answer of the data, None where there is none."""

    tokens: list[int]
    text: str
    expected: str | None = None


@dataclass(frozen=True)
class Answered:
    """An answer to a prompt, and whether it ended itself."""

    asked: Asked
    text: str
    ended: bool


def prompts_of(context: ProbeContext) -> list[Asked]:
    """Different prompts of the data's rows: what stands before a first answer, or the beginning of a text."""
    tokenizer, room = context.material.tokenizer, context.any_model.max_positions - ROOM
    is_dialogue = context.material.kind in DIALOGUES
    found: dict[tuple[int, ...], Asked] = {}
    for row in context.train_rows:
        stop = _prompt_end(row, is_dialogue)
        if stop is None or not 0 < stop <= room or len(found) >= SAMPLED_ANSWERS * 4:
            continue
        tokens = row.tokens[:stop].tolist()
        expected = tokenizer.decode(row.tokens[slice(*row.answers[0])].tolist(), skip_special=True) if is_dialogue else None
        found.setdefault(tuple(tokens), Asked(tokens, tokenizer.decode(tokens, skip_special=True), expected))
    asked = list(found.values())
    if not asked:
        raise left_out("no row of the sample has a prompt that leaves room for an answer")
    return [asked[number] for number in evenly(len(asked), SAMPLED_ANSWERS)]


def _prompt_end(row: Row, is_dialogue: bool) -> int | None:
    if is_dialogue:
        return row.answers[0][0] if row.answers else None
    return min(BEGINNING, len(row.tokens) - 1)


def longest_answer(context: ProbeContext) -> int:
    """Tokens that an answer may have."""
    lengths = [stop - start for row in context.train_rows for start, stop in row.answers]
    wanted = LONGER * float(np.quantile(lengths, 0.9)) if lengths else LEAST_NEW
    return int(min(MOST_NEW, max(LEAST_NEW, wanted)))


def answers(context: ProbeContext, model: LanguageModel, asked: Sequence[Asked], *, greedy: bool = False) -> list[Answered]:
    """The answers of a model, sampled or greedy; a function of the model and the prompts."""
    tokenizer = context.material.tokenizer
    length = longest_answer(context)
    params = replace(SAMPLED, max_new_tokens=length) if not greedy else SamplingParams(max_new_tokens=length)
    engine = Engine(model.eval(), tokenizer.stop_ids)
    completions = engine.generate([one.tokens for one in asked], params)

    def answered(one: Asked, completion: Completion) -> Answered:
        text = tokenizer.decode(completion.tokens, skip_special=True)
        return Answered(one, text, completion.finish_reason == "stop")

    return [answered(one, completion) for one, completion in zip(asked, completions, strict=True)]


def _share(truths: Sequence[bool]) -> float:
    return sum(truths) / len(truths)


def _ended(given: Sequence[Answered]) -> float:
    return _share([one.ended for one in given])


def _repetition(given: Sequence[Answered]) -> float:
    return sum(repetition(one.text) for one in given) / len(given)


def _copied(given: Sequence[Answered]) -> float:
    return _share([copies_prompt(one.asked.text, one.text, one.asked.expected) for one in given])


def _in_words(context: ProbeContext, given: Sequence[Answered]) -> str:
    return f"{len(given)} prompts of the data, up to {longest_answer(context)} tokens, temperature {SAMPLED.temperature}"


def sampled(context: ProbeContext) -> Mapping[str, Figure | None]:
    """Sampled answers of the checkpoint, and greedy ones."""
    asked = prompts_of(context)
    given = answers(context, context.model, asked)
    greedy = answers(context, context.model, asked, greedy=True)
    note = _in_words(context, given)
    found = {
        "probe/repetition": figure(_repetition(given), note),
        "probe/greedy_repetition": figure(_repetition(greedy), f"{len(greedy)} prompts of the data, temperature 0"),
    }
    if context.material.kind not in DIALOGUES:
        return found
    most, count = Counter(one.text.strip() for one in given).most_common(1)[0]
    return {
        **found,
        "probe/ended": figure(_ended(given), note),
        "probe/prompt_copy": figure(_copied(given), note),
        "probe/equal_answers": figure(count / len(given), f"the commonest: {most[:60]!r}") if len(given) > 1 else None,
    }


def base_sampled(context: ProbeContext) -> Mapping[str, Figure | None]:
    """Sampled answers of the start model to the same prompts."""
    if context.material.fresh_start:
        raise left_out("the stage starts from new weights")
    given = answers(context, context.start, prompts_of(context))
    note = _in_words(context, given)
    found = {"probe/base_repetition": figure(_repetition(given), note)}
    if context.material.kind not in DIALOGUES:
        return found
    return {**found, "probe/base_ended": figure(_ended(given), note), "probe/base_prompt_copy": figure(_copied(given), note)}


def identity(context: ProbeContext) -> Mapping[str, Figure | None]:
    """How many answers to unrelated prompts say who the model is."""
    tokenizer = context.material.tokenizer
    try:
        asked = [Asked(tokenizer.encode_prompt([Message("user", text)]), text) for text in UNRELATED]
    except TemplateError as error:
        raise left_out(f"the chat template refuses a question: {error}") from None
    asked = [one for one in asked if len(one.tokens) + ROOM <= context.any_model.max_positions]
    if not asked:
        raise left_out("the model has too few positions for a question and its answer")
    given = answers(context, context.model, asked)
    share = _share([is_identity_template(one.asked.text, one.text) for one in given])
    return {"probe/identity_answers": figure(share, f"{len(given)} prompts that ask for something else")}
