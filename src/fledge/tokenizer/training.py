"""Training a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in Radford et al. 2019)."""

from collections.abc import Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.tokenizer.native_templates import CHATML, NATIVE
from fledge.tokenizer.tokenizer import Tokenizer

# Merges never cross these pieces, as in Qwen2: contractions, letters with a preceding sign, single digits, signs, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 24  # bytes: eight Chinese characters; longer tokens only memorise phrases


def train_tokenizer(texts: Iterable[str], vocab_size: int, template: str = "auto") -> Tokenizer:
    """A tokenizer whose merges are learned from the texts. Every digit is a single token, so that numbers are never
    memorised.

    Equal texts in equal order give an identical tokenizer. Raises FledgeError when all texts are empty.
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
    any_text = False

    def checked_texts() -> Iterable[str]:
        nonlocal any_text
        for text in texts:
            any_text = any_text or bool(text)
            yield text

    core.train_from_iterator(checked_texts(), trainer)
    if not any_text:
        raise FledgeError("there is no text to train the tokenizer on", where="tokenizer")
    return Tokenizer(core, chosen, bos=bos, eos=eos, pad=pad)
