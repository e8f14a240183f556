"""Control tokens that texts contain: counted, so that nobody trains on `<|im_end|>` in pieces without knowing."""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from fledge.data.encoding.examples import Encoded
from fledge.data.parsing.dialogues import RENDERED_TURN
from fledge.data.parsing.items import Dialogue, Item
from fledge.data.row_events import RowEvent
from fledge.tokenizer import Tokenizer

WELL_KNOWN = (
    "<s>", "</s>", "<bos>", "<eos>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|end|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
)  # fmt: skip
"""Control tokens of well-known models, which other tokenizers take for ordinary text."""
SPELLED_OUT, PARSED, FOREIGN, RENDERED = (
    "control tokens in the text, spelled out",
    "control tokens in the text, parsed",
    "control tokens of another tokenizer in the text",
    "a rendered conversation as a document",
)
"""Reasons of the events "noticed"."""
MOST_SHOWN = 4  # control tokens in the detail of an event

Events = tuple[RowEvent, ...]


class ControlTokenFinder:
    """Finds control tokens in the texts of items.

    `parsed`: whether the encoding makes single tokens of them. The own template of a tokenizer does so in conversations, as in
    transformers.
    """

    def __init__(self, tokenizer: Tokenizer, parsed: bool) -> None:
        added = tokenizer.core.get_added_tokens_decoder().values()
        self._own: set[str] = {token.content for token in added if token.special}
        self._foreign: set[str] = {text for text in WELL_KNOWN if all(text != token.content for token in added)}
        self._parsed, self._template_parses = parsed, tokenizer.template.render_native is None
        texts = {*self._own, *self._foreign} - {""}
        self._any, self._first = re.compile(_trie_pattern(texts)), {text[0] for text in texts}

    def events(self, item: Item) -> Events:
        """An event for each kind of control token in the texts of an item."""
        matches = [match for text in item.texts() if self._may_hold(text) for match in self._any.findall(text)]
        if not matches:
            return ()
        found = Counter(matches)
        parsed = self._parsed or (self._template_parses and isinstance(item, Dialogue))
        kinds: tuple[tuple[str, set[str]], ...] = ((PARSED if parsed else SPELLED_OUT, self._own), (FOREIGN, self._foreign))
        events = [_event(reason, found, texts) for reason, texts in kinds if not texts.isdisjoint(found)]
        if not isinstance(item, Dialogue) and any(RENDERED_TURN.search(text) for text in item.texts()):
            events.append(RowEvent("noticed", RENDERED))
        return tuple(events)

    def _may_hold(self, text: str) -> bool:
        """Whether a character that begins a control token is in the text: much faster than to search for the tokens."""
        for character in self._first:  # noqa: SIM110 - `any` takes three times as long
            if character in text:
                return True
        return False


def _trie_pattern(texts: Iterable[str]) -> str:
    """A regular expression for the longest of some texts, which shares their beginnings: alternatives side by side are slow."""
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[:1], []).append(text[1:])
    if set(rests) == {""}:
        return ""
    alternatives = [re.escape(head) + (_trie_pattern(rests[head]) if head else "") for head in sorted(rests, reverse=True)]
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


def _event(reason: str, found: Counter[str], texts: set[str]) -> RowEvent:
    counted = [f"{text} × {count}" for text, count in found.most_common() if text in texts]
    more = [f"and {len(counted) - MOST_SHOWN} others"] if len(counted) > MOST_SHOWN else []
    return RowEvent("noticed", reason, ", ".join([*counted[:MOST_SHOWN], *more]))


def with_control_tokens_noticed(
    items: Iterable[Item], finder: ControlTokenFinder, encode: Callable[[Iterable[Item]], Iterator[Encoded]]
) -> Iterator[Encoded]:
    """The encoding of each item by `encode`, with the events about control tokens in its texts."""
    found: deque[Events] = deque()  # of the items that `encode` has taken and not yet encoded

    def observed() -> Iterator[Item]:
        for item in items:
            found.append(finder.events(item))
            yield item

    for encoded in encode(observed()):
        events = found.popleft()
        yield replace(encoded, events=(*events, *encoded.events)) if events else encoded
