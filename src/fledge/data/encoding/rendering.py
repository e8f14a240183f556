"""Dialogues in rounds, rendered by the chat template and weighted: which tokens of a rendering are trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fledge.data.encoding.augment import Round
from fledge.data.encoding.examples import TokenSequence
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Dialogue, Item
from fledge.tokenizer import Message, Tokenizer
from fledge.tokenizer.message import Rendering
from fledge.tokenizer.tokenizer import Encoding


@dataclass(frozen=True)
class DialogueRounds:
    """A dialogue in rounds. `endings` are what may follow the last round, one sequence each: nothing (the rounds hold the
    answers), or alternative answers to the prompt. `system` is the system turn, if there is one."""

    system: Round
    rounds: tuple[Round, ...]
    endings: tuple[Round, ...]
    tools: str | None

    @classmethod
    def of(cls, item: Item) -> "DialogueRounds":
        """The rounds of an item; TypeError for a document, which has none."""
        if not isinstance(item, Dialogue):
            raise TypeError(f"{item.description()} is no dialogue")
        system, rounds = split_rounds(item.turns)
        endings = tuple((answer,) for answer in item.endings) or ((),)
        return cls(system, tuple(rounds), endings, item.tools)

    @property
    def completion_only(self) -> bool:
        """Whether only the ending is trained."""
        return self.endings != ((),)

    def messages(self, first: int, stop: int) -> list[Message]:
        """The system turn and rounds first … stop - 1."""
        return [*self.system, *(message for turns in self.rounds[first:stop] for message in turns)]

    def renderings(self, first: int, stop: int, tokenizer: Tokenizer, train_on_turns: str = "all") -> list[Rendering]:
        """Each ending behind rounds first … stop - 1, as the chat template writes it."""
        messages, only_last = self.messages(first, stop), self.completion_only or train_on_turns == "last"
        return [tokenizer.template.rendering([*messages, *ending], self.tools, only_last) for ending in self.endings]


@dataclass(frozen=True)
class WeightedRounds:
    """Some rounds of a dialogue as token sequences with weights, one for each ending, before any cut.

    `turns` [n] of each sequence: number of each token's message. `ends`: length of each sequence up to its last trained token;
    later tokens can be cut without loss. `tool_call_turns`: numbers of the messages that call a tool.
    """

    sequences: list[TokenSequence]
    turns: list[np.ndarray]
    ends: list[int]
    tool_call_turns: frozenset[int]

    def lost_tokens(self, limits: Sequence[int]) -> int:
        """Tokens that do not fit into sequences of at most `limits` tokens, one for each."""
        return sum(max(0, end - limit) for end, limit in zip(self.ends, limits, strict=True))


def split_rounds(messages: Sequence[Message]) -> tuple[Round, list[Round]]:
    """The system turn at the beginning, and the rounds: from a user's turn to the last answer before the next one, tool
    calls and their results included."""
    system = tuple(messages[:1]) if messages and messages[0].role == "system" else ()
    rounds: list[list[Message]] = []
    answered = True
    for message in messages[len(system) :]:
        if answered and (not rounds or message.role not in ("assistant", "tool")):
            rounds.append([])
        rounds[-1].append(message)
        answered = message.role == "assistant"
    return system, [tuple(turns) for turns in rounds]


def weigh_rounds(
    dialogue: DialogueRounds, first: int, stop: int, encodings: Sequence[Encoding], train_on_turns: str
) -> WeightedRounds:
    """The weighted token sequences of rounds first … stop - 1, from the `encodings` of their `renderings`.

    Raises RowError if the template does not show which tokens belong to which turn."""
    messages = dialogue.messages(first, stop)
    sequences, turns, ends = [], [], []
    for encoding, _ in zip(encodings, dialogue.endings, strict=False):
        tokens, weights = encoding.tokens, encoding.weights
        trained = weights.nonzero()[0]
        ends.append(int(trained[-1]) + 1 if len(trained) else len(tokens))
        if dialogue.completion_only:
            weights = _mask_prompt(encoding, len(messages))
        else:
            weights = _apply_turn_weights(encoding, messages, train_on_turns)
        sequences.append((tokens, weights))
        turns.append(encoding.turns)
    tool_call_turns = frozenset(index for index, message in enumerate(messages) if message.tool_calls)
    return WeightedRounds(sequences, turns, ends, tool_call_turns)


def _mask_prompt(encoding: Encoding, turn: int) -> np.ndarray:
    """The weights of a completion, which is message number `turn`: earlier answers are part of the prompt and have weight 0."""
    if (encoding.turns[encoding.weights > 0] < 0).any():
        raise RowError("template does not tell turns apart", "it cannot show where the last answer begins")
    return np.where(encoding.turns == turn, encoding.weights, np.float32(0))


def _apply_turn_weights(encoding: Encoding, messages: Sequence[Message], train_on_turns: str) -> np.ndarray:
    """The template's weights times the weight of each turn; with `train_on_turns: last`, all answers but the last have 0."""
    if train_on_turns != "last" and all(message.weight is None for message in messages):
        return encoding.weights
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    factors = np.ones(len(messages) + 1, np.float32)  # the last is for tokens of no turn
    for index in answers:
        weight = messages[index].weight
        factors[index] = 0.0 if train_on_turns == "last" and index != answers[-1] else 1.0 if weight is None else weight
    distinct = {float(factors[index]) for index in answers}
    if distinct <= {1.0}:
        return encoding.weights
    if len(distinct) == 1:
        return encoding.weights * np.float32(distinct.pop())
    if (encoding.turns[encoding.weights > 0] < 0).any():
        raise RowError("template does not tell turns apart", "it cannot give its turns different weights")
    return encoding.weights * factors[encoding.turns]
