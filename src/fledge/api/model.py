"""A loaded model in Python: chat, text generation, streaming, scores."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fledge.errors import FledgeError
from fledge.model.locate import locate_model
from fledge.tokenizer import Tokenizer
from fledge.tokenizer.message import Messages, as_messages

if TYPE_CHECKING:
    from fledge.generation import Engine, SamplingParams, SwitchableEngine
    from fledge.generation.json_schema import JsonSchema


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a text under a model.

    `tokens`: the n token ids of the text. `logprobs` [n]: log p(token | all earlier tokens) in nats, NaN for a first token
    without an earlier one. `num_bytes`: length of the text in UTF-8.
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    num_bytes: int

    @property
    def logprob(self) -> float:
        """Σ log p over all tokens that have one, in nats."""
        return float(np.nansum(self.logprobs))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        count = int(np.count_nonzero(~np.isnan(self.logprobs)))
        return math.exp(-self.logprob / count) if count else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Negative log-probability in bits, for each byte of the text: comparable between tokenizers."""
        return -self.logprob / math.log(2) / self.num_bytes if self.num_bytes else math.nan


class Model:
    """A loaded model with its tokenizer and chat template. Weights are prepared once; answers of one call share a batch.

    All methods that generate take the parameters of `SamplingParams`: `max_new_tokens`, `temperature` (0 is greedy), `top_k`,
    `top_p`, `repetition_penalty`, `seed`. An answer is a function of the model, the prompt and these parameters. The methods
    raise FledgeError for a prompt that leaves no room for an answer.

    >>> import fledge
    >>> model = fledge.load("runs/mine")
    >>> isinstance(model.chat("你是谁？", max_new_tokens=8), str)
    True
    >>> text = "".join(model.stream([{"role": "user", "content": "你是谁？"}], max_new_tokens=8))
    >>> text == model.chat("你是谁？", max_new_tokens=8)
    True
    """

    def __init__(self, loaded: "SwitchableEngine", path: Path) -> None:
        """Use `load`."""
        self._loaded, self.path = loaded, path
        self._schemas: dict[str, JsonSchema] = {}  # for the tokenizer in use

    @property
    def _engine(self) -> "Engine":
        return self._loaded.engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model; of the adapter in use, if that has one of its own."""
        return self._loaded.tokenizer

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that the model was loaded with."""
        return self._loaded.adapters

    @property
    def adapter(self) -> str | None:
        """The name of the adapter in use; None: the base model alone."""
        return self._loaded.active

    def set_adapter(self, name: str | None) -> None:
        """Answer with the adapter of this name from now on; None: with the base model alone, whose weights no adapter changes.
        Raises FledgeError for an unknown name."""
        self._loaded.set_adapter(name)
        self._schemas.clear()

    @property
    def max_positions(self) -> int:
        """Largest number of tokens of a prompt and its answer together."""
        return self._engine.max_positions

    @property
    def num_parameters(self) -> int:
        """Parameters of the model; tied weights count once."""
        return sum(parameter.numel() for parameter in self._engine.model.parameters())

    def chat(self, messages: Messages, **sampling: Any) -> str:
        """Answer a conversation: a list of `{"role": …, "content": …}`, or one user message as a string. `json_schema`: a
        mapping or JSON text that the answer follows (extra `eval`).

        >>> import fledge
        >>> model = fledge.load("runs/mine")
        >>> conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        >>> isinstance(model.chat(conversation, max_new_tokens=4, temperature=0.7, seed=1), str)
        True
        """
        (completion,) = self._engine.generate([self._prompt(messages)], self._params(sampling), where=["messages"])
        return self._text(completion.tokens)

    @overload
    def generate(self, text: str, **sampling: Any) -> str: ...
    @overload
    def generate(self, text: list[str], **sampling: Any) -> list[str]: ...

    def generate(self, text: str | list[str], **sampling: Any) -> str | list[str]:
        """Continue a plain text, without the chat template; a list of texts is continued in one batch.

        >>> import fledge
        >>> model = fledge.load("runs/mine/pretrain")
        >>> len(model.generate(["A cat", "苹果"], max_new_tokens=6))
        2
        """
        texts = [text] if isinstance(text, str) else list(text)
        prompts = [self.tokenizer.encode_prefix(prompt) for prompt in texts]
        names = [f"text {number}" for number in range(1, len(texts) + 1)]
        completions = self._engine.generate(prompts, self._params(sampling), where=names)
        answers = [self._text(completion.tokens) for completion in completions]
        return answers[0] if isinstance(text, str) else answers

    def stream(self, messages: Messages, **sampling: Any) -> Iterator[str]:
        """Yield the answer of `chat` in pieces of complete characters, each as soon as it is generated."""
        from fledge.generation import decode_stream

        tokens = self._engine.stream(self._prompt(messages), self._params(sampling), where="messages")
        return decode_stream(self.tokenizer, tokens)

    def stream_text(self, text: str, **sampling: Any) -> Iterator[str]:
        """Yield the continuation of `generate` in pieces of complete characters, each as soon as it is generated."""
        from fledge.generation import decode_stream

        tokens = self._engine.stream(self.tokenizer.encode_prefix(text), self._params(sampling), where="text")
        return decode_stream(self.tokenizer, tokens)

    def score(self, text: str) -> Score:
        """The log-probabilities of a text under the model; the text is the beginning of a document.

        >>> import fledge
        >>> score = fledge.load("runs/mine/pretrain").score("A cat is an animal.")
        >>> score.perplexity > 1 and len(score.logprobs) == len(score.tokens)
        True
        """
        from fledge.generation import score_tokens

        start = self.tokenizer.document_start
        tokens = [*start, *self.tokenizer.encode(text)]
        if not text or not tokens:
            raise FledgeError("the text is empty: there is nothing to score", where="text")
        (values,) = score_tokens(self._engine.model, [tokens])
        begun = len(start)  # the tokens before the text are not part of it
        logprobs = np.array([math.nan, *values][begun:])
        return Score(tuple(tokens[begun:]), logprobs, len(text.encode("utf-8")))

    def _prompt(self, messages: Messages) -> list[int]:
        return self.tokenizer.encode_prompt(as_messages(messages))

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special=True)

    def _params(self, sampling: Mapping[str, Any]) -> "SamplingParams":
        from fledge.generation import SamplingParams

        known = SamplingParams.__dataclass_fields__
        unknown = sorted(set(sampling) - set(known))
        if unknown:
            raise FledgeError(f"unknown parameter '{unknown[0]}'", hint=f"there are {', '.join(known)}")
        values = {"max_new_tokens": 256, **sampling}
        if values.get("json_schema") is not None:
            values["json_schema"] = self._compiled(values["json_schema"])
        return SamplingParams(**values)

    def _compiled(self, schema: Any) -> "JsonSchema":
        """The schema compiled for this tokenizer, once."""
        from fledge.generation.json_schema import JsonSchema, as_schema

        if isinstance(schema, JsonSchema):
            return schema
        key = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True, default=str)
        if key not in self._schemas:
            self._schemas[key] = as_schema(schema, self.tokenizer)
        return self._schemas[key]


def load(path: str | Path, adapters: Sequence[str | Path] | Mapping[str, str | Path] = ()) -> Model:
    """Load the model of a run (its last finished stage), a stage, a checkpoint, a model directory or a GGUF file.

    `adapters`: runs, stages, checkpoints or directories of adapters for this model, of which the first one is in use at first;
    `Model.set_adapter` chooses another. In a mapping they have the names of its keys, else those of their directories.

    Raises FledgeError if there is none, if its tokenizer does not fit the model, or if an adapter does not fit it.

    >>> import fledge
    >>> fledge.load("runs/mine/sft").num_parameters > 1000
    True
    """
    from fledge.generation import find_adapter, find_adapters, load_engine

    folder = locate_model(str(path))
    if isinstance(adapters, Mapping):
        found = {str(name): find_adapter(location) for name, location in adapters.items()}
    else:
        found = find_adapters([adapters] if isinstance(adapters, str | Path) else adapters)
    return Model(load_engine(folder, adapters=found), folder)
