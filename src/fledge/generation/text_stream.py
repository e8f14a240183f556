"""Incremental decoding of a stream of tokens into text of complete characters."""

from collections.abc import Iterable, Iterator

from fledge.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what decoding gives for the bytes of an incomplete character


class TextStream:
    """Decodes tokens one by one; a character of several tokens appears with its last token. Special tokens give no text.

    The text of a token depends on the tokens before it, so each new text is the difference of two decoded windows. A window
    begins where a piece of text was complete: decoding the complete answer for each token would take quadratic time.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the tokens of the last text returned, and those after it
        self._num_returned = 0  # tokens of the window whose text has been returned

    def add(self, token: int) -> str:
        """The new text that is complete with this token; often empty."""
        self._window.append(token)
        return self._take(complete_only=True)

    def finish(self) -> str:
        """The remaining text at the end: empty, or replacement characters for an incomplete character."""
        return self._take(complete_only=False)

    def _take(self, complete_only: bool) -> str:
        returned, text = self._decode(self._window[: self._num_returned]), self._decode(self._window)
        if len(text) <= len(returned) or (complete_only and text.endswith(REPLACEMENT)):
            return ""
        del self._window[: self._num_returned]
        self._num_returned = len(self._window)
        return text[len(returned) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special=True)


def decode_stream(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens in pieces of complete characters, each as early as possible; joined they are the complete
    text."""
    stream = TextStream(tokenizer)
    for token in tokens:
        if text := stream.add(token):
            yield text
    if text := stream.finish():
        yield text
