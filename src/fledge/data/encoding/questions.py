"""Questions: dialogues of which the last answer is kept as the reference, to be compared with answers of a model."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.examples import Encoded, EncodingConfig, dropped
from fledge.data.parsing.items import Item
from fledge.tokenizer import Tokenizer

NO_WHOLE_ANSWER = "no whole answer to compare with"
NO_STOP_TOKEN = "the chat template trains no stop token behind the answer"


def split_last_answer(
    tokens: np.ndarray, weights: np.ndarray, stop_ids: Collection[int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(prompt, answer) of the last answer in a sequence of tokens [n] with loss weights [n].

    The answer ends before its stop token; what a template trains behind that is left out. None if no answer ends with one."""
    trained = np.flatnonzero(weights > 0)
    if not len(trained):
        return None
    last = int(trained[-1])
    before = np.flatnonzero(weights[:last] <= 0)
    start = int(before[-1]) + 1 if len(before) else 0
    stops = np.flatnonzero(np.isin(tokens[start : last + 1], list(stop_ids)))
    if not start or not len(stops):
        return None
    return tokens[:start], tokens[start : start + int(stops[-1])]


def encode_questions(items: Iterable[Item], tokenizer: Tokenizer, config: EncodingConfig) -> Iterator[Encoded]:
    """The example of each dialogue, as `encode_dialogues` with weight on the last answer alone. A dialogue is dropped, with an
    event, if prompt and answer together do not fit the context."""
    for encoded in encode_dialogues(items, tokenizer, config):
        cut = [example for example in encoded.examples if split_last_answer(*example[0], tokenizer.stop_ids) is None]
        if cut:
            tokens = len(cut[0][0][0])
            is_cut = tokens >= config.max_seq_len
            why = f"{tokens:,} tokens fit the context of {config.max_seq_len:,}" if is_cut else NO_STOP_TOKEN
            yield dropped(NO_WHOLE_ANSWER, why)
        else:
            yield encoded
