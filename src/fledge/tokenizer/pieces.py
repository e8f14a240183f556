"""The text of each token of a sequence, for showing tokens: decoded in runs, because one token may be a part of a character."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from fledge.tokenizer.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"  # what decoding gives for the bytes of an unfinished character
BLANK = "▁"  # what SentencePiece writes for a blank


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, bool]]:
    """The text of each token, and whether it is a single added token such as <|im_end|>.

    A character of several tokens stands at its last one; the text of the others is empty. Joined, the texts are the text of the
    sequence, with the blanks that some decoders drop at its beginning.
    """
    added = tokenizer.core.get_added_tokens_decoder()
    texts: list[tuple[str, bool]] = []
    for is_added, run in groupby(ids, key=added.__contains__):
        if is_added:
            texts += [(added[number].content, True) for number in run]
        else:
            texts += [(text, False) for text in _run_texts(tokenizer, list(run))]
    return texts


def _run_texts(tokenizer: Tokenizer, run: list[int]) -> Iterator[str]:
    """The texts of tokens without an added token among them, each the difference of two decoded windows."""
    first = tokenizer.core.id_to_token(run[0]) or ""
    begun, shown, blank = 0, 0, first.startswith(BLANK)
    for stop in range(1, len(run) + 1):
        before, text = tokenizer.decode(run[begun:shown]), tokenizer.decode(run[begun:stop])
        if stop < len(run) and (text.endswith(INCOMPLETE) or len(text) < len(before)):
            yield ""
            continue
        new = text[len(before) :]
        if blank and not new.startswith(" "):
            new = f" {new}"
        begun, shown, blank = shown, stop, False
        yield new
