"""Text from a stream of tokens, as soon as it consists of whole characters."""

from collections.abc import Iterable, Iterator

from fledge.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what decoding gives for the bytes of an incomplete character


class TextStream:
    """Decodes tokens one by one; a character of several tokens appears with its last token. Special tokens give no text.

    What a token decodes to depends on the tokens before it, so each new text is the difference of two decoded windows. A
    window begins where a piece of text was complete; decoding the whole answer anew for each token would take quadratic
    time.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the tokens of the last text returned, and those after it
        self._num_returned = 0  # tokens of the window whose text has been returned

    def add(self, token: int) -> str:
        """The text that this token completes; often empty."""
        self._window.append(token)
        return self._take(complete_only=True)

    def finish(self) -> str:
        """What is left at the end: replacement characters for an incomplete character, mostly nothing."""
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
    """The text of tokens in pieces of whole characters, each as soon as it is complete; the pieces add up to all of it."""
    stream = TextStream(tokenizer)
    for token in tokens:
        if text := stream.add(token):
            yield text
    if text := stream.finish():
        yield text
