"""Training a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in Radford et al. 2019)."""

from collections.abc import Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.tokenizer.template import CHATML, NATIVE
from fledge.tokenizer.tokenizer import Tokenizer

# What merges never cross, as in Qwen2: contractions, letters with a sign before them, single digits, signs, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 24  # bytes: eight Chinese characters; longer ones only memorise phrases


def train_tokenizer(texts: Iterable[str], vocab_size: int, template: str = "auto") -> Tokenizer:
    """Learn merges from texts. Every digit is a token of its own, so that numbers are spelled, not memorised.

    Deterministic for the same texts in the same order. Raises FledgeError when there is no text to learn from.
    """
    if template == "tokenizer":
        raise FledgeError(
            "a tokenizer trained now has no chat template of its own", where="tokenizer.template", hint="use chatml or inst"
        )
    chosen = NATIVE.get(template, CHATML)
    bos, eos, pad = ("<s>", "</s>", "<pad>") if chosen.name == "inst" else ("<|endoftext|>",) * 3
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dict.fromkeys((pad, bos, eos, *chosen.specials))),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    seen = False

    def watched() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield text

    core.train_from_iterator(watched(), trainer)
    if not seen:
        raise FledgeError("there is no text to train the tokenizer on", where="tokenizer")
    return Tokenizer(core, chosen, bos=bos, eos=eos, pad=pad)
