"""A model with its tokenizer as evaluation sets ask it: probabilities of continuations, and answers until a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fledge.errors import FledgeError
from fledge.generation import Engine, FinishReason, SamplingParams, TokenOutput, check_prompt
from fledge.generation.scoring import ContinuationScore, score_continuations
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Tokenizer

Progress = Callable[[int], None]
"""Called with the number of items that have been finished since the last call."""


class GeneratedText(NamedTuple):
    """An answer, why it ended ("stop" after a stop token or a stop text), and its tokens, those of a stop text included."""

    text: str
    finish_reason: FinishReason
    tokens: list[int]


class Continuation(NamedTuple):
    """The tokens of a text whose tokens from number `start` on are scored, and whether tokens were left out because the model
    has no positions for them: at its beginning, before those that are scored, or at its end, of those."""

    tokens: list[int]
    start: int
    was_cut: bool = False
    end_was_cut: bool = False


@dataclass(eq=False)
class EvaluatedModel:
    """A language model with its tokenizer. The engine is built when a set first generates."""

    model: LanguageModel
    tokenizer: Tokenizer

    @cached_property
    def engine(self) -> Engine:
        """The engine of the model with its weights as they are."""
        return Engine(self.model, self.tokenizer.stop_ids)

    # -- what stands before a text --------------------------------------------------------------------------------------

    @property
    def first_tokens(self) -> list[int]:
        """The tokens before a text, which give its first token a probability: those of the tokenizer's own file, else the
        token that begins texts, else the one that ends them."""
        tokenizer = self.tokenizer
        if tokenizer.document_start:
            return list(tokenizer.document_start)
        return [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]

    def describe_start(self) -> str:
        """A sentence on `first_tokens`, and on the end of a text."""
        tokenizer, text = self.tokenizer, self.tokenizer.decode(self.first_tokens)
        if tokenizer.document_start:
            why = "which its tokenizer puts before every text"
        elif tokenizer.bos_id is not None:
            why = "its beginning-of-sequence token; its tokenizer puts nothing before a prompt"
        else:
            why = "its end token, as it has none that begins texts; its tokenizer puts nothing before a prompt"
        return f"a text without a prompt follows {text!r}, {why}; its end token is not scored"

    # -- probabilities ---------------------------------------------------------------------------------------------------

    def continuation(self, context: str, text: str, chat_prompt: Sequence[int] | None = None) -> Continuation:
        """A text after a context. White space at the end of the context belongs to the text, because tokens begin with it; the
        boundary is where the tokens of the context alone end, and no token lies across it. An empty context is `first_tokens`.
        `chat_prompt`: the tokens of the context, where a chat template has written it."""
        tokenizer = self.tokenizer
        if chat_prompt is not None:
            return self._fitting([*chat_prompt, *tokenizer.encode(text)], len(chat_prompt))
        if not context.strip():
            return self._fitting([*self.first_tokens, *tokenizer.encode(context + text)], len(self.first_tokens))
        space = context[len(context.rstrip()) :]
        context = context.rstrip()
        start = list(tokenizer.document_start)
        before, whole = tokenizer.encode(context), tokenizer.encode(context + space + text)
        if whole[: len(before)] != before:  # a token of the whole lies across the boundary
            whole = [*before, *tokenizer.encode(space + text)]
        return self._fitting([*start, *whole], len(start) + len(before))

    def windows(self, tokens: Sequence[int]) -> list[Continuation]:
        """The tokens of a long text in windows that the model can read, each token scored once: the first window follows the
        last of `first_tokens`, later ones have the token before them as context, and the last one as much context as fits."""
        most = self.model.max_positions
        whole, first = [*self.first_tokens, *tokens], len(self.first_tokens)
        done = min(most + 1, len(whole))
        found = [Continuation(whole[:done], first)]
        while done < len(whole):
            end = min(done + most, len(whole))
            begin = end - most - 1  # the token before the first new one, and more in the last window
            found.append(Continuation(whole[begin:end], done - begin))
            done = end
        return found

    def score(self, parts: Sequence[Continuation], progress: Progress | None = None) -> list[ContinuationScore]:
        """The scores of continuations. Raises FledgeError for an encoder–decoder."""
        if self.model.decoder_start is not None:
            raise FledgeError(
                "an encoder–decoder gives probabilities to the answer to a source, and this set has texts alone",
                where="evaluation set",
                hint="use sets of kind answers, prompts or generation",
            )
        return score_continuations(self.model, [one.tokens for one in parts], [one.start for one in parts], progress=progress)

    def _fitting(self, tokens: list[int], start: int) -> Continuation:
        """The continuation with as much context as fits the model's positions."""
        most = self.model.max_positions + 1  # the last token is scored, but not read
        if len(tokens) <= most:
            return Continuation(tokens, start)
        begin = list(self.tokenizer.document_start) or tokens[:1]
        begin = begin if tokens[: len(begin)] == begin else []
        cut = min(len(tokens) - most, start - len(begin))
        rest = [*begin, *tokens[len(begin) + cut :]]
        return Continuation(rest[:most], start - cut, was_cut=cut > 0, end_was_cut=len(rest) > most)

    # -- answers -----------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        stop: Sequence[str] = (),
        where: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[GeneratedText]:
        """Greedy answers. An answer ends at a stop token, before the first of the `stop` texts, or at its longest. Raises
        FledgeError, with its name in `where`, for a prompt that is empty or leaves no room."""
        params = SamplingParams(max_new_tokens=max_new_tokens)
        if stop:
            return _until(self.engine, self.tokenizer, prompts, params, stop=stop, where=where, progress=progress)
        completions = self.engine.generate(prompts, params, where=where, progress=progress)
        texts = [self.tokenizer.decode(one.tokens, skip_special=True) for one in completions]
        return [GeneratedText(text, one.finish_reason, one.tokens) for text, one in zip(texts, completions, strict=True)]


def _until(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    stop: Sequence[str],
    where: Sequence[str] | None,
    progress: Progress | None,
) -> list[GeneratedText]:
    """Answers that end before a stop text. The text of the newest tokens is searched after each token."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    names = where or [f"prompt {number + 1}" for number in range(len(prompts))]
    for prompt, name in zip(prompts, names, strict=True):
        check_prompt(prompt, engine.max_positions, name)  # before any of them is queued
    numbers = {engine.add(prompts[number], params, where=names[number]): number for number in order}
    tokens: dict[int, list[int]] = {number: [] for number in order}
    results: dict[int, GeneratedText] = {}
    searched = max(len(text.encode()) for text in stop) + 4  # tokens: each has a byte at least, and a character four at most
    try:
        while len(results) < len(prompts):
            finished = 0
            for output in engine.step():
                number = numbers[output.request_id]
                if number in results:
                    continue
                result = _ended(tokenizer, tokens[number], output, stop, searched)
                if result is not None:
                    results[number] = result
                    finished += 1
                    engine.cancel(output.request_id)
            if progress is not None and finished:
                progress(finished)
    finally:
        for request_id, number in numbers.items():
            if number not in results:
                engine.cancel(request_id)
        engine.step()  # takes the last outputs of cancelled requests away
    return [results[number] for number in range(len(prompts))]


def _ended(
    tokenizer: Tokenizer, tokens: list[int], output: TokenOutput, stop: Sequence[str], searched: int
) -> GeneratedText | None:
    """Take one more output into the tokens of an answer; returns the answer if it has ended."""
    if output.token is not None and output.finish_reason != "stop":
        tokens.append(output.token)
        tail = tokenizer.decode(tokens[-searched:], skip_special=True)
        if any(text in tail for text in stop):
            return GeneratedText(_before(tokenizer.decode(tokens, skip_special=True), stop), "stop", tokens)
    if output.finish_reason is None:
        return None
    return GeneratedText(tokenizer.decode(tokens, skip_special=True), output.finish_reason, tokens)


def _before(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]
