"""Truncation of one dialogue to the context: cut an answer, leave out the oldest rounds, or make several examples."""

from bisect import bisect_left
from collections import Counter

import numpy as np

from fledge.data.encoding.examples import Encoded, EncodingConfig, Example, prompt_length
from fledge.data.encoding.rendering import DialogueRounds, WeightedRounds, weigh_rounds
from fledge.data.parsing.columns import RowError
from fledge.data.row_events import RowEvent
from fledge.tokenizer import Tokenizer


def fit_dialogue(dialogue: DialogueRounds, uncut: WeightedRounds, tokenizer: Tokenizer, config: EncodingConfig) -> Encoded:
    """The examples of one dialogue, truncated to the context. `uncut`: its sequences before truncation. Raises RowError or
    TemplateError if no example is left."""
    longest = max(len(tokens) for tokens, _ in uncut.sequences)
    if longest < config.min_tokens:
        raise RowError("too short", f"{longest} tokens, at least {config.min_tokens} wanted (data.clean.min_tokens)")
    _check_trained(uncut)
    truncator = _Truncator(dialogue, uncut, tokenizer, config)
    if config.truncation == "keep_start":
        return truncator.keep_start()
    if config.truncation == "split" and config.train_on_turns == "all" and not dialogue.completion_only:
        return truncator.split()
    return truncator.keep_recent()


def _check_trained(weighted: WeightedRounds) -> None:
    """Raise RowError if a sequence has no target with weight."""
    if not all(weights[1:].any() for _, weights in weighted.sequences):
        raise RowError("nothing to train", "every turn that could be trained has weight 0")


class _Truncator:
    """Truncates one dialogue. Runs of rounds are rendered when they are first measured, and cached."""

    def __init__(self, dialogue: DialogueRounds, uncut: WeightedRounds, tokenizer: Tokenizer, config: EncodingConfig) -> None:
        self.dialogue, self.uncut, self.tokenizer, self.config = dialogue, uncut, tokenizer, config
        self.limit, self.num_rounds = config.max_seq_len + 1, len(dialogue.rounds)  # limit: tokens of a sequence
        self._weighted = {(0, self.num_rounds): uncut}

    def weighted(self, first: int, stop: int) -> WeightedRounds:
        """The sequences of rounds first … stop - 1, rendered as a dialogue of their own."""
        if (first, stop) not in self._weighted:
            train_on_turns = self.config.train_on_turns
            renderings = self.dialogue.renderings(first, stop, self.tokenizer, train_on_turns)
            encodings = self.tokenizer.encode_segments([rendering.segments for rendering in renderings])
            self._weighted[first, stop] = weigh_rounds(self.dialogue, first, stop, encodings, train_on_turns)
        return self._weighted[first, stop]

    def fits(self, first: int, stop: int) -> bool:
        """Whether no trained token of rounds first … stop - 1 is cut by the context, and their prompt is short enough."""
        weighted, most = self.weighted(first, stop), self.config.max_completion_length
        prompts = self._prompts(weighted)
        if any(self.config.is_too_long(prompt) for prompt in prompts):
            return False
        wanted = [end if most is None else min(end, prompt + most) for end, prompt in zip(weighted.ends, prompts, strict=True)]
        return max(wanted) <= self.limit

    def _prompts(self, weighted: WeightedRounds) -> list[int]:
        """The length of each sequence's prompt; 0 where prompts and completions have no limits of their own."""
        if self.config.max_prompt_length is None and self.config.max_completion_length is None:
            return [0] * len(weighted.sequences)
        return [prompt_length(weights) if weights.any() else 0 for _, weights in weighted.sequences]

    def truncate(self, weighted: WeightedRounds) -> tuple[Example, list[RowEvent]]:
        """Cut an example to the context. Raises RowError if no target is left, or if all its sequences become equal."""
        if weighted is not self.uncut:  # which is checked
            _check_trained(weighted)
        prompts = self._prompts(weighted)
        if any(self.config.is_too_long(prompt) for prompt in prompts):
            detail = f"{max(prompts):,} tokens, at most {self.config.max_prompt_length:,}"
            raise RowError("prompt longer than max_prompt_length", detail)
        limits = [self.config.limit(prompt) if self.config.max_completion_length else self.limit for prompt in prompts]
        if len(weighted.sequences) == 1 and len(weighted.sequences[0][0]) <= limits[0]:
            return (weighted.sequences[0],), []
        size = f"{max(weighted.ends):,} tokens, context {self.config.max_seq_len:,}"
        example = tuple(
            (tokens[:limit], _kept_weights(weights, turns, weighted.tool_call_turns, limit))
            for (tokens, weights), turns, limit in zip(weighted.sequences, weighted.turns, limits, strict=True)
        )
        if not all(weights[1:].any() for _, weights in example):
            raise RowError("prompt longer than the context", size)
        if len(example) > 1 and all(np.array_equal(example[0][0], tokens) for tokens, _ in example[1:]):
            raise RowError("answers equal after the cut", size)
        lost = weighted.lost_tokens(limits)
        if not lost:
            return example, []
        by_completion = all(limit < self.limit for limit in limits)
        reason = "answer cut to max_completion_length" if by_completion else "answer cut to the context"
        return example, [RowEvent("truncated", reason, self._cut_answers(weighted) + size, lost)]

    def _cut_answers(self, weighted: WeightedRounds) -> str:
        """The number of answers that are cut or lost, as text for the event; empty for a dialogue with one trained answer."""
        if self.dialogue.completion_only:
            return ""
        (_, weights), turns = weighted.sequences[0], weighted.turns[0]
        trained, cut = set(turns[weights > 0].tolist()), set(turns[self.limit :][weights[self.limit :] > 0].tolist())
        return "" if len(trained) == 1 else f"{len(cut)} of {len(trained)} answers cut or lost, "

    def keep_start(self) -> Encoded:
        """Cut the dialogue at the end."""
        example, events = self.truncate(self.weighted(0, self.num_rounds))
        return Encoded((example,), tuple(events))

    def keep_recent(self) -> Encoded:
        """Keep the newest complete rounds; the answer of the last round is cut if the round alone does not fit.

        The first round to keep is found by bisection, which assumes that fewer rounds are shorter.
        """
        first = 0
        if not self.fits(0, self.num_rounds):
            candidates = range(1, self.num_rounds - 1)
            position = bisect_left(candidates, True, key=lambda start: self.fits(start, self.num_rounds))
            first = min(1 + position, self.num_rounds - 1)
        example, events = self.truncate(self.weighted(first, self.num_rounds))
        if first:
            detail = f"{first} of {self.num_rounds} rounds"
            events = [RowEvent("shortened", "oldest turns left out", detail, first), *events]
        return Encoded((example,), tuple(events))

    def split(self) -> Encoded:
        """Divide the rounds into several examples of complete rounds."""
        examples: list[Example] = []
        events: list[RowEvent] = []
        left_out: Counter[str] = Counter()  # reason -> rounds
        first = 0
        while first < self.num_rounds:
            stop = self._longest_run(first)
            try:
                example, cuts = self.truncate(self.weighted(first, stop))
            except RowError as error:
                left_out[error.reason] += stop - first
            else:
                examples.append(example)
                events += cuts
            first = stop
        if not examples:
            raise RowError(next(iter(left_out)), f"in each of {self.num_rounds} rounds")
        for reason, rounds in left_out.items():
            detail = f"{rounds} of {self.num_rounds} rounds"
            events.append(RowEvent("shortened", f"rounds left out: {reason}", detail, rounds))
        if len(examples) > 1:
            detail = f"{len(examples)} examples"
            events.insert(0, RowEvent("split", "conversation made several examples", detail, len(examples)))
        return Encoded(tuple(examples), tuple(events))

    def _longest_run(self, first: int) -> int:
        """The end (exclusive) of the longest run of rounds from `first` that fits; at least one round."""
        count, most = 1, self.num_rounds - first
        while 2 * count <= most and self.fits(first, first + 2 * count):
            count *= 2
        more = range(count + 1, min(2 * count, most + 1))
        return first + count + bisect_left(more, True, key=lambda rounds: not self.fits(first, first + rounds))


def _kept_weights(weights: np.ndarray, turns: np.ndarray, tool_call_turns: frozenset[int], limit: int) -> np.ndarray:
    """The weights of the first `limit` tokens. A tool call that is cut is not valid JSON, so all its weights become 0."""
    kept = weights[:limit]
    if len(turns) > limit and turns[limit] == turns[limit - 1] and int(turns[limit]) in tool_call_turns:
        kept = np.where(turns[:limit] == turns[limit], np.float32(0), kept)
    return kept
