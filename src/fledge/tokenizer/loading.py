"""Loading a tokenizer from its files: tokenizer.json, tokenizer_config.json and chat_template.jinja."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.tokenizer.native_templates import CHATML, NATIVE
from fledge.tokenizer.template import ChatTemplate
from fledge.tokenizer.tokenizer import Tokenizer

PAD_CANDIDATES = ("<pad>", "<|pad|>", "<|endoftext|>", "</s>")
END_CANDIDATES = ("<|endoftext|>", "</s>", "<|im_end|>", "<eos>")


def _text_of(token: object) -> str | None:
    """The text of a token: tokenizer_config.json has it as a string or as {"content": …}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        jinja_file = folder / "chat_template.jinja"
        jinja = jinja_file.read_text(encoding="utf-8") if jinja_file.exists() else None
    except (OSError, ValueError) as error:
        raise FledgeError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise FledgeError("expected a JSON object", where=str(path))
    chat_template = jinja if jinja is not None else config.get("chat_template")
    if isinstance(chat_template, list):  # several named ones, as older transformers write them
        named = {entry.get("name"): entry.get("template") for entry in chat_template if isinstance(entry, dict)}
        chat_template = named.get("default")
    config["chat_template"] = chat_template
    return config


def _choose_template(requested: str, config: dict[str, Any], added: Sequence[str], path: Path) -> ChatTemplate:
    chat_template = config.get("chat_template")
    saved_name = config.get("fledge", {}).get("template")
    if requested == "auto":
        requested = saved_name if saved_name in NATIVE else "tokenizer" if isinstance(chat_template, str) else CHATML.name
    if requested in NATIVE:
        return NATIVE[requested]
    if not isinstance(chat_template, str):
        raise FledgeError(
            "the recipe asks for the tokenizer's own chat template, but it has none",
            where=str(path),
            hint="set tokenizer.template to chatml or inst",
        )
    special_tokens = {f"{name}_token": _text_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
    variables = tuple((name, text) for name, text in special_tokens.items() if text)
    specials = config.get("fledge", {}).get("specials") or (*(text for _, text in variables), *added)
    return ChatTemplate("tokenizer", chat_template, tuple(dict.fromkeys(specials)), variables=variables)


def load_tokenizer(path: str | Path, template: str = "auto") -> Tokenizer:
    """The tokenizer in a directory (tokenizer.json with its configuration) or in a tokenizer.json alone.

    Raises FledgeError when the file is missing or unreadable, or when no token can end a text.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise FledgeError("there is no tokenizer.json here", where=str(path), hint="check tokenizer.path")
    try:
        core = Core.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise FledgeError(f"not a readable tokenizer.json: {error}", where=str(file)) from None
    config = _read_config(file.parent)
    added = [token.content for token in core.get_added_tokens_decoder().values() if token.special]
    bos, eos, pad = (_text_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
    end_of_text = config.get("fledge", {}).get("document_end") or eos or _first(END_CANDIDATES, added)
    if end_of_text is None:
        raise FledgeError("no token that ends a text is configured", where=str(file.parent / "tokenizer_config.json"),
                          hint="add an eos_token to tokenizer_config.json")  # fmt: skip
    chat_template = _choose_template(template, config, added, path)
    pad = pad or _first(PAD_CANDIDATES, added) or end_of_text
    return Tokenizer(core, chat_template, bos=bos, eos=end_of_text, pad=pad)


def _first(candidates: Sequence[str], among: Sequence[str]) -> str | None:
    return next((text for text in candidates if text in among), None)
