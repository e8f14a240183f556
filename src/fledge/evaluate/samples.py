"""Answers to fixed prompts, before and after a stage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fledge.errors import FledgeError
from fledge.generation.engine import Generated, SamplingParams, generate
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import GenerationSamplesConfig
from fledge.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class Sample:
    """A prompt, what the model made of it, and whether it ended by itself."""

    prompt: str
    answer: str
    ended: bool

    def as_dict(self) -> dict[str, Any]:
        """For eval/*.json."""
        return asdict(self)


def chat_batch(
    model: LanguageModel, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], sampling: SamplingParams
) -> list[tuple[str, bool]]:
    """(answer, ended) for conversations that end with the user's turn."""
    prompts = [tokenizer.encode_prompt(conversation) for conversation in conversations]
    made = generate(model, prompts, tokenizer.stop_ids, sampling)
    return [_text(tokenizer, one) for one in made]


def _text(tokenizer: Tokenizer, one: Generated) -> tuple[str, bool]:
    return tokenizer.decode(one.tokens, skip_special=True), one.finish_reason


def sample(model: LanguageModel, tokenizer: Tokenizer, config: GenerationSamplesConfig, kind: str) -> list[Sample]:
    """Greedy answers to the recipe's prompts; around pretraining, continuations of its texts."""
    sampling = SamplingParams(max_new_tokens=config.max_new_tokens)
    if kind == "pretrain":
        pairs = [(text, tokenizer.encode_prefix(text)) for text in config.texts]
        pairs = [(text, prompt) for text, prompt in pairs if prompt]
        _check_room([prompt for _, prompt in pairs], model, "generation_samples.texts")
        made = generate(model, [prompt for _, prompt in pairs], tokenizer.stop_ids, sampling)
        return [Sample(text, *_text(tokenizer, one)) for (text, _), one in zip(pairs, made, strict=True)]
    conversations = [[Message("user", prompt)] for prompt in config.prompts]
    _check_room([tokenizer.encode_prompt(one) for one in conversations], model, "generation_samples.prompts")
    answers = chat_batch(model, tokenizer, conversations, sampling)
    return [Sample(prompt, *answer) for prompt, answer in zip(config.prompts, answers, strict=True)]


def _check_room(prompts: Sequence[Sequence[int]], model: LanguageModel, where: str) -> None:
    room = model.config.max_position_embeddings
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) >= room:
            raise FledgeError(
                f"number {number} has {len(prompt):,} tokens, the model has {room:,} positions: no room for an answer",
                where=where,
                hint="shorten it or take it out",
            )
