"""A model of fledge as lm-eval asks models: log-probabilities of continuations and of texts, and greedy answers."""

import json
import math
from typing import Any

from lm_eval.api.model import TemplateLM

from fledge.errors import FledgeError
from fledge.evaluate.sets.base import slices
from fledge.evaluate.sets.model import Continuation, EvaluatedModel, Progress

MAX_NEW_TOKENS = 256  # of an answer, where a task names no number; lm-eval's own


class LmEvalModel(TemplateLM):
    """The adapter. Texts become tokens as the tokenizer's own files say: with the tokens that it puts before a text, unless the
    text begins with them, and with control tokens parsed. `notes`: sentences on what was done with requests."""

    def __init__(self, model: EvaluatedModel, items: int, progress: Progress) -> None:
        """`progress` receives `items` in all, in proportion to the requests that are done."""
        super().__init__()
        self.asked, self.notes = model, list[str]()
        self._items, self._told, self._progress = items, 0, progress
        self._start = model.tokenizer.decode(model.tokenizer.document_start) if model.tokenizer.document_start else None

    # -- tokens ----------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.asked.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return self.asked.first_tokens[-1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text; None: with the tokens that the tokenizer puts before a text."""
        tokens = self.asked.tokenizer.core.encode(string, add_special_tokens=False).ids
        has_start = self._start is not None and string.startswith(self._start)
        if add_special_tokens is False or (add_special_tokens is None and has_start):
            return tokens
        return [*self.asked.tokenizer.document_start, *tokens]

    # -- requests --------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        """(log-probability, whether each token is the likeliest) of each continuation. What is longer than the model's
        positions loses its beginning."""
        most = self.asked.model.max_positions + 1
        wholes = [([*context, *continuation], len(continuation)) for _, context, continuation in requests]
        cut = sum(len(tokens) > most for tokens, _ in wholes)
        if cut:
            self.notes.append(f"{cut:,} requests are longer than the model's positions: their beginning was left out")
        parts = [Continuation(tokens[-most:], max(1, len(tokens[-most:]) - count)) for tokens, count in wholes]
        scores = self.asked.score(parts, self._counter(len(requests)))
        return [(math.fsum(one.logprobs), all(one.is_greedy)) for one in scores]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text as a whole, in windows of the model's positions."""
        counter, sums = self._counter(len(requests)), []
        for part in slices([request.args[0] for request in requests], len):
            windows = [self.asked.windows(self.tok_encode(text, add_special_tokens=False)) for text in part]
            scores = iter(self.asked.score([one for parts in windows for one in parts]))
            sums += [math.fsum(value for _ in parts for value in next(scores).logprobs) for parts in windows]
            counter(len(part))
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each prompt, up to the first of the task's stop texts. Raises FledgeError for a task that draws
        its answers."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers, counter = [""] * len(requests), self._counter(len(requests))
        for numbers in groups.values():
            options = dict(requests[numbers[0]].args[1])
            most, stop = _most_tokens(options), _stop_texts(options)
            _check_greedy(options)
            room = self.asked.model.max_positions - most
            if room < 1:
                what = f"answers of {most:,} tokens leave no room for a prompt: the model has {room + most:,} positions"
                raise FledgeError(what, where="generation_kwargs of the task", hint="set max_gen_toks in the task's file")
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            if cut := sum(len(prompt) > room for prompt in prompts):
                self.notes.append(f"{cut:,} prompts leave no room for {most:,} tokens: their beginning was left out")
            found = self.asked.generate([prompt[-room:] for prompt in prompts], most, stop=stop, progress=counter)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer.text
        return answers

    # -- progress --------------------------------------------------------------------------------------------------------

    def _counter(self, requests: int) -> Progress:
        done = 0

        def count(finished: int) -> None:
            nonlocal done
            done += finished
            self._tell(self._items * done // max(1, requests))

        return count

    def _tell(self, items: int) -> None:
        if items > self._told:
            self._progress(items - self._told)
            self._told = items

    def finish(self) -> None:
        """Say that all items are done."""
        self._tell(self._items)


def _most_tokens(options: dict[str, Any]) -> int:
    """The longest answer of a task."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return int(next((options[name] for name in names if options.get(name) is not None), MAX_NEW_TOKENS))


def _stop_texts(options: dict[str, Any]) -> list[str]:
    """The texts that end an answer of a task."""
    until = options.get("until")
    texts = [until] if isinstance(until, str) else list(until or [])
    return [text for text in texts if text]


def _check_greedy(options: dict[str, Any]) -> None:
    temperature = options.get("temperature")
    if options.get("do_sample") and temperature not in (0, 0.0):
        raise FledgeError(
            "this task draws its answers, and evaluation sets are answered greedily",
            where="generation_kwargs of the task",
            hint="write a task file with do_sample: false",
        )
