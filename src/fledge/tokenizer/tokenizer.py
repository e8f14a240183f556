"""The tokenizer: encoding, decoding, special token ids, and saving."""

import json
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from fledge.run.text_files import write_and_verify
from fledge.tokenizer.fast_encoder import EncodedTexts, VerifiedFastEncoder
from fledge.tokenizer.message import Message, TextSegment
from fledge.tokenizer.segments import Encoding, SegmentEncoder
from fledge.tokenizer.template import ChatTemplate

ROUND_TRIP = "The Fox, it's 12:30!\n\tElle a dit : déjà  vu."


class Tokenizer:
    """A Hugging Face tokenizer with its chat template and special token ids.

    A plain text stands between `document_start` and `document_end` (ids): what the tokenizer's own post-processor puts
    around it, and at its end in any case a token, `eos_id` where the post-processor has none. `eot_id` ends an assistant's
    turn; `stop_tokens` are further tokens that end an answer. `pad` fills rows and never has a weight in the loss.

    Control tokens (those of the template, and all that the tokenizer marks as special) are single tokens only where a
    template writes them. `special_tokens` are single tokens in every text. `added`: those that the vocabulary did not contain.
    """

    def __init__(
        self,
        core: Core,
        template: ChatTemplate,
        *,
        bos: str | None,
        eos: str,
        pad: str,
        special_tokens: Sequence[str] = (),
        stop_tokens: Sequence[str] = (),
        begins_with_bos: bool = False,
    ) -> None:
        """`begins_with_bos`: `bos` starts a document although the post-processor does not say so."""
        self.core, self.template = core, template
        core.no_padding()
        core.no_truncation()
        known = {token.content for token in core.get_added_tokens_decoder().values()}
        control = dict.fromkeys((*template.specials, eos, pad))
        self.added = tuple(text for text in dict.fromkeys((*control, *special_tokens)) if core.token_to_id(text) is None)
        core.add_special_tokens([AddedToken(text, special=True) for text in control if text in self.added])
        own = [text for text in dict.fromkeys(special_tokens) if text not in known and text not in control]
        core.add_tokens([AddedToken(text, normalized=False) for text in own])
        self._literal = Core.from_str(core.to_str())
        self._literal.encode_special_tokens = True
        self.bos, self.eos, self.pad_text = bos, eos, pad
        vocabulary = core.get_vocab(with_added_tokens=True)
        self.pad = vocabulary[pad]
        self.bos_id = vocabulary.get(bos) if bos else None
        self.eos_id = vocabulary[eos]
        self.eot_id = vocabulary[template.turn_end or eos]
        further = (text for text in dict.fromkeys(stop_tokens) if text in vocabulary)
        self.stop_tokens = tuple(text for text in further if vocabulary[text] not in (self.eos_id, self.eot_id))
        start, end = _enclosing_ids(core)
        self.document_start = start or ([self.bos_id] if begins_with_bos and self.bos_id is not None else [])
        self.document_end = end or [self.eos_id]

    @property
    def vocab_size(self) -> int:
        """The largest id + 1, added tokens included: the number of rows that an embedding needs."""
        return max(self.core.get_vocab(with_added_tokens=True).values()) + 1

    def tokens_from(self, first: int) -> list[tuple[str, bool]]:
        """The tokens with the ids `first` and above, in order, and whether each is an added token."""
        vocabulary = self.core.get_vocab(with_added_tokens=True)
        added = self.core.get_added_tokens_decoder()
        above = sorted((number, text) for text, number in vocabulary.items() if number >= first)
        return [(text, number in added) for number, text in above]

    @property
    def decoder_start(self) -> int | None:
        """The token between a source and its answer, for encoder–decoder models; None for other chat templates."""
        start = self.template.decoder_start
        return None if start is None else self.core.get_vocab(with_added_tokens=True)[start]

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a generated text."""
        vocabulary = self.core.get_vocab(with_added_tokens=True)
        further = (vocabulary[text] for text in self.stop_tokens)
        return frozenset((self.eos_id, self.eot_id, self.document_end[-1], *further))

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text. Strings that look like control tokens are encoded as text."""
        return self._literal.encode(text, add_special_tokens=False).ids

    def encode_prefix(self, text: str) -> list[int]:
        """A plain text that a model will continue, as the tokenizer's own file encodes it: behind its start tokens, control
        tokens in it parsed. Tokens that would end it are left out. For an encoder–decoder, the text is the source of an answer.
        """
        tokens = [*self.document_start, *self.core.encode(text, add_special_tokens=False).ids]
        return tokens if self.decoder_start is None else [*tokens, *self.document_end, self.decoder_start]

    def encode_document(self, text: str) -> list[int]:
        """A plain text between its start tokens (if the tokenizer has some) and its end token."""
        return [*self.document_start, *self.encode(text), *self.document_end]

    @cached_property
    def _fast_encoder(self) -> VerifiedFastEncoder:
        return VerifiedFastEncoder(self.core, None if self._literal is self.core else self._literal)

    @property
    def encoder_backend(self) -> str:
        """The library that encodes batches: fastokens or tokenizers."""
        return self._fast_encoder.name

    @property
    def encoder_fallback_reason(self) -> str:
        """Why batches are not encoded by fastokens; empty when they are."""
        return self._fast_encoder.reason

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many ordinary texts, as int32 arrays equal to the lists of `encode`."""
        ids, offsets = self._fast_encoder.encode(texts, literal=True)
        return [ids[start:stop] for start, stop in pairwise(offsets.tolist())]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many plain texts, as int32 arrays equal to the lists of `encode_document`."""
        start, end = (np.array(ids, np.int32) for ids in (self.document_start, self.document_end))
        return [np.concatenate((start, ids, end)) for ids in self.encode_batch(texts)]

    @cached_property
    def _segment_encoder(self) -> SegmentEncoder:
        def encode(texts: Sequence[str]) -> EncodedTexts:
            return self._fast_encoder.encode(texts, literal=True)

        return SegmentEncoder(self.core, encode, parses_literal=self._literal is self.core)

    def encode_rendering(self, segments: Sequence[TextSegment]) -> tuple[list[int], list[float]]:
        """The tokens and weights of one rendered conversation."""
        (encoding,) = self.encode_segments([segments])
        return encoding.tokens.tolist(), encoding.weights.tolist()

    def encode_segments(self, batch: Sequence[Sequence[TextSegment]]) -> list[Encoding]:
        """The tokens, weights and turns of many rendered conversations. Equal texts are encoded only once.

        The tokens of a prompt are always a prefix of the tokens of its training row. Raises UnicodeEncodeError for a text with
        lone surrogates.
        """
        return self._segment_encoder.encode(batch)

    def encode_conversation(self, messages: Sequence[Message], tools: str | None = None) -> tuple[list[int], list[float]]:
        """The tokens and weights of a conversation. Raises TemplateError when the template cannot render the conversation."""
        return self.encode_rendering(self.template.render(messages, tools))

    def encode_prompt(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """The tokens that generation starts from."""
        return self.encode_rendering(self.template.prompt(messages, tools))[0]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of the ids. Special tokens are written out, unless they are skipped."""
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    def round_trip_problem(self) -> str:
        """A sentence about what the tokenizer changes in a text, as those of encoders such as BERT do; empty if nothing."""
        back = self.decode(self.encode(ROUND_TRIP))
        same = back.strip() == ROUND_TRIP
        return "" if same else f"the tokenizer changes texts: {ROUND_TRIP!r} comes back as {back!r}"

    def token_bytes(self) -> list[int] | None:
        """The number of text bytes that each id stands for: 0 for control tokens.

        None when the tokenizer is not byte-level: the text of a token then depends on its neighbours.
        """
        decoder = json.loads(self.core.to_str()).get("decoder") or {}
        decoders = [decoder, *decoder.get("decoders", [])]
        if not any(each.get("type") == "ByteLevel" for each in decoders):
            return None
        added = self.core.get_added_tokens_decoder()
        sizes = [0] * self.vocab_size
        for text, token_id in self.core.get_vocab(with_added_tokens=True).items():
            if token_id not in added:
                sizes[token_id] = len(text)  # in a byte-level vocabulary, each character stands for one byte
            elif not added[token_id].special:
                sizes[token_id] = len(text.encode())
        return sizes

    def parsing_special_tokens(self) -> "Tokenizer":
        """The same tokenizer for texts whose control tokens are meant as such: it makes single tokens of them everywhere."""
        parsing = copy(self)
        for encoder in ("_fast_encoder", "_segment_encoder"):
            parsing.__dict__.pop(encoder, None)
        parsing._literal = self.core
        return parsing

    def fingerprint(self) -> str:
        """A hash that changes with any token, with the template and with the date that it writes."""
        date = "" if self.template.date is None else self.template.date.isoformat()
        return xxhash.xxh3_64_hexdigest((self.core.to_str() + self.template.jinja + date).encode())

    def save(self, folder: Path) -> None:
        """Write the files that transformers and fledge load: tokenizer.json, tokenizer_config.json and, if there is a chat
        template, chat_template.jinja."""
        folder.mkdir(parents=True, exist_ok=True)
        texts = [self.core.id_to_token(token) for token in self.document_start]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.template.turn_end or self.eos,
            "pad_token": self.pad_text,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            **({"chat_template": self.template.jinja} if self.template.jinja else {}),
            "fledge": {
                "template": self.template.name,
                "specials": list(self.template.specials),
                "document_start": texts,
                "document_end": self.eos,
                "stop_tokens": list(self.stop_tokens),
                **({"template_date": self.template.date.isoformat()} if self.template.date else {}),
            },
        }
        write_and_verify(folder / "tokenizer.json", self.core.to_str(pretty=False))
        write_and_verify(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=1))
        if self.template.jinja:
            write_and_verify(folder / "chat_template.jinja", self.template.jinja)


def _enclosing_ids(core: Core) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after a text."""
    encoding = core.encode("a")
    is_text = [index for index, added in enumerate(encoding.special_tokens_mask) if not added]
    if not is_text:  # a vocabulary without this letter
        return [], []
    return encoding.ids[: is_text[0]], encoding.ids[is_text[-1] + 1 :]
