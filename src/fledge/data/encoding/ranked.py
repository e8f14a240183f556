"""Encoding of pairs whose answers get a reward each, which is read at the token that ends the answer."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.examples import Encoded, EncodingConfig, TokenSequence, dropped
from fledge.data.parsing.items import Item, PreferencePair
from fledge.tokenizer import Tokenizer


def encode_ranked(items: Iterable[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    """The example of each pair, in order: chosen and rejected answer behind their prompt, with the margin of the pair.

    Nothing follows the token that ends an answer but the padding token, without weight: a model reads all tokens of a sequence
    except the last one. A pair with an answer that does not fit the context is dropped: the reward belongs to the whole answer.
    Raises TypeError for an item that is no pair."""
    config = replace(config, max_seq_len=config.max_seq_len - 1)
    taken = deque[PreferencePair]()  # by `encode_dialogues`, and not yet encoded

    def observed() -> Iterator[Item]:
        for item in items:
            if not isinstance(item, PreferencePair):
                raise TypeError(f"{item.description()} is no pair")
            taken.append(item)
            yield item

    for encoded in encode_dialogues(observed(), tokenizer, config):
        pair = taken.popleft()
        cut = next((event for event in encoded.events if event.state == "truncated"), None)
        if cut is not None:
            yield dropped("answer does not fit", cut.detail)
            continue
        examples = tuple(tuple(_to_the_end(one, tokenizer.pad) for one in example) for example in encoded.examples)
        yield replace(encoded, examples=examples, margin=0.0 if pair.margin is None else pair.margin)


def _to_the_end(sequence: TokenSequence, pad: int) -> TokenSequence:
    """A sequence up to its last token with weight, and the padding token."""
    tokens, weights = sequence
    end = int(np.flatnonzero(weights)[-1]) + 1
    return np.append(tokens[:end], np.asarray(pad, tokens.dtype)), np.append(weights[:end], np.float32(0))
