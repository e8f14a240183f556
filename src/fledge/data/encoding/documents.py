"""Encoding of documents as token sequences of weight 1. They are never truncated: packing continues them in the next row."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fledge.data.encoding.examples import NOT_UNICODE, Encoded, EncodingConfig, dropped, item_batches
from fledge.data.parsing.items import Document, Item
from fledge.tokenizer import Tokenizer


def encode_documents(items: Iterable[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    """The example of each document, in order: one sequence, all weights 1. Many are encoded at once, in constant memory."""
    for batch in item_batches(items):
        yield from _encode_batch(batch, tokenizer, config)


def _encode_batch(items: Sequence[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    try:
        documents = tokenizer.encode_documents([item.text for item in items if isinstance(item, Document)])
    except UnicodeEncodeError:
        if len(items) == 1:
            yield NOT_UNICODE
        else:
            for item in items:
                yield from _encode_batch([item], tokenizer, config)
        return
    min_tokens, control_tokens = max(config.min_tokens, 1), len(tokenizer.document_start) + len(tokenizer.document_end)
    for tokens in documents:
        size = len(tokens) - control_tokens
        if size < min_tokens:
            yield dropped("too short", f"{size} tokens, at least {min_tokens} wanted (data.clean.min_tokens)")
        else:
            yield Encoded((((tokens, np.ones(len(tokens), np.float32)),),))
