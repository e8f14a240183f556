"""The pre-tokenizers of llama.cpp, which GGUF files name, as those of Hugging Face's tokenizers."""

from dataclasses import dataclass
from typing import Any

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_BYTES, _WORDS_AND_BYTES = ("ByteLevel", False), ("ByteLevel", True)


@dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer of llama.cpp: its name, the steps of tokenizers that equal it, whether a piece in the vocabulary is one
    token there without following the merges, whether BOS begins a text where the file does not say, and other names of it."""

    name: str
    steps: tuple[tuple[Any, ...], ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    other_names: tuple[str, ...] = ()


PRE_TOKENIZERS = (
    PreTokenizer("qwen2", (("Split", QWEN2), _BYTES), other_names=("deepseek-r1-qwen",)),
    PreTokenizer(
        "llama-bpe", (("Split", LLAMA3), _BYTES), ignore_merges=True, adds_bos=True, other_names=("llama3", "llama-v3")
    ),
    PreTokenizer("gpt-2", (_WORDS_AND_BYTES,)),
    PreTokenizer("smollm", (("Digits", True), _WORDS_AND_BYTES)),
)


def find_pre_tokenizer(name: str) -> PreTokenizer | None:
    """The pre-tokenizer that a file names; None for one that is not known here."""
    return next((each for each in PRE_TOKENIZERS if name in (each.name, *each.other_names)), None)
