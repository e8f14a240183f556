"""Answers that follow a JSON schema: the library llguidance (extra `eval`) says which tokens may come next."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.errors import FledgeError, missing_extra
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer

KEY = "json_schema"
BLANKS = r"[ ]?"  # between two parts of the JSON: with more, a model that is unsure writes blanks without end


class SchemaMatcher:
    """The state of one answer: which tokens may come next, and whether it may end."""

    def __init__(self, matcher: Any, vocab_size: int, stop_ids: list[int]) -> None:
        """Use `JsonSchema.matcher`."""
        self._matcher, self._vocab_size, self._stop_ids = matcher, vocab_size, stop_ids

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool [V]; stop tokens where the answer may end. Raises FledgeError if the library
        gives up on the schema."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        allowed[self._stop_ids] = self._matcher.is_accepting()  # a stop token ends the answer, though it may look like text
        return allowed

    def accept(self, token: int) -> None:
        """Go on by an allowed token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FledgeError(f"the answer cannot follow the schema: {_first_line(self._matcher.get_error())}", where=KEY)


class JsonSchema:
    """A JSON schema that answers must follow, compiled for a tokenizer.

    An answer is one JSON value with nothing around it; it is cut if the model does not end it within its largest length.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Raises FledgeError for a schema that is invalid or has keys that cannot be followed, and without llguidance."""
        try:
            import llguidance
        except ImportError:
            raise missing_extra("llguidance", "eval", "an answer that follows a JSON schema") from None
        self._library, self._vocab_size = llguidance, tokenizer.vocab_size
        self._stop_ids = sorted(tokenizer.stop_ids)
        try:
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer.core.to_str(), n_vocab=tokenizer.vocab_size, eos_token=self._stop_ids
            )
        except ValueError as error:
            raise FledgeError(
                f"llguidance cannot follow a schema with this model's tokenizer: {_first_line(str(error))}", where=KEY
            ) from None
        self._grammar = llguidance.LLMatcher.grammar_from_json_schema(dict(schema), {"whitespace_pattern": BLANKS})
        _, problems = llguidance.LLMatcher.validate_grammar_with_warnings(self._grammar, self._tokenizer)
        if problems:
            raise FledgeError(f"this schema cannot be followed: {_first_line('; '.join(problems))}", where=KEY)

    def matcher(self) -> SchemaMatcher:
        """The state at the beginning of an answer."""
        return SchemaMatcher(self._library.LLMatcher(self._tokenizer, self._grammar), self._vocab_size, self._stop_ids)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "the library gives no reason")


def read_schema(file: Path) -> dict[str, Any]:
    """The schema in a JSON file. Raises FledgeError if the file is missing or holds no JSON object."""
    return dict(_checked_object(read_json(file), str(file)))


def _checked_object(schema: object, where: str) -> Mapping[str, Any]:
    """The schema, if it is an object. Raises FledgeError for anything else."""
    if not isinstance(schema, Mapping):
        raise FledgeError('a JSON schema is an object, such as {"type": "object"}', where=where)
    return schema


def only_allowed(logits: Tensor, matchers: Mapping[int, SchemaMatcher]) -> Tensor:
    """A copy of logits [B, V] with -inf for the tokens that the matchers, by row, do not allow."""
    logits = logits.clone()
    for row, matcher in matchers.items():
        allowed = torch.from_numpy(matcher.allowed()).to(logits.device)
        logits[row, : len(allowed)].masked_fill_(~allowed, float("-inf"))
        logits[row, len(allowed) :] = float("-inf")  # rows of the head that no token has
    return logits


def as_schema(schema: object, tokenizer: Tokenizer) -> JsonSchema:
    """The compiled form of a schema that a caller gives as a mapping or as JSON text. Raises FledgeError for anything else."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise FledgeError(f"this is no JSON: {error}", where=KEY) from None
    return JsonSchema(_checked_object(schema, KEY), tokenizer)
