"""Requests to the engine and their results: one output for each token, and completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import FledgeError
from fledge.generation.json_schema import SchemaMatcher
from fledge.generation.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled"]
"""The reason why a request is finished: "stop", a stop token was chosen; "length", `max_new_tokens` or the last position of the
model was reached; "cancelled", `Engine.cancel` was called."""


class PromptTooLongError(FledgeError):
    """A prompt after which the model has no position left for an answer."""

    def __init__(self, prompt_length: int, max_positions: int, where: str | None = None) -> None:
        self.prompt_length, self.max_positions = prompt_length, max_positions
        super().__init__(
            f"it has {prompt_length:,} tokens, which leaves no room for an answer: the model has {max_positions:,} positions",
            where=where,
            hint=f"shorten it: prompt and answer have {max_positions:,} positions together; "
            "model.max_position_embeddings sets them when a model is trained",
        )


def check_prompt(prompt: Sequence[int], max_positions: int, where: str | None = None) -> None:
    """Raise FledgeError for an empty prompt, and PromptTooLongError for a prompt that leaves no position for a first token.

    `where` is the name of the prompt in the message.
    """
    if not prompt:
        raise FledgeError("it is empty: there is nothing to continue", where=where)
    if len(prompt) >= max_positions:
        raise PromptTooLongError(len(prompt), max_positions, where)


@dataclass(frozen=True)
class TokenOutput:
    """One new token of a request.

    `finish_reason` is set on the last output of a request. With "stop", `token` is the stop token, which does not belong to
    the answer; with "cancelled", there is no token. `logprob` is log softmax(logits)[token] of the model itself, before
    repetition penalty, temperature, top-k and top-p; it is None unless `SamplingParams.logprobs` asks for it.
    """

    request_id: int
    token: int | None
    logprob: float | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt.

    `tokens` are without the stop token, `logprobs` are their log-probabilities (see `TokenOutput`). After "stop",
    `stop_token` and `stop_logprob` describe the token that ended the answer. Log-probabilities are None unless
    `SamplingParams.logprobs` asks for them.
    """

    tokens: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    stop_token: int | None = None
    stop_logprob: float | None = None

    @classmethod
    def from_outputs(cls, outputs: Sequence[TokenOutput]) -> "Completion":
        """The completion from all outputs of one request. Raises ValueError if the request is not finished."""
        last = outputs[-1] if outputs else None
        if last is None or last.finish_reason is None:
            raise ValueError("these outputs do not end with a finish reason")
        answer = outputs if last.finish_reason == "length" else outputs[:-1]
        has_logprobs = outputs[0].logprob is not None
        stopped = last.finish_reason == "stop"
        return cls(
            tokens=[output.token for output in answer if output.token is not None],
            finish_reason=last.finish_reason,
            logprobs=[output.logprob for output in answer if output.logprob is not None] if has_logprobs else None,
            stop_token=last.token if stopped else None,
            stop_logprob=last.logprob if stopped else None,
        )


@dataclass(kw_only=True, eq=False)
class Request:
    """A request in the engine: waiting, running or finished. Requests are compared by identity.

    `max_tokens`: largest number of tokens of its answer. `outputs`: the list to append its outputs to. `matcher`: which tokens
    `params.json_schema` allows next.
    """

    request_id: int
    prompt: Sequence[int]
    params: SamplingParams
    sample_index: int
    max_tokens: int
    outputs: list[TokenOutput]
    matcher: SchemaMatcher | None = None
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest, which the next pass reads."""
        return len(self.prompt) + len(self.tokens) - 1
