"""Loading a tokenizer from its files: tokenizer.json, tokenizer_config.json and chat_template.jinja."""

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import processors

from fledge.errors import FledgeError
from fledge.tokenizer.files import read_core
from fledge.tokenizer.native_templates import CHATML, NATIVE, SEQ2SEQ, seq2seq_template
from fledge.tokenizer.settings import OwnSettings, TokenizerSettings, read_decoder_start, read_end_tokens, read_settings
from fledge.tokenizer.template import ChatTemplate, Message, TemplateError, TextSegment
from fledge.tokenizer.tokenizer import Tokenizer

TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")  # in the order of preference
PAD_CANDIDATES = ("<pad>", "<|pad|>", "<|endoftext|>", "</s>")
END_CANDIDATES = ("<|endoftext|>", "</s>", "<|im_end|>", "<eos>")


def _refuse(messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> list[TextSegment]:
    raise TemplateError(
        "this model has no chat template: it continues texts",
        hint="continue a text with `fledge generate --raw`, or fine-tune the model on conversations first",
    )


NO_TEMPLATE = ChatTemplate(name="none", jinja="", specials=(), render_native=_refuse)
"""The chat template of a base model, which knows texts only: it needs no control tokens and refuses conversations."""


def load_tokenizer(
    path: str | Path,
    template: str = "auto",
    *,
    special_tokens: Sequence[str] = (),
    needs_template: bool = True,
    key: str = "",
    template_date: datetime.date | None = None,
) -> Tokenizer:
    """The tokenizer in a directory (tokenizer.json with its configuration) or in a tokenizer.json alone.

    A tokenizer beside an encoder–decoder model gets the template `seq2seq`. Another one without a chat template gets ChatML,
    and the control tokens that it lacks; if `needs_template` is false, only if it has these tokens already. `special_tokens`:
    tokens to add. `key`: recipe key that names the path, for hints. `template_date`: what a template with `strftime_now`
    writes; None: the date that was saved with the tokenizer, else today.
    Raises FledgeError, with file and key, if a file is missing or not readable, or if no token can end a text.
    """
    path = Path(path)
    core, folder = read_core(path, key)
    settings = read_settings(folder)
    own = settings.fledge or OwnSettings(document_end=None)
    added = [token.content for token in core.get_added_tokens_decoder().values() if token.special]
    end_of_text = own.document_end or _document_end(settings.eos_token, added)
    if end_of_text is None:
        raise FledgeError("no token that ends a text is configured", where=str(folder / "tokenizer_config.json"),
                          hint="add an eos_token to tokenizer_config.json")  # fmt: skip
    decoder_start = read_decoder_start(folder)
    if template == SEQ2SEQ or (template == "auto" and (own.template == SEQ2SEQ or decoder_start is not None)):
        chat_template = _seq2seq_template(core, settings, decoder_start, folder)
    elif template == "auto" and settings.chat_template is None and own.template not in NATIVE:
        has_chatml = needs_template or set(CHATML.specials) <= set(added)
        chat_template = CHATML if has_chatml else NO_TEMPLATE
    else:
        chat_template = _choose_template(template, settings, added, path)
    if "strftime_now" in chat_template.jinja:
        chat_template = replace(chat_template, date=template_date or own.template_date or datetime.date.today())
    ends = [*read_end_tokens(folder), *([core.token_to_id(settings.eos_token)] if settings.eos_token else [])]
    return Tokenizer(
        core,
        chat_template,
        bos=settings.bos_token,
        eos=end_of_text,
        pad=settings.pad_token or _first(PAD_CANDIDATES, added) or end_of_text,
        special_tokens=special_tokens,
        stop_tokens=[*own.stop_tokens, *_control_tokens(core, ends)],
        begins_with_bos=settings.fledge is not None and own.document_start != [],
    )


def _seq2seq_template(core: Core, settings: TokenizerSettings, decoder_start: int | None, folder: Path) -> ChatTemplate:
    """The template of an encoder–decoder: its source ends with the tokenizer's `eos_token`, its answer begins with the token
    that the model beside it, or fledge's own file, says, else with the padding token."""
    own = settings.fledge or OwnSettings(document_end=None)
    start = settings.pad_token if decoder_start is None else core.id_to_token(decoder_start)
    if own.template == SEQ2SEQ and decoder_start is None and len(own.specials) == 2:
        start = own.specials[1]
    if settings.eos_token is None or start is None:
        missing = "eos_token" if settings.eos_token is None else "pad_token"
        what = f"the template of an encoder–decoder needs the {missing} of the tokenizer, which is missing"
        raise FledgeError(what, where=str(folder / "tokenizer_config.json"))
    return seq2seq_template(settings.eos_token, start)


def _document_end(eos: str | None, added: Sequence[str]) -> str | None:
    """The token that ends a document: `eos`, or the vocabulary's token for the end of a text where `eos` ends a turn."""
    if eos in TEXT_ENDS:
        return eos
    return _first(TEXT_ENDS, added) or eos or _first(END_CANDIDATES, added)


def _control_tokens(core: Core, ids: Sequence[int | None]) -> list[str]:
    """The texts of those ids that are control tokens; a default of a configuration may be any token."""
    added = core.get_added_tokens_decoder()
    return [added[number].content for number in ids if number in added]


def enclosing(core: Core, bos: str | None, eos: str | None) -> processors.TemplateProcessing:
    """A post-processor that puts these tokens before and after each text."""
    texts = dict.fromkeys(text for text in (bos, eos) if text)

    def around(name: str, kind: int) -> list[str]:
        return [*([f"{bos}:{kind}"] if bos else []), f"{name}:{kind}", *([f"{eos}:{kind}"] if eos else [])]

    return processors.TemplateProcessing(
        single=around("$A", 0),
        pair=[*around("$A", 0), *around("$B", 1)],
        special_tokens=[(text, core.token_to_id(text)) for text in texts],
    )


def _choose_template(requested: str, settings: TokenizerSettings, added: Sequence[str], path: Path) -> ChatTemplate:
    chat_template, own = settings.chat_template, settings.fledge or OwnSettings(document_end=None)
    if requested == "auto":
        requested = own.template if own.template in NATIVE else "tokenizer"
    if requested in NATIVE:
        return NATIVE[requested]
    if chat_template is None:
        raise FledgeError(
            "the recipe asks for the tokenizer's own chat template, but it has none",
            where=str(path),
            hint="set tokenizer.template to chatml or inst",
        )
    named = {f"{name}_token": getattr(settings, f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    variables = tuple((name, text) for name, text in named.items() if text)
    specials = own.specials or (*(text for _, text in variables), *added)
    return ChatTemplate("tokenizer", chat_template, tuple(dict.fromkeys(specials)), variables=variables)


def _first(candidates: Sequence[str], among: Sequence[str]) -> str | None:
    return next((text for text in candidates if text in among), None)
