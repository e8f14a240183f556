"""From items to tokens and weights that fit the context, with every cut counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fledge.data.items import Conversation, Document, Item, Preference
from fledge.data.ledger import SourceAccount
from fledge.tokenizer import Message, TemplateError, Tokenizer

Sequenced = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Placed:
    """An item with its place in the data and the account it belongs to."""

    item: Item
    where: str
    account: SourceAccount

    def left_out(self, rounds: int, of: int) -> None:
        """Account for oldest turns that did not fit."""
        if rounds:
            self.account.shortened += 1
            self.account.note("oldest turns left out", self.where, f"{rounds} of {of} rounds")

    def answer_cut(self, detail: str) -> None:
        """Account for an answer that did not fit."""
        self.account.truncated += 1
        self.account.note("answer cut to the context", self.where, detail)


@dataclass(frozen=True)
class Examples:
    """Token sequences, end to end. A weight belongs to the token at its place *as a target*.

    tokens int32 [N], weights float32 [N], offsets int64 [S + 1]. `per_example` sequences make one example: 1, or 2
    for a preference (chosen, rejected).
    """

    tokens: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    per_example: int

    @property
    def count(self) -> int:
        """Number of examples."""
        return (len(self.offsets) - 1) // self.per_example

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of one sequence."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        return self.tokens[start:stop], self.weights[start:stop]


def _columns(sequences: Iterable[Sequenced], per_example: int) -> Examples:
    tokens, weights, lengths = [], [], []
    for ids, weight in sequences:
        tokens.append(np.asarray(ids, dtype=np.int32))
        weights.append(np.asarray(weight, dtype=np.float32))
        lengths.append(len(ids))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    join = np.concatenate
    return Examples(
        join(tokens) if tokens else np.zeros(0, np.int32), join(weights) if weights else np.zeros(0, np.float32),
        offsets, per_example,
    )  # fmt: skip


def _rounds(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The system turn, and the rounds of (user, assistant) or a last (user,)."""
    head = tuple(messages[:1]) if messages[0].role == "system" else ()
    body = messages[len(head) :]
    return head, [tuple(body[i : i + 2]) for i in range(0, len(body), 2)]


def _conversation(item: Conversation, tokenizer: Tokenizer, limit: int, placed: Placed) -> Sequenced | None:
    """The most recent whole rounds that fit; an answer that does not fit alone is cut on the right, and counted."""
    head, rounds = _rounds(item.messages)
    tokens, weights, first = [], [], 0
    for first in range(len(rounds)):
        tokens, weights = tokenizer.encode_conversation([*head, *(m for r in rounds[first:] for m in r)])
        if len(tokens) <= limit:
            break
    size = f"{len(tokens):,} tokens, context {limit - 1:,}"
    if not any(weights[1:limit]):
        placed.account.drop("prompt longer than the context", placed.where, size)
        return None
    placed.left_out(first, len(rounds))
    if len(tokens) > limit:
        placed.answer_cut(size)
    return tokens[:limit], weights[:limit]


def _preference(item: Preference, tokenizer: Tokenizer, limit: int, placed: Placed) -> list[Sequenced] | None:
    head, rounds = _rounds(item.prompt)
    pair: list[Sequenced] = []
    longest = first = 0
    for first in range(len(rounds)):
        prompt = [*head, *(m for r in rounds[first:] for m in r)]
        pair = [_last_turn_only(tokenizer, prompt, answer) for answer in (item.chosen, item.rejected)]
        longest = max(len(tokens) for tokens, _ in pair)
        if longest <= limit:
            break
    size = f"{longest:,} tokens, context {limit - 1:,}"
    cut = [(tokens[:limit], weights[:limit]) for tokens, weights in pair]
    if not all(any(weights[1:]) for _, weights in cut):
        placed.account.drop("prompt longer than the context", placed.where, size)
        return None
    if cut[0][0] == cut[1][0]:
        placed.account.drop("answers equal after the cut", placed.where, size)
        return None
    placed.left_out(first, len(rounds))
    if longest > limit:
        placed.answer_cut(size)
    return cut


def _last_turn_only(tokenizer: Tokenizer, prompt: list[Message], answer: str) -> Sequenced:
    """A completion after its prompt: earlier assistant turns are part of the prompt and carry no weight."""
    tokens, weights = tokenizer.encode_conversation([*prompt, Message("assistant", answer)])
    before = tokenizer.encode_prompt(prompt)
    if tokens[: len(before)] != before:
        raise TemplateError("the chat template writes an answer behind something else than its generation prompt")
    return tokens, [0.0] * len(before) + weights[len(before) :]


def _count(account: SourceAccount, sequences: Sequence[Sequenced]) -> None:
    account.used += 1
    account.tokens += sum(len(tokens) for tokens, _ in sequences)
    account.supervised_tokens += int(sum(sum(w > 0 for w in weights[1:]) for _, weights in sequences))


def encode_items(placed: Sequence[Placed], tokenizer: Tokenizer, context: int, kind: str) -> Examples:
    """Examples of all items that fit. A sequence of n tokens gives n − 1 positions, so n ≤ context + 1."""
    if kind == "pretrain":
        return _encode_documents(placed, tokenizer, context)
    sequences: list[Sequenced] = []
    for place in placed:
        try:
            if isinstance(place.item, Conversation):
                one = _conversation(place.item, tokenizer, context + 1, place)
                made = None if one is None else [one]
            else:
                assert isinstance(place.item, Preference)
                made = _preference(place.item, tokenizer, context + 1, place)
        except TemplateError as error:
            place.account.drop("the chat template refuses it", place.where, str(error))
            continue
        if made is not None:
            _count(place.account, made)
            sequences += made
    return _columns(sequences, 2 if kind == "preference" else 1)


def _encode_documents(placed: Sequence[Placed], tokenizer: Tokenizer, context: int) -> Examples:
    documents = [place.item.text for place in placed if isinstance(place.item, Document)]
    encoded = tokenizer.encode_documents(documents)
    for place, tokens in zip(placed, encoded, strict=True):
        _count(place.account, [(tokens, [1.0] * len(tokens))])
    return _columns(((tokens, [1.0] * len(tokens)) for tokens in encoded), 1)
