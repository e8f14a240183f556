"""From items to tokens and weights that fit the context. What is cut, left out or dropped is told in remarks."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fledge.data.encoding.augment import Round, augment
from fledge.data.parsing.rows import Conversation, Document, Item, PreferencePair, RowError
from fledge.recipe.schema import AugmentConfig, PreferenceStage, PretrainStage, SftStage
from fledge.tokenizer import Message, TemplateError, TextSegment, Tokenizer
from fledge.tokenizer.tokenizer import Encoding

Sequenced = tuple[np.ndarray, np.ndarray]  # tokens int32 [n], weights float32 [n]
Example = tuple[Sequenced, ...]  # one sequence, or two for a preference: chosen, rejected

BATCH_ITEMS, BATCH_CHARACTERS = 1000, 4_000_000
SHORTEST_DOCUMENT = 10  # tokens, where the recipe names no other


@dataclass(frozen=True)
class RowEvent:
    """What happened to an item. `amount`: tokens lost (truncated), rounds left out (shortened), examples made (split),
    rounds or letters (changed)."""

    state: Literal["dropped", "truncated", "shortened", "split", "changed", "noticed"]
    reason: str
    detail: str = ""
    amount: int = 0


@dataclass(frozen=True)
class Encoded:
    """The examples of one item; where there is none, a remark "dropped" says why."""

    examples: tuple[Example, ...]
    remarks: tuple[RowEvent, ...] = ()


@dataclass(frozen=True)
class EncodingConfig:
    """How items become examples. A sequence of n tokens gives n − 1 positions, so n ≤ `context` + 1."""

    kind: str
    max_seq_len: int
    truncation: Literal["keep_recent", "keep_start", "split"]
    train_on_turns: Literal["all", "last"]
    min_tokens: int
    augment: AugmentConfig
    seed: int

    @classmethod
    def of(cls, stage: PretrainStage | SftStage | PreferenceStage, seed: int) -> "EncodingConfig":
        """The rules of a stage."""
        data, least = stage.data, stage.data.clean.min_tokens
        if least is None:
            least = SHORTEST_DOCUMENT if stage.kind == "pretrain" else 0
        return cls(stage.kind, data.max_seq_len, data.truncation, data.train_on_turns, least, data.augment, seed)


@dataclass(frozen=True)
class _Turns:
    """A conversation in rounds, and how it may end: as it is, or with one of the answers to a prompt."""

    head: Round
    rounds: tuple[Round, ...]
    endings: tuple[Round, ...]
    tools: str | None

    @property
    def completion_only(self) -> bool:
        """Whether only the ending is trained."""
        return self.endings != ((),)

    def messages(self, first: int, stop: int) -> list[Message]:
        """The system turn and rounds first … stop."""
        return [*self.head, *(message for turns in self.rounds[first:stop] for message in turns)]


@dataclass(frozen=True)
class _Part:
    """Some rounds as sequences, one for each ending, before any cut. `ends` is where the last trained text of each ends:
    what a template writes behind it is no loss."""

    sequences: list[Sequenced]
    turns: list[np.ndarray]
    ends: list[int]
    calls: frozenset[int]  # turns that call a tool

    def lost(self, limit: int) -> int:
        """Tokens that do not fit."""
        return sum(max(0, end - limit) for end in self.ends)


def split_rounds(messages: Sequence[Message]) -> tuple[Round, list[Round]]:
    """The system turn at the beginning, and the rounds: from a user's turn to the last answer before the next one, tool
    calls and their results included."""
    head = tuple(messages[:1]) if messages and messages[0].role == "system" else ()
    rounds: list[list[Message]] = []
    answered = True
    for message in messages[len(head) :]:
        if answered and (not rounds or message.role not in ("assistant", "tool")):
            rounds.append([])
        rounds[-1].append(message)
        answered = message.role == "assistant"
    return head, [tuple(turns) for turns in rounds]


def _talk(item: Item) -> _Turns:
    if isinstance(item, Document):
        raise TypeError("a document is no conversation")
    if isinstance(item, Conversation):
        messages, endings = item.messages, ((),)
    else:
        answers = (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item.answer,)
        messages, endings = item.prompt, tuple((Message("assistant", answer),) for answer in answers)
    head, rounds = split_rounds(messages)
    return _Turns(head, tuple(rounds), endings, item.tools)


def _varied(talk: _Turns, rules: EncodingConfig) -> tuple[_Turns, tuple[RowEvent, ...]]:
    if not rules.augment.drop_last_turns and not rules.augment.noise:
        return talk, ()
    rounds, ended, changed = augment(talk.rounds, rules.augment, rules.seed, may_end=not talk.completion_only)
    remarks = []
    if ended:
        remarks.append(RowEvent("changed", "ended after an earlier round", f"{ended} of {len(talk.rounds)} rounds", ended))
    if changed:
        remarks.append(RowEvent("changed", "typing errors in questions", f"{changed:,} letters", changed))
    return _Turns(talk.head, tuple(rounds), talk.endings, talk.tools), tuple(remarks)


def _renderings(talk: _Turns, first: int, stop: int, tokenizer: Tokenizer) -> list[list[TextSegment]]:
    """Each ending behind rounds first … stop, and where only the ending is trained, the prompt alone."""
    messages, template = talk.messages(first, stop), tokenizer.template
    renderings = [template.render([*messages, *ending], talk.tools) for ending in talk.endings]
    if talk.completion_only:
        renderings.append(template.prompt(messages, talk.tools))
    return renderings


def _part(talk: _Turns, first: int, stop: int, encodings: Sequence[Encoding], train_on: str) -> _Part:
    """The part whose renderings were encoded, with the weights that the rules give."""
    sequences, turns, ends = [], [], []
    for encoding, _ in zip(encodings, talk.endings, strict=False):
        tokens, weights = encoding.tokens, encoding.weights
        trained = weights.nonzero()[0]
        ends.append(int(trained[-1]) + 1 if len(trained) else len(tokens))
        if talk.completion_only:
            weights = _mask_prompt(encodings[-1].tokens, tokens, weights)
        else:
            weights = _apply_turn_weights(encoding, talk.messages(first, stop), train_on)
        sequences.append((tokens, weights))
        turns.append(encoding.turns)
    messages = enumerate(talk.messages(first, stop))
    return _Part(sequences, turns, ends, frozenset(index for index, message in messages if message.tool_calls))


def _mask_prompt(prompt: np.ndarray, tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weights of a completion: earlier answers are part of the prompt and carry none."""
    if not np.array_equal(tokens[: len(prompt)], prompt):
        raise TemplateError("the chat template writes an answer behind something else than its generation prompt")
    return np.concatenate((np.zeros(len(prompt), np.float32), weights[len(prompt) :]))


def _apply_turn_weights(encoding: Encoding, messages: Sequence[Message], train_on: str) -> np.ndarray:
    """The template's weights times those of each turn; where only the last answer is trained, the others' are 0."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    factors = np.ones(len(messages) + 1, np.float32)  # the last is for tokens of no turn
    for index in answers:
        weight = messages[index].weight
        factors[index] = 0.0 if train_on == "last" and index != answers[-1] else 1.0 if weight is None else weight
    kinds = {float(factors[index]) for index in answers}
    if kinds <= {1.0}:
        return encoding.weights
    if len(kinds) == 1:
        return encoding.weights * np.float32(kinds.pop())
    if (encoding.turns[encoding.weights > 0] < 0).any():
        raise RowError("template does not tell turns apart", "it cannot give its turns different weights")
    return encoding.weights * factors[encoding.turns]


class _Truncator:
    """Makes one conversation fit the context."""

    def __init__(self, talk: _Turns, whole: _Part, tokenizer: Tokenizer, rules: EncodingConfig) -> None:
        self.talk, self.tokenizer, self.rules = talk, tokenizer, rules
        self.limit, self.rounds = rules.max_seq_len + 1, len(talk.rounds)
        self._parts = {(0, self.rounds): whole}

    def part(self, first: int, stop: int) -> _Part:
        """Rounds first … stop as they render on their own."""
        if (first, stop) not in self._parts:
            encodings = self.tokenizer.encode_segments(_renderings(self.talk, first, stop, self.tokenizer))
            self._parts[first, stop] = _part(self.talk, first, stop, encodings, self.rules.train_on_turns)
        return self._parts[first, stop]

    def fits(self, first: int, stop: int) -> bool:
        return not self.part(first, stop).lost(self.limit)

    def truncate_part(self, part: _Part) -> tuple[Example, list[RowEvent]]:
        """The part without what does not fit; RowError where no target is left, or no difference."""
        if not all(weights[1:].any() for _, weights in part.sequences):
            raise RowError("nothing to train", "every turn that could be trained has weight 0")
        size = f"{max(part.ends):,} tokens, context {self.rules.max_seq_len:,}"
        example = tuple(
            (tokens[: self.limit], self._kept(weights, turns, part.calls))
            for (tokens, weights), turns in zip(part.sequences, part.turns, strict=True)
        )
        if not all(weights[1:].any() for _, weights in example):
            raise RowError("prompt longer than the context", size)
        if len(example) == 2 and np.array_equal(example[0][0], example[1][0]):
            raise RowError("answers equal after the cut", size)
        lost = part.lost(self.limit)
        if not lost:
            return example, []
        return example, [RowEvent("truncated", "answer cut to the context", self._answers_hit(part) + size, lost)]

    def _kept(self, weights: np.ndarray, turns: np.ndarray, calls: frozenset[int]) -> np.ndarray:
        """The weights of what fits. A tool call that is cut is no JSON any more, so none of it is trained."""
        kept = weights[: self.limit]
        if len(turns) > self.limit and turns[self.limit] == turns[self.limit - 1] and int(turns[self.limit]) in calls:
            kept = np.where(turns[: self.limit] == turns[self.limit], np.float32(0), kept)
        return kept

    def _answers_hit(self, part: _Part) -> str:
        """How many answers of a conversation are cut or lost, where the template tells and it has several."""
        if self.talk.completion_only:
            return ""
        (_, weights), turns = part.sequences[0], part.turns[0]
        trained, hit = set(turns[weights > 0].tolist()), set(turns[self.limit :][weights[self.limit :] > 0].tolist())
        return "" if len(trained) == 1 else f"{len(hit)} of {len(trained)} answers cut or lost, "

    def keep_start(self) -> Encoded:
        """Keep the beginning."""
        example, remarks = self.truncate_part(self.part(0, self.rounds))
        return Encoded((example,), tuple(remarks))

    def keep_recent(self) -> Encoded:
        """Keep the newest whole rounds; the last one's answer is cut where it does not fit alone.

        Searched by bisection: fewer rounds are taken to be shorter, and what is chosen is rendered and measured.
        """
        first = 0
        if not self.fits(0, self.rounds):
            candidates = range(1, self.rounds - 1)
            first = min(1 + bisect_left(candidates, True, key=lambda start: self.fits(start, self.rounds)), self.rounds - 1)
        example, remarks = self.truncate_part(self.part(first, self.rounds))
        if first:
            left_out = RowEvent("shortened", "oldest turns left out", f"{first} of {self.rounds} rounds", first)
            remarks = [left_out, *remarks]
        return Encoded((example,), tuple(remarks))

    def split(self) -> Encoded:
        """Several examples of whole rounds, each round in one of them."""
        examples, remarks, left_out = [], [], Counter[str]()
        first = 0
        while first < self.rounds:
            stop = self._longest(first)
            try:
                example, said = self.truncate_part(self.part(first, stop))
            except RowError as error:
                left_out[error.reason] += stop - first
            else:
                examples.append(example)
                remarks += said
            first = stop
        if not examples:
            raise RowError(next(iter(left_out)), f"in each of {self.rounds} rounds")
        for reason, rounds in left_out.items():
            remarks.append(RowEvent("shortened", f"rounds left out: {reason}", f"{rounds} of {self.rounds} rounds", rounds))
        if len(examples) > 1:
            made = RowEvent("split", "conversation made several examples", f"{len(examples)} examples", len(examples))
            remarks.insert(0, made)
        return Encoded(tuple(examples), tuple(remarks))

    def _longest(self, first: int) -> int:
        """Where the longest run of rounds from `first` ends that fits; at least one round."""
        count, most = 1, self.rounds - first
        while 2 * count <= most and self.fits(first, first + 2 * count):
            count *= 2
        more = range(count + 1, min(2 * count, most + 1))
        return first + count + bisect_left(more, True, key=lambda rounds: not self.fits(first, first + rounds))


def _fit(talk: _Turns, encodings: Sequence[Encoding], tokenizer: Tokenizer, rules: EncodingConfig) -> Encoded:
    """The examples of one conversation; RowError or TemplateError where it has none."""
    whole = _part(talk, 0, len(talk.rounds), encodings, rules.train_on_turns)
    longest = max(len(tokens) for tokens, _ in whole.sequences)
    if longest < rules.min_tokens:
        raise RowError("too short", f"{longest} tokens, at least {rules.min_tokens} wanted")
    if not all(weights[1:].any() for _, weights in whole.sequences):
        raise RowError("nothing to train", "every turn that could be trained has weight 0")
    fitting = _Truncator(talk, whole, tokenizer, rules)
    if rules.truncation == "keep_start":
        return fitting.keep_start()
    if rules.truncation == "split" and rules.train_on_turns == "all" and not talk.completion_only:
        return fitting.split()
    return fitting.keep_recent()


def _dropped(reason: str, detail: str) -> Encoded:
    return Encoded((), (RowEvent("dropped", reason, detail.encode(errors="replace").decode()),))


NOT_UNICODE = _dropped("not valid Unicode", "a lone surrogate has no UTF-8 form")


def _encode_all(tokenizer: Tokenizer, batch: Sequence[list[list[TextSegment]]]) -> list[list[Encoding] | None]:
    """The encodings of each item's renderings; None where its text has no UTF-8 form."""
    try:
        encodings = iter(tokenizer.encode_segments([rendering for renderings in batch for rendering in renderings]))
    except UnicodeEncodeError:
        if len(batch) == 1:
            return [None]
        return [found for renderings in batch for found in _encode_all(tokenizer, [renderings])]
    return [[next(encodings) for _ in renderings] for renderings in batch]


def _encode_conversations(items: Sequence[Item], tokenizer: Tokenizer, rules: EncodingConfig) -> Iterator[Encoded]:
    """Render all, encode all at once, and make each fit."""
    talks = [_varied(_talk(item), rules) for item in items]
    rendered: list[list[list[TextSegment]]] = []
    refused: dict[int, str] = {}
    for index, (talk, _) in enumerate(talks):
        try:
            rendered.append(_renderings(talk, 0, len(talk.rounds), tokenizer))
        except TemplateError as error:
            refused[index] = str(error)
            rendered.append([])
    for index, encodings in enumerate(_encode_all(tokenizer, rendered)):
        talk, changes = talks[index]
        if encodings is None:
            yield NOT_UNICODE
            continue
        try:
            if index in refused:
                raise TemplateError(refused[index])
            encoded = _fit(talk, encodings, tokenizer, rules)
        except TemplateError as error:
            yield _dropped("the chat template refuses it", str(error))
        except RowError as error:
            yield _dropped(error.reason, error.detail)
        else:
            yield Encoded(encoded.examples, (*changes, *encoded.remarks)) if changes else encoded


def _encode_documents(items: Sequence[Item], tokenizer: Tokenizer, rules: EncodingConfig) -> Iterator[Encoded]:
    """Documents are never cut: packing lets them go on in the next row."""
    try:
        documents = tokenizer.encode_documents([item.text for item in items if isinstance(item, Document)])
    except UnicodeEncodeError:
        if len(items) == 1:
            yield NOT_UNICODE
        else:
            for item in items:
                yield from _encode_documents([item], tokenizer, rules)
        return
    least, enclosing = max(rules.min_tokens, 1), 1 + (tokenizer.bos_id is not None)
    for tokens in documents:
        size = len(tokens) - enclosing
        if size < least:
            yield _dropped("too short", f"{size} tokens, at least {least} wanted")
        else:
            yield Encoded((((tokens, np.ones(len(tokens), np.float32)),),))


def _characters(item: Item) -> int:
    if isinstance(item, Document):
        return len(item.text)
    return sum(len(message.content) for message in (item.messages if isinstance(item, Conversation) else item.prompt))


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in order, no more at once than memory should hold."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += _characters(item)
        if len(batch) == BATCH_ITEMS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_items(items: Iterable[Item], tokenizer: Tokenizer, rules: EncodingConfig) -> Iterator[Encoded]:
    """What becomes of each item, in order. Items are encoded many at once, in constant memory.

    A weight belongs to the token at its place *as a target*, so the first token's never counts.
    """
    encode = _encode_documents if rules.kind == "pretrain" else _encode_conversations
    for batch in _batches(items):
        yield from encode(batch, tokenizer, rules)
