"""The tokenizer as fledge uses it: encode, decode, and the ids that have a meaning."""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.run.text_files import write_and_verify
from fledge.tokenizer.template import CHATML, NATIVE, ChatTemplate, Message, TextSegment

PAD_CANDIDATES = ("<pad>", "<|pad|>", "<|endoftext|>", "</s>")
END_CANDIDATES = ("<|endoftext|>", "</s>", "<|im_end|>", "<eos>")

CONFORMANCE_TEXTS = (
    "", " ", "\n", "\r\n\t\v\f\x00\x1b\x7f\x85\u200b\u2028\ufeff",
    "The quick brown fox, isn't it? WE'LL see; they've 1,234.50!",
    "e\u0301 n\u0303 a\u0308\u0323 \u1100\u1161\u11a8 가 ﬁ Ⅷ ½ ²", "１２３ ＡＢＣ ａｂｃ　全角，。！？",
    "\u0661\u0662\u0663 \u096a\u096b\u096c \u0639\u0631\u0628\u064a \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "春眠不觉晓，处处闻啼鸟。夜來風雨聲 花落知多少 𠀀𪜶 かなカナ",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3\U0001f44d\U0001f3fd \u2764\ufe0f \u260e\ufe0e",
    "def f(x):\n\tif x >= 0x1F:  # why?\n        return {'a': [1, 2.5e-3]}\n\n\n",
    "https://a.b/c?d=e&f=%20 <p>x</p> a_b-c/d\\e",
    "a" * 300, "哈" * 100, "ab1 " * 60, " " * 200 + "x", "\n" * 50 + " \t" * 40, "0123456789" * 20, "=" * 80,
    ("\u3000" * 8 + "x") * 3, "".join(map(chr, range(0x100))), "".join(map(chr, range(0x100, 0xD800, 0x3F))),
    "".join(map(chr, range(0xE000, 0x110000, 0xFFF))),
)  # fmt: skip
"""Texts on which a fast encoder would differ if it did: every byte that UTF-8 has, and what regular expressions, added
tokens and merges treat apart."""
CHECKED_TOKENS = 100  # added tokens that are tried in text
CHECKED_CHARACTERS = 20_000  # of the first texts encoded

Flat = tuple[np.ndarray, np.ndarray]


class Encoding(NamedTuple):
    """A rendered conversation: tokens int32 [n], weights float32 [n], turns int32 [n].

    A turn is the index of the message whose trained text the token belongs to, -1 for none.
    """

    tokens: np.ndarray
    weights: np.ndarray
    turns: np.ndarray


def _encode_exactly(core: Core, texts: Sequence[str]) -> Flat:
    """Ids int32 of all texts end to end, and where each text begins and ends, int64 [texts + 1]."""
    for text in texts:
        text.encode()  # a lone surrogate is a UnicodeEncodeError here, a TypeError of other meaning in the library
    rows = [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=False)]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.fromiter(chain.from_iterable(rows), np.int32, count=int(offsets[-1])), offsets


class VerifiedFastEncoder:
    """Many texts at once: by `fastokens`, a faster encoder, where it gives the ids that `tokenizers` gives, else by
    `tokenizers` itself. `name` tells which of them it is, `reason` why it is not the fast one.

    Checked are hard texts and each added token on the way in, and the first texts of either kind that are encoded.
    """

    def __init__(self, core: Core, literal: Core) -> None:
        self._cores = {False: core, True: literal}
        self._checked: set[bool] = set()
        self._fast: Any = None
        self.reason = ""
        try:
            from fastokens import Tokenizer as Fast

            self._fast = Fast.from_json_str(core.to_str())
        except (ImportError, ValueError) as error:
            self._fall_back(f"fastokens cannot load it: {error}")
            return
        added = islice((token.content for token in core.get_added_tokens_decoder().values()), CHECKED_TOKENS)
        tokens = [text for token in added for text in (token, f"a{token}{token} {token} \n{token}\nb.{token[:-1]}")]
        for literal_text in (False, True):
            self._check([*CONFORMANCE_TEXTS, *tokens], literal_text)

    @property
    def name(self) -> str:
        """fastokens or tokenizers."""
        return "tokenizers" if self._fast is None else "fastokens"

    def _fall_back(self, reason: str) -> None:
        self._fast, self.reason = None, reason

    def _check(self, texts: Sequence[str], literal: bool) -> None:
        if self._fast is None:
            return
        ours = _encode_exactly(self._cores[literal], texts)
        try:
            theirs = self._encode_fast(texts, literal)
        except ValueError as error:
            self._fall_back(f"fastokens refuses a text: {error}")
            return
        if not all(map(np.array_equal, ours, theirs)):
            self._fall_back("fastokens gives other ids than tokenizers")

    def _check_first(self, texts: Sequence[str], literal: bool) -> None:
        """Compare on the beginning of what is encoded first."""
        left, some = CHECKED_CHARACTERS, []
        for text in texts:
            some.append(text[:left])
            left -= len(some[-1])
            if left <= 0:
                break
        self._check(some, literal)
        self._checked.add(literal)

    def _encode_fast(self, texts: Sequence[str], literal: bool) -> Flat:
        ids, offsets = self._fast.encode_batch_flat(list(texts), False, literal)
        return np.frombuffer(ids, "<u4").astype(np.int32), np.frombuffer(offsets, "<u8").astype(np.int64)

    def encode(self, texts: Sequence[str], literal: bool) -> Flat:
        """Ids int32 of all texts end to end, and offsets int64 [texts + 1]; in `literal` texts special tokens are text.

        Raises UnicodeEncodeError for a text with lone surrogates.
        """
        if literal not in self._checked and texts:
            self._check_first(texts, literal)
        if self._fast is not None:
            try:
                return self._encode_fast(texts, literal)
            except ValueError:  # its regular expressions give up on some texts, such as a million spaces
                pass
        return _encode_exactly(self._cores[literal], texts)


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
        self.bos_id = vocabulary.get(bos) if bos else None
        self.eos_id = vocabulary[eos]
        self.eot_id = vocabulary[template.turn_end or eos]

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included: the rows an embedding needs."""
        return max(self.core.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens after which generation has ended."""
        return frozenset((self.eos_id, self.eot_id))

    def encode(self, text: str) -> list[int]:
        """Ordinary text: strings that look like control tokens stay text."""
        return self._literal.encode(text, add_special_tokens=False).ids

    @property
    def _start(self) -> list[int]:
        return [] if self.bos_id is None else [self.bos_id]

    def encode_prefix(self, text: str) -> list[int]:
        """A plain text that is to be continued: after its start token (if the tokenizer has one), without its end."""
        return [*self._start, *self.encode(text)]

    def encode_document(self, text: str) -> list[int]:
        """A plain text between its start (if the tokenizer has one) and end tokens."""
        return [*self.encode_prefix(text), self.eos_id]

    @cached_property
    def _batches(self) -> VerifiedFastEncoder:
        return VerifiedFastEncoder(self.core, self._literal)

    @property
    def encoder_backend(self) -> str:
        """Which library encodes batches: fastokens or tokenizers."""
        return self._batches.name

    @property
    def coder_reason(self) -> str:
        """Why it is not fastokens; empty where it is."""
        return self._batches.reason

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ordinary texts, many at once: the ids of `encode` as int32 arrays."""
        ids, offsets = self._batches.encode(texts, literal=True)
        return [ids[start:stop] for start, stop in pairwise(offsets.tolist())]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Plain texts, many at once: the ids of `encode_document` as int32 arrays."""
        start, end = (np.array(ids, np.int32) for ids in (self._start, [self.eos_id]))
        return [np.concatenate((start, ids, end)) for ids in self.encode_batch(texts)]

    def encode_pieces(self, pieces: Sequence[TextSegment]) -> tuple[list[int], list[float]]:
        """Tokens and their weights, piece by piece, so that a prompt's tokens are always a prefix of its training row."""
        tokens: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            coder = self._literal if piece.literal else self.core
            ids = coder.encode(piece.text, add_special_tokens=False).ids
            tokens += ids
            weights += [piece.weight] * len(ids)
        return tokens, weights

    def encode_segments(self, batch: Sequence[Sequence[TextSegment]]) -> list[Encoding]:
        """What `encode_pieces` gives for each of many renderings, with the turns. Equal texts are encoded once.

        Raises UnicodeEncodeError for a text with lone surrogates.
        """
        pieces = [piece for rendering in batch for piece in rendering]
        numbers: tuple[dict[str, int], dict[str, int]] = {}, {}  # control, literal: each text's number
        which = np.empty(len(pieces), np.int64)
        for i, piece in enumerate(pieces):
            known = numbers[piece.literal]
            which[i] = known.setdefault(piece.text, len(known))
        control, literal = (self._batches.encode(list(known), bool(kind)) for kind, known in enumerate(numbers))
        which[[piece.literal for piece in pieces]] += len(numbers[0])

        pool = np.concatenate((control[0], literal[0]))
        starts = np.concatenate((control[1][:-1], literal[1][:-1] + len(control[0])))
        sizes = np.concatenate((np.diff(control[1]), np.diff(literal[1])))[which]
        ends = np.concatenate(([0], np.cumsum(sizes)))
        tokens = pool[np.repeat(starts[which] - ends[:-1], sizes) + np.arange(ends[-1])]
        weights = np.repeat(np.array([piece.weight for piece in pieces], np.float32), sizes)
        turns = np.repeat(np.array([-1 if piece.turn is None else piece.turn for piece in pieces], np.int32), sizes)
        borders = ends[np.cumsum([0, *(len(rendering) for rendering in batch)])].tolist()
        return [Encoding(tokens[a:b], weights[a:b], turns[a:b]) for a, b in pairwise(borders)]

    def encode_conversation(self, messages: Sequence[Message], tools: str | None = None) -> tuple[list[int], list[float]]:
        """A whole conversation as (tokens, weights); raises TemplateError where the template refuses it."""
        return self.encode_pieces(self.template.render(messages, tools))

    def encode_prompt(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """The tokens that generation starts from."""
        return self.encode_pieces(self.template.prompt(messages, tools))[0]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of the ids, special tokens written out unless skipped."""
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self) -> list[int] | None:
        """Bytes of text that each id stands for, control tokens none; None where that is not fixed (the tokenizer is not
        byte-level: what a token stands for depends on its neighbours)."""
        decoder = json.loads(self.core.to_str()).get("decoder") or {}
        parts = [decoder, *decoder.get("decoders", [])]
        if not any(part.get("type") == "ByteLevel" for part in parts):
            return None
        added = self.core.get_added_tokens_decoder()
        sizes = [0] * self.vocab_size
        for text, number in self.core.get_vocab(with_added_tokens=True).items():
            if number not in added:
                sizes[number] = len(text)  # each character of such a token stands for one byte
            elif not added[number].special:
                sizes[number] = len(text.encode())
        return sizes

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
        write_and_verify(folder / "tokenizer.json", self.core.to_str(pretty=False))
        write_and_verify(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=1))
        write_and_verify(folder / "chat_template.jinja", self.template.jinja)


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
