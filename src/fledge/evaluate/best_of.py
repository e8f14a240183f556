"""Best-of-N: several answers to a question, of which the one with the highest reward is taken (Stiennon et al. 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.errors import FledgeError
from fledge.generation import Engine, FinishReason, RewardModel, SamplingParams
from fledge.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class RankedAnswers:
    """The N answers to one question, in the order in which they were drawn, with their rewards and why each ended."""

    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    finish_reasons: tuple[FinishReason, ...]

    @property
    def best(self) -> int:
        """The number of the answer with the highest reward; the first one of several."""
        return max(range(len(self.rewards)), key=lambda number: self.rewards[number])


@dataclass(frozen=True)
class BestOf:
    """How N answers are drawn and ranked. Raises FledgeError for fewer than 2, and for a temperature of 0."""

    count: int
    reward_model: RewardModel
    params: SamplingParams

    def __post_init__(self) -> None:
        if self.count < 2:
            raise FledgeError(f"best of {self.count} leaves nothing to choose from", where="--best-of", hint="write 2 or more")
        if self.params.temperature <= 0:
            raise FledgeError("at temperature 0 all answers are equal", where="--temperature", hint="write a number above 0")

    def answer(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        questions: Sequence[tuple[Sequence[Message], str | None]],
        where: Sequence[str],
        params: SamplingParams | None = None,
    ) -> list[RankedAnswers]:
        """The ranked answers to each question: a conversation that ends with the user's turn, and its tools. `where`: names of
        the questions in messages. `params`: in place of those of the draws, such as with a grammar for the model's tokens.

        Equal answers to a question are scored once. Raises FledgeError for a prompt that leaves no room for an answer, and for
        one that the reward model cannot read."""
        params, count = params or self.params, self.count
        prompts = [tokenizer.encode_prompt(messages, tools) for messages, tools in questions]
        completions = engine.generate(
            [prompt for prompt in prompts for _ in range(count)],
            params,
            sample_indices=list(range(len(prompts) * count)),
            where=[name for name in where for _ in range(count)],
        )
        texts = [tokenizer.decode(completion.tokens, skip_special=True) for completion in completions]
        rewards = self._rewards(questions, texts)
        ranked = []
        for first in range(0, len(texts), count):
            own = slice(first, first + count)
            reasons: tuple[FinishReason, ...] = tuple(completion.finish_reason for completion in completions[own])
            ranked.append(RankedAnswers(tuple(texts[own]), tuple(rewards[own]), reasons))
        return ranked

    def _rewards(self, questions: Sequence[tuple[Sequence[Message], str | None]], texts: Sequence[str]) -> list[float]:
        places: dict[tuple[int, str], list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault((place // self.count, text), []).append(place)
        conversations = [[*questions[number][0], Message("assistant", text)] for number, text in places]
        tools = [questions[number][1] for number, _ in places]
        rewards = [0.0] * len(texts)
        for own, reward in zip(places.values(), self.reward_model.score(conversations, tools), strict=True):
            for place in own:
                rewards[place] = reward
        return rewards
