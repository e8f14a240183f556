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
CONTROL = 2  # the kind of a span that is a control token


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
        spans = _Spans(self.first_differs)
        for rendering in batch:
            self._add(rendering, spans)
            spans.end_row()
        return spans.encodings(self._encode_first, self._encode_inner, self._control_ids)

    def _add(self, rendering: Sequence[TextSegment], spans: "_Spans") -> None:
        """Add one conversation: its control tokens, and the texts between them."""
        order, left, right, append = self._order, self._left, self._right, spans.spans.append
        strips, parses_literal, shortest = bool(left or right), self._parses_literal, self._shortest
        run: list[Part] = []
        after = ""  # the control token before the run
        for segment in rendering:
            text, weight, turn = segment.text, segment.weight, -1 if segment.turn is None else segment.turn
            if segment.literal and not parses_literal:
                run.append((text, weight, turn))
                continue
            if len(text) < shortest:
                run.append((text, weight, turn))
                continue
            matches = [(0, len(text), text)] if text in order else [(*m.span(), m[0]) for m in self._control.finditer(text)]
            position = 0
            for start, stop, token in matches:
                if start > position:
                    run.append((text[position:start], weight, turn))
                if run:
                    spans.add_run(_stripped(run, after in right, token in left) if strips else run)
                    run = []
                append((CONTROL, order[token], weight, turn))
                position, after = stop, token
            if position < len(text):
                run.append((text[position:], weight, turn))
        if run:
            spans.add_run(_stripped(run, after in right, False) if strips else run)


class _Spans:
    """The spans of a batch: parts of texts and control tokens, each with its weight and turn, and the rows that they make."""

    def __init__(self, first_differs: bool) -> None:
        self.first_differs = first_differs
        self.texts: tuple[dict[str, int], dict[str, int]] = {}, {}  # inside, at the beginning of a row: each text's number
        self.spans: list[tuple[int, int, float, int]] = []  # kind (0 or 1: of the texts above; CONTROL), number, weight, turn
        self.row_ends: list[int] = [0]
        self.joints: list[tuple[int, int, list[Part], list[int]]] = []  # first span, kind, parts, numbers of the prefixes

    def add_run(self, run: list[Part]) -> None:
        """Add the text between two control tokens, in parts of different weight or turn."""
        kind = 1 if self.first_differs and len(self.spans) == self.row_ends[-1] else 0
        numbers = self.texts[kind]
        parts = run if len(run) == 1 else _merged(run)
        if len(parts) == 1:
            text, weight, turn = parts[0]
            self.spans.append((kind, numbers.setdefault(text, len(numbers)), weight, turn))
        elif parts:
            prefix, prefixes, first = "", [], len(self.spans)
            for text, weight, turn in parts:
                prefix += text
                prefixes.append(numbers.setdefault(prefix, len(numbers)))
                self.spans.append((kind, 0, weight, turn))
            self.joints.append((first, kind, parts, prefixes))

    def end_row(self) -> None:
        """End a conversation."""
        self.row_ends.append(len(self.spans))

    def encodings(self, encode_first: TextEncoder, encode_inner: TextEncoder, controls: np.ndarray) -> list[Encoding]:
        """The encoding of each row."""
        inner, first = encode_inner(list(self.texts[0])), encode_first(list(self.texts[1]))
        ids = np.concatenate((inner[0], first[0], controls))
        bases = (0, len(inner[0]), len(inner[0]) + len(first[0]))
        offsets = (inner[1], first[1] + bases[1], np.arange(len(controls) + 1) + bases[2])
        columns = list(zip(*self.spans, strict=True)) or [()] * 4
        kinds, numbers = np.array(columns[0], np.int64), np.array(columns[1], np.int64)
        weights, turns = np.array(columns[2], np.float32), np.array(columns[3], np.int32)
        starts, sizes = np.zeros(len(kinds), np.int64), np.zeros(len(kinds), np.int64)
        for kind, bounds in enumerate(offsets):
            chosen = np.flatnonzero(kinds == kind)
            starts[chosen], sizes[chosen] = bounds[numbers[chosen]], np.diff(bounds)[numbers[chosen]]
        ids, seams = self._cut_joints(ids, offsets, starts, sizes, (encode_inner, encode_first))
        ends = np.concatenate(([0], np.cumsum(sizes)))
        tokens = ids[np.repeat(starts - ends[:-1], sizes) + np.arange(ends[-1])]
        weights, turns = np.repeat(weights, sizes), np.repeat(turns, sizes)
        seams_of_rows = np.diff(np.searchsorted(np.array(seams, np.int64), self.row_ends)).tolist()
        bounds = pairwise(ends[self.row_ends].tolist())
        return [
            Encoding(tokens[a:b], weights[a:b], turns[a:b], seam) for (a, b), seam in zip(bounds, seams_of_rows, strict=True)
        ]

    def _cut_joints(
        self,
        ids: np.ndarray,
        offsets: Sequence[np.ndarray],
        starts: np.ndarray,
        sizes: np.ndarray,
        encoders: tuple[TextEncoder, TextEncoder],
    ) -> tuple[np.ndarray, list[int]]:
        """Set start and size of the parts of texts that hold several: (ids with those of separate parts, spans with a seam)."""
        separate: list[tuple[int, int, list[Part]]] = []
        content = memoryview(ids.tobytes())
        size = ids.itemsize
        for first, kind, parts, prefixes in self.joints:
            bounds = offsets[kind]
            whole = int(bounds[prefixes[-1]])
            begin = 0
            for span, number in enumerate(prefixes, first):
                start, stop = int(bounds[number]), int(bounds[number + 1])
                length = stop - start
                if content[size * whole : size * (whole + length)] != content[size * start : size * stop] or length < begin:
                    separate.append((first, kind, parts))
                    break
                starts[span], sizes[span] = whole + begin, length - begin
                begin = length
        extra = [ids]
        for first, kind, parts in separate:
            for span, (text, _, _) in enumerate(parts, first):
                inside = encoders[kind if span == first else 0]([text])[0]
                starts[span], sizes[span] = sum(map(len, extra)), len(inside)
                extra.append(inside)
        return np.concatenate(extra), [first for first, _, _ in separate]


def _merged(run: list[Part]) -> list[Part]:
    """The parts, with neighbours of equal weight and turn made one."""
    parts: list[Part] = []
    for text, weight, turn in run:
        if not text:
            continue
        if parts and parts[-1][1:] == (weight, turn):
            parts[-1] = (parts[-1][0] + text, weight, turn)
        else:
            parts.append((text, weight, turn))
    return parts


def _stripped(run: list[Part], after_right: bool, before_left: bool) -> list[Part]:
    """The parts without the white space that a control token before or behind them takes in."""
    parts = _merged(run)
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
