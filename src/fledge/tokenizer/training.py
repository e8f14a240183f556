"""Training a byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in Radford et al. 2019)."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Thread

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.tokenizer.loading import enclosing
from fledge.tokenizer.native_templates import CHATML, NATIVE, SEQ2SEQ, seq2seq_template
from fledge.tokenizer.template import ChatTemplate
from fledge.tokenizer.tokenizer import Tokenizer

# Merges never cross these pieces, as in Qwen2: contractions, letters with a preceding sign, single digits, signs, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_TOKEN = 24  # bytes: eight Chinese characters; longer tokens only memorise phrases
LONGEST_PIECE = 512  # characters between which merges are learned; without a limit, the time grows with the square of a piece
PROGRESS_SECONDS = 5.0
WAIT_SECONDS = 0.1  # between two looks at a thread: how long a signal can wait


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    template: str = "auto",
    special_tokens: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> Tokenizer:
    """A tokenizer whose merges are learned from the texts. Every digit is a single token, so that numbers are never
    memorised. `special_tokens` are the last of its `vocab_size` tokens. `progress` receives a line every few seconds.

    Equal texts in equal order give an identical tokenizer. Raises FledgeError when all texts are empty.
    """
    if template == "tokenizer":
        raise FledgeError(
            "a tokenizer trained now has no chat template of its own",
            where="tokenizer.template",
            hint="use chatml, inst or seq2seq",
        )
    chosen, (bos, eos, pad) = _template_and_control_tokens(template)
    control = list(dict.fromkeys(text for text in (pad, bos, eos, *chosen.specials) if text is not None))
    own = [text for text in dict.fromkeys(special_tokens) if text not in control]
    core = Core(models.BPE())
    core.pre_tokenizer = _pre_tokenizer(LONGEST_PIECE)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(own),
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    pieces = _Pieces(texts, own)
    _learn(core, pieces, trainer, progress)
    if not pieces.characters:
        raise FledgeError("there is no text to train the tokenizer on", where="tokenizer")
    core.pre_tokenizer = _pre_tokenizer(None)
    core.post_processor = enclosing(core, bos, None if bos else eos)
    return Tokenizer(core, chosen, bos=bos, eos=eos, pad=pad, special_tokens=own)


def _template_and_control_tokens(name: str) -> tuple[ChatTemplate, tuple[str | None, str, str]]:
    """The chat template of this name, ChatML for `auto`, and the tokens that begin and end a text and that fill rows. The texts
    of an encoder–decoder only end with one, like those of T5."""
    if name == SEQ2SEQ:
        return seq2seq_template("</s>", "<pad>"), (None, "</s>", "<pad>")
    chosen, text = NATIVE.get(name, CHATML), "<|endoftext|>"
    return chosen, ("<s>", "</s>", "<pad>") if chosen.name == "inst" else (text, text, text)


def _pre_tokenizer(longest: int | None) -> pre_tokenizers.PreTokenizer:
    """The division into pieces; `longest`: characters after which a longer piece is cut."""
    steps = [
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
        *([] if longest is None else [pre_tokenizers.Split(Regex(rf"[\s\S]{{{longest}}}"), "isolated")]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


class _Pieces:
    """The texts without the tokens that are not learned but given; counts what has been read. It can be iterated once."""

    def __init__(self, texts: Iterable[str], given: Sequence[str]) -> None:
        self._texts, self.characters, self.all_read = texts, 0, False
        ordered = sorted(map(re.escape, given), key=len, reverse=True)
        self._given = re.compile("|".join(ordered)) if given else None

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield from (text,) if self._given is None else self._given.split(text)
        self.all_read = True


def _learn(core: Core, pieces: _Pieces, trainer: trainers.BpeTrainer, progress: Callable[[str], None]) -> None:
    """Learn merges in another thread, and report every few seconds how far that is. The library does not look for signals while
    it learns; the thread that waits here does. Raises what the iteration of the texts raises."""
    failures: list[BaseException] = []

    def learn() -> None:
        try:
            core.train_from_iterator(pieces, trainer)
        except BaseException as error:
            failures.append(error)

    thread, began = Thread(target=learn, name="tokenizer-training", daemon=True), time.monotonic()
    thread.start()
    reported = began
    while thread.is_alive():
        thread.join(WAIT_SECONDS)
        if time.monotonic() - reported >= PROGRESS_SECONDS:
            reported = time.monotonic()
            doing = "read, now learning merges" if pieces.all_read else "read"
            seconds = reported - began
            progress(f"training the tokenizer: {pieces.characters / 1e6:,.1f}M characters {doing}, {seconds:,.0f} s")
    if failures:
        raise failures[0]
