"""Best-of-N: several answers to a question, of which the one with the highest reward is taken (Stiennon et al. 2020)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fledge.errors import FledgeError
from fledge.generation import Engine, FinishReason, RewardModel, SamplingParams
from fledge.tokenizer import Message, Tokenizer


@dataclass(frozen=True)
class RankedAnswers:
    """The N answers to one question, in the order in which they were drawn, with their rewards and why each ended. The reward
    of an answer that the reward model has no positions for is -inf."""

    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    finish_reasons: tuple[FinishReason, ...]

    @property
    def best(self) -> int:
        """The number of the answer with the highest reward among those that ended by themselves, among all if none did; the
        first one of several. The reward of a cut answer is read where no answer ends, and means little."""

        def rank(number: int) -> tuple[bool, bool, float]:
            reward = self.rewards[number]
            return reward > -math.inf, self.finish_reasons[number] == "stop", reward

        return max(range(len(self.rewards)), key=rank)

    @property
    def cut(self) -> int:
        """How many answers did not end by themselves."""
        return sum(reason != "stop" for reason in self.finish_reasons)

    @property
    def too_long(self) -> int:
        """How many answers the reward model could not read."""
        return sum(reward == -math.inf for reward in self.rewards)


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
        a question of whose answers the reward model can read none."""
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
            if ranked[-1].too_long == count:
                raise FledgeError(
                    f"all {count} answers are too long for the reward model, which has {self._positions:,} positions for a "
                    "question and its answer",
                    where=where[first // count],
                    hint="write a smaller --max-new-tokens, leave the question out, or train the reward model with a larger "
                    "model.max_position_embeddings",
                )
        return ranked

    @property
    def _positions(self) -> int:
        return self.reward_model.model.max_positions

    def _rewards(self, questions: Sequence[tuple[Sequence[Message], str | None]], texts: Sequence[str]) -> list[float]:
        places: dict[tuple[int, str], list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault((place // self.count, text), []).append(place)
        conversations = [[*questions[number][0], Message("assistant", text)] for number, text in places]
        tools = [questions[number][1] for number, _ in places]
        tokens = (self.reward_model.encode(one, own) for one, own in zip(conversations, tools, strict=True))
        encoded = zip(places.values(), tokens, strict=True)
        readable = [(own, sequence) for own, sequence in encoded if len(sequence) <= self._positions]
        rewards = [-math.inf] * len(texts)
        scores = self.reward_model.score_tokens([sequence for _, sequence in readable])
        for (own, _), reward in zip(readable, scores, strict=True):
            for place in own:
                rewards[place] = reward
        return rewards
