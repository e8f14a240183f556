"""Encoding of many texts at once, with a faster library if tests show that it gives identical ids."""

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Core

CONFORMANCE_TEXTS = (
    "", " ", "\n", "\r\n\t\v\f\x00\x1b\x7f\x85\u200b\u2028\ufeff",
    "The quick brown fox, isn't it? WE'LL see; they've 1,234.50!",
    "e\u0301 n\u0303 a\u0308\u0323 \u1100\u1161\u11a8 가 ﬁ Ⅷ ½ ²", "１２３ ＡＢＣ ａｂｃ　全角，。！？",
    "\u0661\u0662\u0663 \u096a\u096b\u096c \u0639\u0631\u0628\u064a \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "春眠不觉晓，处处闻啼鸟。夜來風雨聲 花落知多少 𠀀𪜶 かなカナ",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3\U0001f44d\U0001f3fd \u2764\ufe0f \u260e\ufe0e",
    "def f(x):\n\tif x >= 0x1F:  # why?\n        return {'a': [1, 2.5e-3]}\n\n\n",
    "https://a.b/c?d=e&f=%20 <p>x</p> a_b-c/d\\e",
    "a" * 300, "哈" * 100, "ab1 " * 60, " " * 200 + "x", "\n" * 50 + " \t" * 40, "0123456789" * 20, "=" * 80,
    ("\u3000" * 8 + "x") * 3, "".join(map(chr, range(0x100))), "".join(map(chr, range(0x100, 0xD800, 0x3F))),
    "".join(map(chr, range(0xE000, 0x110000, 0xFFF))),
)  # fmt: skip
"""Texts on which encoders are most likely to differ: every byte of UTF-8, and cases that regular expressions, added tokens
and merges treat differently."""
CHECKED_TOKENS = 100  # added tokens that are checked inside of texts
CHECKED_CHARACTERS = 20_000  # checked at the beginning of the first texts

EncodedTexts = tuple[np.ndarray, np.ndarray]
"""Ids int32 of all texts end to end, and offsets int64 [texts + 1]: text i has the ids offsets[i] to offsets[i + 1]."""


def _encode_exactly(core: Core, texts: Sequence[str]) -> EncodedTexts:
    """The texts encoded by `tokenizers`. Raises UnicodeEncodeError for a text with lone surrogates."""
    for text in texts:
        text.encode()  # raises UnicodeEncodeError for a lone surrogate; the library would raise a misleading TypeError
    rows = [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=False)]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.fromiter(chain.from_iterable(rows), np.int32, count=int(offsets[-1])), offsets


class VerifiedFastEncoder:
    """Encodes many texts at once: by the faster library `fastokens` if it agrees with `tokenizers`, else by `tokenizers`.

    The libraries are compared on texts that are hard to encode, on each added token, and on the first texts of either
    kind (literal or not). `name` is the library in use, `reason` why it is not `fastokens`.
    """

    def __init__(self, core: Core, literal: Core | None) -> None:
        """`literal`: the tokenizer of literal texts; None: they are encoded as all others are."""
        self._has_literal = literal is not None
        self._cores = {False: core, True: literal or core}
        self._checked: set[bool] = set()
        self._fast: Any = None
        self.reason = ""
        try:
            from fastokens import Tokenizer as Fast

            self._fast = Fast.from_json_str(core.to_str())
        except (ImportError, ValueError) as error:
            self._fall_back(f"fastokens cannot load it: {error}")
            return
        added = islice((token.content for token in core.get_added_tokens_decoder().values()), CHECKED_TOKENS)
        tokens = [text for token in added for text in (token, f"a{token}{token} {token} \n{token}\nb.{token[:-1]}")]
        for literal_text in (False, True) if self._has_literal else (False,):
            self._check([*CONFORMANCE_TEXTS, *tokens], literal_text)

    @property
    def name(self) -> str:
        """The library in use: `fastokens` or `tokenizers`."""
        return "tokenizers" if self._fast is None else "fastokens"

    def _fall_back(self, reason: str) -> None:
        self._fast, self.reason = None, reason

    def _check(self, texts: Sequence[str], literal: bool) -> None:
        if self._fast is None:
            return
        ours = _encode_exactly(self._cores[literal], texts)
        try:
            theirs = self._encode_fast(texts, literal)
        except ValueError as error:
            self._fall_back(f"fastokens refuses a text: {error}")
            return
        if not all(map(np.array_equal, ours, theirs)):
            self._fall_back("fastokens gives other ids than tokenizers")

    def _check_first(self, texts: Sequence[str], literal: bool) -> None:
        """Compare the libraries on the beginning of the first texts."""
        remaining, beginnings = CHECKED_CHARACTERS, []
        for text in texts:
            beginnings.append(text[:remaining])
            remaining -= len(beginnings[-1])
            if remaining <= 0:
                break
        self._check(beginnings, literal)
        self._checked.add(literal)

    def _encode_fast(self, texts: Sequence[str], literal: bool) -> EncodedTexts:
        ids, offsets = self._fast.encode_batch_flat(list(texts), False, literal)
        return np.frombuffer(ids, "<u4").astype(np.int32), np.frombuffer(offsets, "<u8").astype(np.int64)

    def encode(self, texts: Sequence[str], literal: bool) -> EncodedTexts:
        """The ids of the texts and the offsets of each text. In `literal` texts, special tokens are ordinary text.

        Raises UnicodeEncodeError for a text with lone surrogates.
        """
        literal = literal and self._has_literal
        if literal not in self._checked and texts:
            self._check_first(texts, literal)
        if self._fast is not None:
            try:
                return self._encode_fast(texts, literal)
            except ValueError:  # its regular expressions fail on some texts, such as a million spaces
                pass
        return _encode_exactly(self._cores[literal], texts)
