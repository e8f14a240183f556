"""The vocabulary of a GGUF file: tokens with their types, merges, control tokens, chat template, and the pre-tokenizer.

llama.cpp knows pre-tokenizers by name only. A tokenizer is exported if a known one divides texts exactly as it does.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.model.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from fledge.model.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED
from fledge.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The vocabulary in GGUF's terms. `notes`: what a user must know about it."""

    pre_tokenizer: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    eos: int
    eot: int
    pad: int
    add_bos: bool
    chat_template: str
    notes: tuple[str, ...]


def gguf_vocabulary(tokenizer: Tokenizer, rows: int, folder: Path) -> Vocabulary:
    """The vocabulary of a tokenizer for a model with `rows` rows of embeddings.

    Raises FledgeError for a tokenizer that is not byte-level BPE, or that no pre-tokenizer of llama.cpp equals.
    """
    where, content = str(folder / "tokenizer.json"), json.loads(tokenizer.core.to_str())
    notes = list(_check_content(content, where))
    pre_tokenizer = _pre_tokenizer(content, where)
    tokens, types = _tokens(tokenizer, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    add_bos, bos_notes = _begins_with_bos(tokenizer, where)
    if "strftime_now" in tokenizer.template.jinja:
        notes.append("the chat template writes the present date: prompts change from day to day")
    return Vocabulary(
        pre_tokenizer=pre_tokenizer.name,
        tokens=tokens,
        types=types,
        merges=merges,
        bos=tokenizer.bos_id,
        eos=_end_of_text(tokenizer),
        eot=tokenizer.eot_id,
        pad=tokenizer.pad,
        add_bos=add_bos,
        chat_template=without_generation_tags(tokenizer.template.jinja),
        notes=(*notes, *bos_notes),
    )


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write a vocabulary into a GGUFWriter."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_eot_token_id(vocabulary.eot)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


# -- the kind of tokenizer ----------------------------------------------------------------------------------------------


def _check_content(content: dict[str, Any], where: str) -> Iterator[str]:
    """Notes about a tokenizer.json. Raises FledgeError for what llama.cpp's byte-level BPE does not do."""
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "a SentencePiece vocabulary" if model.get("byte_fallback") else f"a {model.get('type')} model"
        raise FledgeError(f"only byte-level BPE is exported to GGUF, and this tokenizer is {kind}", where=where)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise FledgeError(f"llama.cpp's byte-level BPE has no {key} (here: {model[key]!r})", where=where)
    for token in content["added_tokens"]:
        if changes := [key for key in ("lstrip", "rstrip", "single_word") if token.get(key)]:
            raise FledgeError(f"llama.cpp has no {', '.join(changes)} for the token {token['content']!r}", where=where)
    steps = _flat(content.get("normalizer"), "normalizers")
    if [step["type"] for step in steps] == ["NFC"]:
        yield "the tokenizer brings texts into the form NFC, llama.cpp does not: texts in another form get other tokens there"
    elif steps:
        names = ", ".join(step["type"] for step in steps)
        raise FledgeError(f"llama.cpp does not change texts before it divides them, this tokenizer does: {names}", where=where)


def _pre_tokenizer(content: dict[str, Any], where: str) -> PreTokenizer:
    steps = tuple(_step(step) for step in _flat(content.get("pre_tokenizer"), "pretokenizers"))
    ignores = bool(content["model"].get("ignore_merges"))
    for known in PRE_TOKENIZERS:
        if (known.steps, known.ignore_merges) == (steps, ignores):
            return known
    found = " then ".join(" ".join(map(str, step)) for step in steps) or "no division of texts"
    if ignores:
        found += ", with ignore_merges"
    raise FledgeError(
        f"no pre-tokenizer of llama.cpp is known to equal this tokenizer's: {found}",
        where=where,
        hint=f"known: {', '.join(known.name for known in PRE_TOKENIZERS)}; export it with --to hf instead",
    )


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json, sequences dissolved."""
    if part is None:
        return []
    return [step for each in part[key] for step in _flat(each, key)] if part["type"] == "Sequence" else [part]


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    """A step of a pre-tokenizer as in `PreTokenizer.steps`; one that is in no table has its settings in full."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "ByteLevel", step.get("use_regex", True)
    if step["type"] == "Digits":
        return "Digits", step["individual_digits"]
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return "Split", step["pattern"]["Regex"]
    return (json.dumps(step, ensure_ascii=False),)


# -- tokens -------------------------------------------------------------------------------------------------------------


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """A text and a type for each row of the embeddings; rows without a token get a name of their own."""
    added = tokenizer.core.get_added_tokens_decoder()
    texts = {number: text for text, number in tokenizer.core.get_vocab(with_added_tokens=True).items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]

    def kind(number: int) -> int:
        if number not in texts:
            return UNUSED
        if number not in added:
            return NORMAL
        return CONTROL if added[number].special else USER_DEFINED

    return tokens, [kind(number) for number in range(rows)]


def _end_of_text(tokenizer: Tokenizer) -> int:
    """The token that llama.cpp calls EOS: what the template calls `eos_token`, else the end of an answer."""
    text = dict(tokenizer.template.variables).get("eos_token")
    number = tokenizer.core.token_to_id(text) if text else None
    return tokenizer.eot_id if number is None else number


def _begins_with_bos(tokenizer: Tokenizer, where: str) -> tuple[bool, list[str]]:
    """Whether llama.cpp shall put BOS before every prompt, and notes. It has one switch for texts and conversations."""
    start = tokenizer.document_start
    if start not in ([], [tokenizer.bos_id]):
        names = [tokenizer.core.id_to_token(token) for token in start]
        raise FledgeError(f"llama.cpp begins a text with at most one BOS token, this tokenizer with {names}", where=where)
    if not start or not tokenizer.template.jinja:
        return bool(start), []
    from fledge.export.comparison import prompts

    first = {tokenizer.encode_prompt(messages)[0] for messages in prompts(tokenizer)}
    if first <= set(start):
        return True, []
    note = f"conversations begin without {tokenizer.bos}, so llama.cpp adds none: write it yourself before a text to continue"
    return False, [note]


_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def without_generation_tags(template: str) -> str:
    """A chat template for programs that do not know `{% generation %}`. The tags become conditions that always hold, because
    tags also remove blanks around them."""
    return _TAG.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)


def vocabulary_summary(vocabulary: Vocabulary) -> Sequence[str]:
    """Lines about the vocabulary."""
    return (f"vocabulary: {len(vocabulary.tokens):,} tokens, pre-tokenizer {vocabulary.pre_tokenizer}", *vocabulary.notes)
