"""tokenizer_config.json, chat_template.jinja and the model's end tokens beside them, validated once where they are read."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, ValidationError

from fledge.errors import FledgeError
from fledge.tokenizer.files import read_bytes, read_object

MAX_TOKEN_CHARACTERS = 512
Validated = TypeVar("Validated", bound=BaseModel)
Strings = Annotated[list[StrictStr], Field(max_length=100_000)]


def _token_text(value: object) -> object:
    """The text of a token that is written as a string or as {"content": …}; None for an empty one."""
    if isinstance(value, dict):
        value = value.get("content", value)
    return None if value == "" else value


def _default_template(value: object) -> object:
    """The template itself, or the one called default of several named ones, as older transformers write them."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(entry, dict) and isinstance(entry.get("template"), str) for entry in value):
        raise ValueError("expected a text, or a list of objects with name and template")
    return {entry.get("name"): entry["template"] for entry in value if isinstance(entry.get("name"), str)}.get("default")


Token = Annotated[
    Annotated[StrictStr, Field(max_length=MAX_TOKEN_CHARACTERS)] | None, BeforeValidator(_token_text), Field(default=None)
]


class OwnSettings(BaseModel):
    """What fledge writes beside the keys of transformers. `document_start` is absent in files of versions that put the
    tokenizer's `bos_token` before every document."""

    template: StrictStr | None = None
    specials: Strings = []
    document_end: Token
    document_start: Strings | None = None
    stop_tokens: Strings = []
    template_date: datetime.date | None = None


class TokenizerSettings(BaseModel):
    """The keys of tokenizer_config.json that are read; others are left to transformers.

    add_bos_token and add_eos_token are not read: beside a tokenizer.json, transformers follows its post-processor instead.
    """

    bos_token: Token
    eos_token: Token
    pad_token: Token
    unk_token: Token
    chat_template: Annotated[StrictStr | None, BeforeValidator(_default_template)] = None
    fledge: OwnSettings | None = None


class EndTokens(BaseModel):
    """The end tokens of a model, as its config.json or generation_config.json gives them: one id, a list, or none."""

    eos_token_id: StrictInt | Annotated[list[StrictInt], Field(max_length=1000)] | None = None

    @property
    def ids(self) -> Sequence[int]:
        """The ids."""
        ends = self.eos_token_id
        return [] if ends is None else [ends] if isinstance(ends, int) else ends


class DecoderStart(BaseModel):
    """What a model's config.json says about an encoder–decoder: whether it is one, and the token with which an answer begins.
    Token 0 is the padding token of a T5 whose configuration does not say it."""

    is_encoder_decoder: StrictBool = False
    decoder_start_token_id: StrictInt | None = None
    pad_token_id: StrictInt | None = 0


def _validated(kind: type[Validated], values: Mapping[str, Any], file: Path) -> Validated:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, str) or "[" not in part)
        found = type(problem["input"]).__name__
        raise FledgeError(f"{key}: {problem['msg'].removeprefix('Value error, ')} (found: {found})", where=str(file)) from None


def read_settings(folder: Path) -> TokenizerSettings:
    """The validated tokenizer_config.json of a folder, with the text of chat_template.jinja in place of its chat_template.

    All settings are None if there are no such files. Raises FledgeError with file and key.
    """
    file, jinja_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    settings = _validated(TokenizerSettings, read_object(file), file)
    if jinja_file.exists():
        try:
            settings.chat_template = read_bytes(jinja_file).decode()
        except UnicodeDecodeError as error:
            raise FledgeError(f"this is not UTF-8 text: {error.reason}", where=str(jinja_file)) from None
    return settings


def read_end_tokens(folder: Path) -> list[int]:
    """The ids that end a text or turn of the model in a folder, as generation_config.json and config.json give them."""
    files = [folder / name for name in ("generation_config.json", "config.json")]
    return [token for file in files for token in _validated(EndTokens, read_object(file), file).ids]


def read_decoder_start(folder: Path) -> int | None:
    """The id of the token with which the decoder of the encoder–decoder in a folder starts, which is the padding token where
    nothing else is said; None: there is no config.json of an encoder–decoder. Raises FledgeError if it says neither."""
    file = folder / "config.json"
    described = _validated(DecoderStart, read_object(file), file)
    if not described.is_encoder_decoder:
        return None
    start = described.pad_token_id if described.decoder_start_token_id is None else described.decoder_start_token_id
    if start is None:
        raise FledgeError("an encoder–decoder needs decoder_start_token_id, which is missing", where=str(file))
    return start
