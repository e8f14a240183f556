"""What the training rows of a stage teach, found without the weights' own reasoning: whether targets stand in prompts, whether
the ends of answers are targets, and whether answers fit their prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from fledge.data.storage import Examples
from fledge.evaluate.evenly import evenly
from fledge.evaluate.metrics.identity import recites_identity
from fledge.generation.scoring import score_tokens
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Message, TemplateError, Tokenizer

ROWS = 256  # training rows that are looked at
SCORED_ROWS = 96  # of which a model reads the answers
OTHERS = 3  # prompts of other rows that an answer is read after


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """Counts over training rows. `targets`: tokens that are trained, `prompt_targets`: those outside answers. `answers`: with a
    target, and ended in the text; `trained_ends`: those whose end is a target, `identities`: those that say
    who the assistant is. `compared`: answers that a model has scored after their own and after three other prompts, `misfits`:
    those that are likelier after one of these. `telling`: how much likelier the quarter that fits best is after its own
    prompts, in nats a token: near 0 where the model ignores prompts."""

    rows: int
    targets: int
    prompt_targets: int
    answers: int
    trained_ends: int
    identities: int = 0
    compared: int = 0
    misfits: int = 0
    telling: float = 0.0


@dataclass(frozen=True)
class AnswerSpan:
    """An answer in a row: its first token `start`, and the position `stop` behind its last one. `ended`: the last one ends an
    answer."""

    start: int
    stop: int
    ended: bool


def training_targets(examples: Examples, tokenizer: Tokenizer, model: LanguageModel | None) -> TargetFacts | None:
    """Look at training rows, spread evenly, and not at those whose answers are labelled undesirable. None where the chat
    template does not show where answers begin. With a model, also whether answers fit their prompts."""
    header = answer_header(tokenizer)
    if not header or not examples.count:
        return None
    wanted = np.arange(examples.count) if examples.labels is None else np.flatnonzero(examples.labels)
    if not len(wanted):
        return None
    rows = [examples.sequence(int(wanted[n]) * examples.sequences_per_example) for n in evenly(len(wanted), ROWS)]
    found = [(tokens, weights, list(answer_spans(tokens, header, tokenizer.stop_ids))) for tokens, weights in rows]
    found = [row for row in found if row[2]]
    if not found:
        return None
    targets = outside = answers = ends = identities = 0
    for tokens, weights, spans in found:
        trained = weights > 0
        trained[0] = False  # the first token is no target
        inside = np.zeros(len(tokens), bool)
        for span in spans:
            inside[span.start : span.stop] = True
            if span.ended and trained[span.start : span.stop].any():
                answers, ends = answers + 1, ends + int(trained[span.stop - 1])
                identities += recites_identity(tokenizer.decode(tokens[span.start : span.stop - 1].tolist()))
            inside[span.stop : span.stop + 1] |= span.ended  # the line break that some templates train behind the end
        inside |= _headless(trained & ~inside, tokens, [span.start for span in spans], tokenizer.stop_ids)
        targets, outside = targets + int(trained.sum()), outside + int((trained & ~inside).sum())
    margins = np.zeros(0) if model is None else _margins(found, model)
    return TargetFacts(
        rows=len(found),
        targets=targets,
        prompt_targets=outside,
        answers=answers,
        trained_ends=ends,
        identities=identities,
        compared=len(margins),
        misfits=int((margins <= 0).sum()),
        telling=float(np.quantile(margins, 0.75)) if len(margins) else 0.0,
    )


def answer_header(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the chat template writes between a question and its answer; empty where it writes none."""
    try:
        prompts = [tokenizer.encode_prompt([Message("user", text)]) for text in ("1", "a b")]
    except TemplateError:
        return []
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(*(reversed(prompt) for prompt in prompts), strict=False))
    return [token for token, _ in equal][::-1]


def answer_spans(tokens: np.ndarray, header: Sequence[int], stop_ids: frozenset[int]) -> Iterator[AnswerSpan]:
    """The answers of a row: behind each header, up to and with the next token that ends a text."""
    size, position = len(header), 0
    pattern, stops = np.asarray(header), np.flatnonzero(np.isin(tokens, list(stop_ids)))
    while position + size <= len(tokens):
        if not np.array_equal(tokens[position : position + size], pattern):
            position += 1
            continue
        start = position + size
        end = stops[np.searchsorted(stops, start)] if len(stops) and stops[-1] >= start else None
        stop = len(tokens) if end is None else int(end) + 1
        if stop > start:
            yield AnswerSpan(start, stop, end is not None)
        position = max(stop - 1, start)  # the token that ends an answer may begin the next header


def _headless(outside: np.ndarray, tokens: np.ndarray, starts: Sequence[int], stop_ids: frozenset[int]) -> np.ndarray:
    """Which trained tokens outside the answers found by their headers, bool [N], are answers without a header, such as some
    templates write directly behind a tool result: runs that end in an end of text, with a line break behind it or not. A run
    that reaches up to another answer is its prompt."""
    found = np.zeros(len(tokens), bool)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], outside.astype(np.int8), [0]))))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        ends = any(int(token) in stop_ids for token in tokens[max(start, stop - 2) : stop])
        found[start:stop] = ends and stop not in starts
    return found


def _margins(found: Sequence[tuple[np.ndarray, np.ndarray, list[AnswerSpan]]], model: LanguageModel) -> np.ndarray:
    """How much likelier the last answers of rows are after their own prompts than after the best of three other rows' prompts,
    in nats a token, float [n]. Rows that equal one of these in prompt or answer, and what would not fit the model's positions,
    are passed over. None are compared where most answers are repeats, such as the labels of a classification."""
    pairs = [
        (tokens[: spans[-1].start].tolist(), tokens[spans[-1].start : spans[-1].stop].tolist())
        for tokens, _, spans in found
        if spans[-1].ended
    ]
    chosen = [pairs[number] for number in evenly(len(pairs), SCORED_ROWS)] if pairs else []
    if 2 * len({tuple(answer) for _, answer in chosen}) < len(chosen):
        return np.zeros(0)
    sequences: list[list[int]] = []
    lengths: list[int] = []
    for number, (prompt, answer) in enumerate(chosen):
        others = [chosen[(number + step) % len(chosen)] for step in range(1, OTHERS + 1)]
        differ = all(other != prompt and other_answer != answer for other, other_answer in others)
        if differ and max(len(one) for one in (prompt, *(other for other, _ in others))) + len(answer) <= model.max_positions:
            sequences += [prompt + answer, *(other + answer for other, _ in others)]
            lengths.append(len(answer))
    scores = iter(score_tokens(model, sequences))
    means = np.array([[sum(next(scores)[-length:]) / length for _ in range(OTHERS + 1)] for length in lengths])
    return means[:, 0] - means[:, 1:].max(axis=1) if len(lengths) else np.zeros(0)
