"""The tokenizer as fledge uses it: encode, decode, and the ids that have a meaning."""

import json
from collections.abc import Sequence
from pathlib import Path

import xxhash
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.tokenizer.template import CHATML, NATIVE, ChatTemplate, Message, Piece

PAD_CANDIDATES = ("<pad>", "<|pad|>", "<|endoftext|>", "</s>")
END_CANDIDATES = ("<|endoftext|>", "</s>", "<|im_end|>", "<eos>")


class Tokenizer:
    """A Hugging Face tokenizer with its chat template and special ids.

    `document_start` (or None) and `document_end` enclose a plain text; `turn_end` ends an assistant's turn;
    `pad` fills rows and never carries weight.
    """

    def __init__(self, core: Core, template: ChatTemplate, *, bos: str | None, eos: str, pad: str) -> None:
        self.core, self.template = core, template
        core.no_padding()
        core.no_truncation()
        missing = [text for text in (*template.specials, eos, pad) if core.token_to_id(text) is None]
        self.added = core.add_special_tokens([AddedToken(text, special=True) for text in dict.fromkeys(missing)])
        self._literal = Core.from_str(core.to_str())
        self._literal.encode_special_tokens = True
        self.bos, self.eos, self.pad_text = bos, eos, pad
        vocabulary = core.get_vocab(with_added_tokens=True)
        self.pad = vocabulary[pad]
        self.document_start = vocabulary.get(bos) if bos else None
        self.document_end = vocabulary[eos]
        self.turn_end = vocabulary[template.turn_end or eos]

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included: the rows an embedding needs."""
        return max(self.core.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens after which generation has ended."""
        return frozenset((self.document_end, self.turn_end))

    def encode(self, text: str) -> list[int]:
        """Ordinary text: strings that look like control tokens stay text."""
        return self._literal.encode(text, add_special_tokens=False).ids

    @property
    def _start(self) -> list[int]:
        return [] if self.document_start is None else [self.document_start]

    def encode_beginning(self, text: str) -> list[int]:
        """A plain text that is to be continued: after its start token (if the tokenizer has one), without its end."""
        return [*self._start, *self.encode(text)]

    def encode_document(self, text: str) -> list[int]:
        """A plain text between its start (if the tokenizer has one) and end tokens."""
        return [*self.encode_beginning(text), self.document_end]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Many plain texts at once, on all cores."""
        encodings = self._literal.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[*self._start, *encoding.ids, self.document_end] for encoding in encodings]

    def encode_pieces(self, pieces: Sequence[Piece]) -> tuple[list[int], list[float]]:
        """Tokens and their weights, piece by piece, so that a prompt's tokens are always a prefix of its training row."""
        tokens: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            coder = self._literal if piece.literal else self.core
            ids = coder.encode(piece.text, add_special_tokens=False).ids
            tokens += ids
            weights += [piece.weight] * len(ids)
        return tokens, weights

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[float]]:
        """A whole conversation as (tokens, weights); raises TemplateError where the template refuses it."""
        return self.encode_pieces(self.template.render(messages))

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that generation starts from."""
        return self.encode_pieces(self.template.prompt(messages))[0]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of the ids, special tokens written out unless skipped."""
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    def fingerprint(self) -> str:
        """Changes when any token or the template changes."""
        return xxhash.xxh3_64_hexdigest((self.core.to_str() + self.template.jinja).encode())

    def save(self, folder: Path) -> None:
        """Write the files that transformers and fledge load: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.template.turn_end or self.eos,
            "pad_token": self.pad_text,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            "chat_template": self.template.jinja,
            "fledge": {
                "template": self.template.name,
                "specials": list(self.template.specials),
                "document_end": self.eos,
            },
        }
        (folder / "tokenizer.json").write_text(self.core.to_str(pretty=False), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
        (folder / "chat_template.jinja").write_text(self.template.jinja, encoding="utf-8")


def _text_of(token: object) -> str | None:
    """tokenizer_config.json writes a token as a string or as {"content": …}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        jinja = folder / "chat_template.jinja"
        template = jinja.read_text(encoding="utf-8") if jinja.exists() else None
    except (OSError, ValueError) as error:
        raise FledgeError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(config, dict):
        raise FledgeError("expected a JSON object", where=str(path))
    own = template if template is not None else config.get("chat_template")
    if isinstance(own, list):  # several named ones, as older transformers write them
        named = {entry.get("name"): entry.get("template") for entry in own if isinstance(entry, dict)}
        own = named.get("default")
    config["chat_template"] = own
    return config


def _choose_template(wanted: str, config: dict, added: Sequence[str], where: Path) -> ChatTemplate:
    own = config.get("chat_template")
    saved = config.get("fledge", {}).get("template")
    if wanted == "auto":
        wanted = saved if saved in NATIVE else "tokenizer" if isinstance(own, str) else CHATML.name
    if wanted in NATIVE:
        return NATIVE[wanted]
    if not isinstance(own, str):
        raise FledgeError(
            "the recipe asks for the tokenizer's own chat template, but it has none",
            where=str(where),
            hint="set tokenizer.template to chatml or inst",
        )
    named = {f"{name}_token": _text_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
    variables = tuple((name, text) for name, text in named.items() if text)
    specials = config.get("fledge", {}).get("specials") or (*(text for _, text in variables), *added)
    return ChatTemplate("tokenizer", own, tuple(dict.fromkeys(specials)), variables=variables)


def load_tokenizer(path: str | Path, template: str = "auto") -> Tokenizer:
    """A tokenizer from a directory (tokenizer.json beside its configuration) or from a tokenizer.json alone.

    Raises FledgeError where the file is missing or unreadable, or has no token that can end a text.
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
    document_end = config.get("fledge", {}).get("document_end") or eos or _first(END_CANDIDATES, added)
    if document_end is None:
        raise FledgeError("no token is named that ends a text", where=str(file.parent / "tokenizer_config.json"),
                          hint="add an eos_token to tokenizer_config.json")  # fmt: skip
    chosen = _choose_template(template, config, added, path)
    pad = pad or _first(PAD_CANDIDATES, added) or document_end
    return Tokenizer(core, chosen, bos=bos, eos=document_end, pad=pad)


def _first(candidates: Sequence[str], among: Sequence[str]) -> str | None:
    return next((text for text in candidates if text in among), None)
