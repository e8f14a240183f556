"""Answers to fixed prompts, before and after a stage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fledge.data.formats import FORMATS
from fledge.generation import Completion, Engine, FinishReason, SamplingParams, check_prompt
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import GenerationSamplesConfig
from fledge.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class ChatAnswer:
    """The text of an answer and why it ended: "stop" if the model ended it, "length" if it was cut."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Sample:
    """A prompt, the model's answer to it, and why the answer ended."""

    prompt: str
    answer: str
    finish_reason: FinishReason

    def as_dict(self) -> dict[str, Any]:
        """The values as eval/*.json has them."""
        return asdict(self)


def chat_batch(
    engine: Engine,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    params: SamplingParams,
    where: Sequence[str] | None = None,
) -> list[ChatAnswer]:
    """Answer conversations that end with the user's turn.

    Raises PromptTooLongError for a conversation that leaves no room for an answer; `where` are the names of the
    conversations for the error message.
    """
    prompts = [tokenizer.encode_prompt(conversation) for conversation in conversations]
    completions = engine.generate(prompts, params, where=where)
    return [ChatAnswer(_text(tokenizer, completion), completion.finish_reason) for completion in completions]


def _text(tokenizer: Tokenizer, completion: Completion) -> str:
    return tokenizer.decode(completion.tokens, skip_special=True)


def _prompts(
    tokenizer: Tokenizer, config: GenerationSamplesConfig, kind: str
) -> tuple[str, Sequence[str], Sequence[Sequence[int]]]:
    """The key of the recipe for stages of this kind, its texts, and their tokens."""
    if FORMATS[kind].is_dialogue:
        return "prompts", config.prompts, [tokenizer.encode_prompt([Message("user", text)]) for text in config.prompts]
    return "texts", config.texts, [tokenizer.encode_prefix(text) for text in config.texts]


def check_samples(tokenizer: Tokenizer, config: GenerationSamplesConfig, kind: str, max_positions: int) -> None:
    """Raise PromptTooLongError, with the recipe key, for a prompt that leaves no room for an answer."""
    key, _, prompts = _prompts(tokenizer, config, kind)
    for number, prompt in enumerate(prompts):
        if prompt:
            check_prompt(prompt, max_positions, f"generation_samples.{key}, number {number + 1}")


def sample(model: LanguageModel, tokenizer: Tokenizer, config: GenerationSamplesConfig, kind: str) -> list[Sample]:
    """Greedy answers to the recipe's prompts if stages of this kind train on dialogues, else continuations of its texts.

    Raises PromptTooLongError, with the recipe key, for a prompt that leaves no room for an answer.
    """
    key, texts, prompts = _prompts(tokenizer, config, kind)
    numbers = [number for number, prompt in enumerate(prompts) if prompt]  # an empty text has no tokens to start from
    if not numbers:
        return []
    completions = Engine(model, tokenizer.stop_ids).generate(
        [prompts[number] for number in numbers],
        SamplingParams(max_new_tokens=config.max_new_tokens),
        where=[f"generation_samples.{key}, number {number + 1}" for number in numbers],
    )
    return [
        Sample(texts[number], _text(tokenizer, completion), completion.finish_reason)
        for number, completion in zip(numbers, completions, strict=True)
    ]
