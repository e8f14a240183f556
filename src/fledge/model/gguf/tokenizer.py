"""The tokenizer of a GGUF file as the files of a Hugging Face directory.

Tokens, their ids and their kinds are those of the file; texts are divided as llama.cpp does it by the name of the file's
pre-tokenizer, which is refused where it is not known here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError, first_line
from fledge.model.gguf.header import GgufHeader
from fledge.model.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, find_pre_tokenizer
from fledge.run.text_files import write_and_verify
from fledge.tokenizer.loading import enclosing

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's kinds of tokens
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
NAMED = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}


class Vocabulary:
    """The tokens of a file: texts by id, kinds, and the ids that settings name. Raises FledgeError for settings that are
    missing, of another type, or that do not fit each other."""

    def __init__(self, header: GgufHeader) -> None:
        self.settings, self.where = header.settings, str(header.file)
        self.texts: list[str] = self._list("tokens", str)
        if not self.texts:
            raise FledgeError("the file has no tokenizer: tokenizer.ggml.tokens is missing", where=self.where)
        self.kinds: list[int] = self._list("token_type", int) or [NORMAL] * len(self.texts)
        if len(self.kinds) != len(self.texts):
            raise FledgeError(f"{len(self.texts):,} tokens have {len(self.kinds):,} kinds", where=self.where)
        self.merges: list[str] = self._list("merges", str)

    def _list(self, name: str, kind: type) -> list[Any]:
        values = self.settings.get(PREFIX + name, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise FledgeError(f"{PREFIX}{name} is no list of {kind.__name__}", where=self.where)
        return values

    def id(self, name: str) -> int | None:
        """The id that a setting names; None without it, and for -1, which means none."""
        value = self.settings.get(PREFIX + name)
        if value is None or value in (-1, 2**32 - 1):
            return None
        if type(value) is not int or not 0 <= value < len(self.texts):
            raise FledgeError(
                f"{PREFIX}{name} is {str(value)[:40]}, and there are {len(self.texts):,} tokens", where=self.where
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false."""
        value = self.settings.get(PREFIX + name, default)
        if type(value) is not bool:
            raise FledgeError(f"{PREFIX}{name} must be true or false (it is {str(value)[:40]})", where=self.where)
        return value

    def text(self, name: str) -> str:
        """A setting that is a text; empty without it. `name` is the whole name."""
        value = self.settings.get(name, "")
        if not isinstance(value, str):
            raise FledgeError(f"{name} must be a text", where=self.where)
        return value


def write_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json. Raises FledgeError for a
    tokenizer that is damaged, or of a kind that fledge does not read from GGUF files."""
    vocabulary = Vocabulary(header)
    named = {name: vocabulary.id(key) for name, key in NAMED.items()}
    core = _core(vocabulary, _pre_tokenizer(vocabulary), named)
    template = vocabulary.text("tokenizer.chat_template")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": vocabulary.texts[number] for name, number in named.items() if number is not None},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        **({"chat_template": template} if template else {}),
    }
    write_and_verify(folder / "tokenizer.json", core.to_str(pretty=False))
    write_and_verify(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=1))
    if template:
        write_and_verify(folder / "chat_template.jinja", template)
    write_and_verify(folder / "generation_config.json", json.dumps(special_ids(vocabulary), indent=1))


def special_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """The special tokens in the names of config.json and generation_config.json."""
    ends = [number for name in ENDS if (number := vocabulary.id(name)) is not None]
    return {
        "bos_token_id": vocabulary.id("bos_token_id"),
        "eos_token_id": list(dict.fromkeys(ends)),
        "pad_token_id": vocabulary.id("padding_token_id"),
    }


def _pre_tokenizer(vocabulary: Vocabulary) -> PreTokenizer:
    kind, name = vocabulary.text(f"{PREFIX}model"), vocabulary.text(f"{PREFIX}pre")
    if kind != "gpt2":
        known = {"llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram", "": "unnamed"}.get(kind, kind)
        raise FledgeError(
            f"the tokenizer in this file is {known}: fledge reads byte-level BPE from GGUF files",
            where=vocabulary.where,
            hint="take the model in Hugging Face's format, which has a tokenizer.json",
        )
    found = find_pre_tokenizer(name)
    if found is None:
        raise FledgeError(
            f"the pre-tokenizer '{name or 'default'}' of this file is not known: its tokens would be guesses",
            where=vocabulary.where,
            hint=f"known: {', '.join(each.name for each in PRE_TOKENIZERS)}; take the model in Hugging Face's format",
        )
    return found


def _core(vocabulary: Vocabulary, kind: PreTokenizer, named: dict[str, int | None]) -> Core:
    """The tokenizer of the library. Rows without a token of their own have none here."""
    used = {number: text for number, text in enumerate(vocabulary.texts) if vocabulary.kinds[number] != UNUSED}
    ids = {text: number for number, text in used.items()}
    if len(ids) < len(used):
        twice = next(text for number, text in used.items() if ids[text] != number)
        raise FledgeError(f"the token {twice!r} occurs twice", where=vocabulary.where)
    merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise FledgeError(f"a merge joins two tokens, not {' '.join(wrong)!r}", where=vocabulary.where)
    try:
        core = Core(models.BPE(ids, merges, ignore_merges=kind.ignore_merges))  # type: ignore[arg-type]
    except Exception as error:  # the library raises bare Exception
        raise FledgeError(f"the merges do not fit the tokens: {first_line(error)}", where=vocabulary.where) from None
    core.pre_tokenizer = pre_tokenizers.Sequence([_step(step) for step in kind.steps])
    core.decoder = decoders.ByteLevel()
    special = {number for number in named.values() if number is not None and named["unk"] != number}
    for number, text in used.items():
        if vocabulary.kinds[number] in (CONTROL, UNKNOWN) or number in special:
            core.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        elif vocabulary.kinds[number] == USER_DEFINED:
            core.add_tokens([AddedToken(text, special=False, normalized=False)])
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    around = _around(vocabulary, kind, named)
    if any(around):
        core.post_processor = enclosing(core, *around)
    return core


def _around(vocabulary: Vocabulary, kind: PreTokenizer, named: dict[str, int | None]) -> Sequence[str | None]:
    """The tokens before and after each text."""
    adds = {"bos": vocabulary.flag("add_bos_token", kind.adds_bos), "eos": vocabulary.flag("add_eos_token", False)}
    for name, is_added in adds.items():
        if is_added and named[name] is None:
            raise FledgeError(f"{PREFIX}add_{name}_token is true, and the file names no {name} token", where=vocabulary.where)
    return [vocabulary.texts[number] if adds[name] and (number := named[name]) is not None else None for name in adds]


def _step(step: tuple[Any, ...]) -> Any:
    """A step of `PreTokenizer.steps` in the library."""
    kind, value = step
    if kind == "ByteLevel":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=value)
    if kind == "Digits":
        return pre_tokenizers.Digits(individual_digits=value)
    return pre_tokenizers.Split(Regex(value), behavior="isolated")
