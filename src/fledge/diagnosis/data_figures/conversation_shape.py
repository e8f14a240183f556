"""Where answers stand in the tokens of a conversation, told from the chat template's own control tokens alone.

The loss weights are not looked at, so that what carries weight can be compared with what should.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from fledge.errors import FledgeError
from fledge.tokenizer import Message, Tokenizer

_ASKED = ("1", "a b")  # questions whose texts begin and end with different tokens


def spread_places(count: int, most: int) -> np.ndarray:
    """At most `most` of so many places, spread evenly, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


@dataclass(frozen=True)
class Answers:
    """A answers in a stream of sequences. `sequence` int64 [A]: the number of each one's sequence. `start` int64 [A]: its first
    token. `stop` int64 [A]: the position behind its last token, the token that ends it included. `ended` bool [A]: whether a
    token that ends answers stands there; positions are those of the stream."""

    sequence: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    ended: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def chosen(self, which: np.ndarray) -> "Answers":
        """Some of them, by a mask bool [A] or by numbers."""
        return Answers(self.sequence[which], self.start[which], self.stop[which], self.ended[which])

    def sampled(self, most: int) -> "Answers":
        """At most `most` of them, spread evenly."""
        return self.chosen(spread_places(len(self), most))

    @property
    def is_last(self) -> np.ndarray:
        """Whether each answer is the last one of its sequence, bool [A]."""
        if not len(self):
            return np.zeros(0, bool)
        return np.append(self.sequence[1:] != self.sequence[:-1], True)

    def mask(self, size: int) -> np.ndarray:
        """Which tokens of a stream of `size` tokens belong to one of the answers, bool [size]."""
        edges = np.zeros(size + 1, np.int32)
        np.add.at(edges, self.start, 1)
        np.add.at(edges, self.stop, -1)
        return np.cumsum(edges[:-1]) > 0


@dataclass(frozen=True)
class ConversationShape:
    """The tokens by which a chat template shows its turns.

    `header`: what stands before an answer, from the control token that begins its turn; empty where the template does not show
    that. `question`: the same before a question. `ends`: tokens that end an answer. `breaks`: all control tokens that the
    template writes outside answers; an answer reaches to the next one.
    """

    header: tuple[int, ...]
    question: tuple[int, ...]
    ends: frozenset[int]
    breaks: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ConversationShape":
        """The shape of a tokenizer's chat template. One without a template, or one that refuses plain questions, has no
        header."""
        stops = tokenizer.stop_ids
        try:
            prompts = [tokenizer.encode_prompt([Message("user", text)]) for text in _ASKED]
            whole, weights = tokenizer.encode_conversation(_probe(tokenizer))
        except FledgeError:
            return cls((), (), stops, stops)
        added = tokenizer.core.get_added_tokens_decoder()
        control = frozenset(number for number, token in added.items() if token.special)
        before = [token for token, _ in _common(prompts)]
        behind = [token for token, _ in _common([prompt[::-1] for prompt in prompts])][::-1]
        trained = np.asarray(weights) > 0
        is_final = trained & ~np.append(trained[1:], False)
        ends = stops | (control & {whole[place] for place in np.flatnonzero(is_final).tolist()})
        inside = {whole[place] for place in np.flatnonzero(trained & ~is_final).tolist()} - ends
        breaks = (control & ({*whole, *prompts[0]} - inside)) | ends
        return cls(_own_part(behind, control, ends), _own_part(before, control, ends), ends, breaks)

    def answers(self, tokens: np.ndarray, offsets: np.ndarray) -> Answers:
        """The answers in a stream of tokens [N], of which sequence s is `tokens[offsets[s] : offsets[s + 1]]`.

        Where nothing begins with the whole header, its beginning is searched for: some templates start generation with more
        than they write in training."""
        for size in range(len(self.header), 0, -1):
            header = self.header[:size]
            if size < len(self.header) and (header == self.question[:size] or self.breaks.isdisjoint(header)):
                break
            found = self._behind(header, tokens, offsets)
            if len(found):
                return found
        empty = np.zeros(0, np.int64)
        return Answers(empty, empty, empty, np.zeros(0, bool))

    def _behind(self, header: Sequence[int], tokens: np.ndarray, offsets: np.ndarray) -> Answers:
        start = places_of(header, tokens) + len(header)
        sequence = np.searchsorted(offsets, start - 1, side="right") - 1
        inside = (start < offsets[sequence + 1]) & (start - len(header) >= offsets[sequence])
        start, sequence = start[inside], sequence[inside]
        breaks = np.flatnonzero(np.isin(tokens, list(self.breaks)))
        following = np.append(breaks, len(tokens))[np.searchsorted(breaks, start)]
        limit = offsets[sequence + 1]
        is_end = np.append(np.isin(tokens, list(self.ends)), False)
        stop = np.minimum(following, limit)
        ended = (following < limit) & is_end[np.minimum(following, len(tokens))]
        answers = Answers(sequence, start, stop + ended, ended)
        return answers.chosen(answers.stop > answers.start)


def places_of(pattern: Sequence[int], tokens: np.ndarray) -> np.ndarray:
    """The places at which a pattern of tokens begins in a stream, int64, ascending; none for an empty pattern."""
    count = len(tokens) - len(pattern) + 1
    if not len(pattern) or count <= 0:
        return np.zeros(0, np.int64)
    matches = np.ones(count, bool)
    for offset, token in enumerate(pattern):
        matches &= tokens[offset : offset + count] == token
    return np.flatnonzero(matches)


def _common(sequences: Sequence[Sequence[int]]) -> Iterable[tuple[int, ...]]:
    """What two sequences begin with in common, as pairs of equal tokens."""
    return takewhile(lambda pair: len(set(pair)) == 1, zip(*sequences, strict=False))


def _probe(tokenizer: Tokenizer) -> list[Message]:
    """A conversation of two rounds, or of one where the chat template has no place for two."""
    one = [Message("user", "1"), Message("assistant", "2")]
    two = [*one, Message("user", "3"), Message("assistant", "4")]
    try:
        tokenizer.template.render(two)
    except FledgeError:
        return one
    return two


def _own_part(tokens: Sequence[int], control: frozenset[int], ends: frozenset[int]) -> tuple[int, ...]:
    """The part of what stands before a text that belongs to its own turn: behind the last token that ends another turn, from
    the first control token on. All of it where there is no control token."""
    last = max((place for place, token in enumerate(tokens) if token in ends), default=-1)
    own = tokens[last + 1 :] or tokens
    first = next((place for place, token in enumerate(own) if token in control), None)
    return tuple(own if first is None else own[first:])
