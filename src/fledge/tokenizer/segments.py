"""Encoding of rendered conversations: the tokens of the whole text, with the weight and turn of each token.

A tokenizer splits a text at control tokens and encodes what stands between them. So do we, which gives the tokens that
transformers gives for the text. Between two control tokens, a prompt may end and its answer begin: the text is encoded as a
whole, and cut there if its tokens begin with those of the prompt alone. If they do not, both are encoded for themselves,
because a token cannot belong to a prompt and to its answer.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as Core

from fledge.tokenizer.fast_encoder import EncodedTexts, VerifiedFastEncoder
from fledge.tokenizer.message import TextSegment

TextEncoder = Callable[[Sequence[str]], EncodedTexts]
Part = tuple[str, float, int]  # text, weight, turn
NO_MATCHES: tuple[tuple[int, int, str], ...] = ()


class Encoding(NamedTuple):
    """A rendered conversation: tokens int32 [T], weights float32 [T], turns int32 [T].

    A token's turn is the index of the assistant's message whose text it belongs to, or -1. `seams`: places where transformers
    would join the end of a prompt and the beginning of its answer to one token.
    """

    tokens: np.ndarray
    weights: np.ndarray
    turns: np.ndarray
    seams: int = 0


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the texts, the longest that fits. What they begin with in common is searched for first."""
    known = sorted(filter(None, texts), key=len, reverse=True)
    begin = known[-1] if known else ""
    while not all(text.startswith(begin) for text in known):
        begin = begin[:-1]
    return re.compile(
        re.escape(begin) + f"(?:{'|'.join(re.escape(text[len(begin) :]) for text in known)})" if known else "(?!)"
    )


class SegmentEncoder:
    """Encodes rendered conversations with a tokenizer.

    `encode`: the encoder of texts in which control tokens are ordinary text. `parses_literal`: control tokens in the contents
    of messages become single tokens too.
    """

    def __init__(self, core: Core, encode: TextEncoder, parses_literal: bool = False) -> None:
        tokens = {token.content: (number, token) for number, token in core.get_added_tokens_decoder().items() if token.special}
        self._control = any_of(tokens)
        self._shortest = min(map(len, tokens), default=0)
        self._order = {text: index for index, text in enumerate(tokens)}
        self._control_ids = np.array([number for number, _ in tokens.values()], np.int32)
        self._left = {text for text, (_, token) in tokens.items() if token.lstrip}
        self._right = {text for text, (_, token) in tokens.items() if token.rstrip}
        self._parses_literal = parses_literal
        self._encode = encode
        inner = _without_first_prefix(core)
        self._encode_first, self._encode_inner = encode, encode if inner is None else inner
        self.first_differs = inner is not None

    def encode(self, batch: Sequence[Sequence[TextSegment]]) -> list[Encoding]:
        """The tokens, weights and turns of many rendered conversations. Equal texts are encoded only once.

        Raises UnicodeEncodeError for a text with lone surrogates.
        """
        spans = _Spans(len(self._control_ids), self.first_differs)
        for rendering in batch:
            self._add(rendering, spans)
            spans.end_row()
        return spans.encodings(self._encode_first, self._encode_inner, self._control_ids)

    def _add(self, rendering: Sequence[TextSegment], spans: "_Spans") -> None:
        """Add one conversation: its control tokens, and the texts between them, neighbours of equal weight and turn as one."""
        order, left, right, add_control = self._order, self._left, self._right, spans.spans.append
        parses_literal, shortest, find = self._parses_literal, self._shortest, self._control.finditer
        run: list[Part] = []  # the text since the last control token, but for its last part, which is in `pending`
        pending, weight, turn = "", 0.0, -1
        after = ""  # the control token before the run
        for text, own_weight, literal, own_turn in rendering:
            if own_turn is None:
                own_turn = -1
            if (literal and not parses_literal) or len(text) < shortest:
                matches = NO_MATCHES
            elif text in order:
                matches = ((0, len(text), text),)
            else:
                matches = [(*match.span(), match[0]) for match in find(text)]
            position = 0
            for start, stop, token in matches:
                if start > position:
                    if pending and (own_weight != weight or own_turn != turn):
                        run.append((pending, weight, turn))
                        pending = ""
                    pending, weight, turn = pending + text[position:start], own_weight, own_turn
                if pending:
                    run.append((pending, weight, turn))
                    spans.add_run(_stripped(run, after in right, token in left) if left or right else run)
                    run, pending = [], ""
                add_control((order[token], own_weight, own_turn))
                position, after = stop, token
            if position < len(text):
                if pending and (own_weight != weight or own_turn != turn):
                    run.append((pending, weight, turn))
                    pending = ""
                pending, weight, turn = pending + text[position:] if position else pending + text, own_weight, own_turn
        if pending:
            run.append((pending, weight, turn))
            spans.add_run(_stripped(run, after in right, False) if left or right else run)


class _Joint(NamedTuple):
    """Neighbouring spans whose texts are encoded as one: number of the first span, whether it begins a row, the parts."""

    first: int
    begins_row: bool
    parts: list[Part]


class _Spans:
    """The spans of a batch, control tokens and parts of texts, each with its weight and turn, and the rows that they make.

    Control tokens have the numbers below `num_controls`, texts those from there on. A part that follows others in its run has
    the number of the text from the beginning of the run to its own end.
    """

    def __init__(self, num_controls: int, first_differs: bool) -> None:
        self.num_controls, self.first_differs = num_controls, first_differs
        self.texts: tuple[dict[str, int], dict[str, int]] = {}, {}  # inside, at the beginning of a row: each text's number
        self.spans: list[tuple[int, float, int]] = []  # number, weight, turn
        self.row_ends: list[int] = [0]
        self.joints: list[_Joint] = []

    def add_run(self, run: list[Part]) -> None:
        """Add the text between two control tokens, in parts of which neighbours differ in weight or turn."""
        begins_row = self.first_differs and len(self.spans) == self.row_ends[-1]
        inside, first = self.texts
        numbers = first if begins_row else inside
        if len(run) > 1:
            self.joints.append(_Joint(len(self.spans), begins_row, run))
        prefix = ""
        for text, weight, turn in run:
            prefix = prefix + text if prefix else text
            self.spans.append((numbers.setdefault(prefix, self.num_controls + len(inside) + len(first)), weight, turn))

    def end_row(self) -> None:
        """End a conversation."""
        self.row_ends.append(len(self.spans))

    def encodings(self, encode_first: TextEncoder, encode_inner: TextEncoder, controls: np.ndarray) -> list[Encoding]:
        """The encoding of each row. `controls`: the ids of the control tokens, int32 [num_controls]."""
        encoders = encode_inner, encode_first
        encoded = [encode(list(texts)) for encode, texts in zip(encoders, self.texts, strict=True)]
        ids = np.concatenate((controls, *(ids for ids, _ in encoded)))
        starts_of = np.arange(self.num_controls + len(self.texts[0]) + len(self.texts[1]))
        sizes_of = np.ones(len(starts_of), np.int64)
        base = len(controls)
        for texts, (own_ids, offsets) in zip(self.texts, encoded, strict=True):
            numbers = np.fromiter(texts.values(), np.int64, len(texts))
            starts_of[numbers], sizes_of[numbers] = base + offsets[:-1], np.diff(offsets)
            base += len(own_ids)
        numbers, weights, turns = zip(*self.spans, strict=True) if self.spans else ((), (), ())
        numbers, weights, turns = np.array(numbers, np.int64), np.array(weights, np.float32), np.array(turns, np.int32)
        starts, sizes = starts_of[numbers], sizes_of[numbers]
        separate = self._cut_joints(ids, starts, sizes)
        ids = _encode_separately(separate, encoders, ids, starts, sizes)
        ends = np.concatenate(([0], np.cumsum(sizes)))
        tokens = ids[_ranges(starts, sizes)]
        weights, turns = np.repeat(weights, sizes), np.repeat(turns, sizes)
        seams = np.diff(np.searchsorted(np.array([joint.first for joint in separate], np.int64), self.row_ends)).tolist()
        bounds = pairwise(ends[self.row_ends].tolist())
        return [Encoding(tokens[a:b], weights[a:b], turns[a:b], count) for (a, b), count in zip(bounds, seams, strict=True)]

    def _cut_joints(self, ids: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> list[_Joint]:
        """Cut the text of each joint to its parts, where each prefix has the tokens that the whole begins with: sets the start
        and size of its spans. Gives the other joints."""
        if not self.joints:
            return []
        first = np.array([joint.first for joint in self.joints])
        count = np.array([len(joint.parts) for joint in self.joints])
        spans, whole = _ranges(first, count), np.repeat(first + count - 1, count)
        compared = np.where(spans == whole, 0, np.minimum(sizes[spans], sizes[whole]))
        other = np.cumsum(np.concatenate(([0], ids[_ranges(starts[spans], compared)] != ids[_ranges(starts[whole], compared)])))
        ends = np.cumsum(compared)
        begins = np.where(spans == np.repeat(first, count), 0, sizes[spans - 1])
        kept = (other[ends] == other[ends - compared]) & (begins <= sizes[spans]) & (sizes[spans] <= sizes[whole])
        joint_kept = np.logical_and.reduceat(kept, np.cumsum(count) - count)
        chosen = np.repeat(joint_kept, count)
        new_starts, new_sizes = starts[whole] + begins, sizes[spans] - begins
        starts[spans[chosen]], sizes[spans[chosen]] = new_starts[chosen], new_sizes[chosen]
        return [self.joints[index] for index in np.flatnonzero(~joint_kept).tolist()]


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The indices start … start + size - 1 of each pair, one behind the other: int64 [sum of the sizes]."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def _encode_separately(
    joints: Sequence[_Joint], encoders: Sequence[TextEncoder], ids: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Encode each part of the joints for itself: the ids with theirs behind them; sets the start and size of their spans."""
    pieces, total = [ids], len(ids)
    for joint in joints:
        for index, (text, _, _) in enumerate(joint.parts):
            piece = encoders[joint.begins_row and index == 0]([text])[0]
            starts[joint.first + index], sizes[joint.first + index] = total, len(piece)
            pieces.append(piece)
            total += len(piece)
    return np.concatenate(pieces)


def _stripped(run: list[Part], after_right: bool, before_left: bool) -> list[Part]:
    """The parts without the white space that a control token before or behind them takes in."""
    parts = list(run)
    while parts and after_right and parts[0][0][0].isspace():
        text, weight, turn = parts[0]
        parts[:1] = [(text.lstrip(), weight, turn)] if text.strip() else []
    while parts and before_left and parts[-1][0][-1].isspace():
        text, weight, turn = parts[-1]
        parts[-1:] = [(text.rstrip(), weight, turn)] if text.strip() else []
    return parts


def _without_first_prefix(core: Core) -> TextEncoder | None:
    """The encoder of texts that do not begin a conversation, where the tokenizer puts a blank before the first text only."""
    description = json.loads(core.to_str())
    pre_tokenizer = description.get("pre_tokenizer") or {}
    steps = [pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])]
    chosen = [step for step in steps if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"]
    if not chosen:
        return None
    for step in chosen:
        step["prepend_scheme"] = "never"
    inner = Core.from_str(json.dumps(description))
    literal = Core.from_str(json.dumps(description))
    literal.encode_special_tokens = True
    encoder = VerifiedFastEncoder(inner, literal)
    return lambda texts: encoder.encode(texts, literal=True)
