"""What an exported model is compared on: fixed texts and conversations, and differences of log-probabilities."""

import datetime
import unicodedata
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise

from fledge.errors import FledgeError
from fledge.tokenizer import Message, TemplateError, Tokenizer

MAX_TOKENS = 96  # of a text that is scored: another program computes one token at a time
SCORED = (
    "The river was low that summer, and the old bridge could be seen from the road. Nobody crossed it any more.",
    "小猫坐在窗边看雨。过了一会儿，雨停了，它跳下来去找妈妈，想告诉她今天看见了什么。",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    return sum(values) / len(values)\n",
    "订单 A-1024：3 件 × 45.50 元 = 136.50 元，2024年10月5日送到 (delivered 17:30).",
)
TOKENISED = (
    *SCORED,
    "Don't stop: IT'S 12:30, they'LL say we'd've known.  Two  blanks,\ttabs\t\tand\n\n\nempty lines \r\n at the end   ",
    "0 00 123 4567 89012 3.14159 1e-9 0xFF １２３ ⅷ ½ x² №5",
    "你好，世界！Hello世界hello 中文English混排，“引号”、《书名》——破折号……",
    "🙂🙃 👩‍👩‍👧 🇨🇳 ❤️ ✅ e\u0301 é ñ ß ſ İ ı Ωμέγα Привет עברית العربية हिन्दी ไทย 日本語カタカナ 한국어",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] * c; } // then x->y != z && !w\n\t\treturn NULL;\n",
    '{"name": "小明", "tags": ["a", "b"], "n": -1.5e3, "ok": true, "path": "C:\\\\tmp\\\\x"}',
    "<b>bold</b> &amp; <!-- c --> https://example.org/a?b=c&d=%20#e user@example.org",
    "...---___***   !!!???\u3000全角\u00a0no-break\u200bzero\ufeffwidth\u2028line",
    " ",
    "\n",
    "a",
)  # fmt: skip
CONVERSATIONS = (
    (Message("user", "What is a token?"),),
    (Message("system", "Answer in one sentence."), Message("user", "什么是梯度？")),
    (
        Message("user", "Name two fruits."),
        Message("assistant", "An apple and a pear."),
        Message("user", "再说一种水果。\n谢谢！"),
    ),
)


@dataclass(frozen=True)
class Difference:
    """The differences of two lists of log-probabilities, in nats: the mean, the 95th percentile, the largest, and their
    number."""

    mean: float
    percentile_95: float
    largest: float
    tokens: int

    def text(self) -> str:
        """The figures as a user reads them."""
        return f"mean {self.mean:.5f}, 95 % below {self.percentile_95:.5f}, largest {self.largest:.5f} of {self.tokens} tokens"


def difference(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> Difference:
    """The absolute differences of the log-probabilities of equal tokens. Raises ValueError for different numbers of tokens."""
    gaps = sorted(abs(a - b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True))
    return Difference(sum(gaps) / len(gaps), gaps[int(0.95 * (len(gaps) - 1))], gaps[-1], len(gaps))


def prompts(tokenizer: Tokenizer) -> list[tuple[Message, ...]]:
    """The conversations that the tokenizer's template can express; none without a template. For an encoder–decoder, whose
    source other programs know as a text only, those that are one text."""
    expressible = [messages for messages in CONVERSATIONS if _can_render(tokenizer, messages)]
    return expressible if tokenizer.decoder_start is None else [each for each in expressible if len(each) == 1]


def _can_render(tokenizer: Tokenizer, messages: Sequence[Message]) -> bool:
    try:
        return bool(tokenizer.encode_prompt(messages))
    except TemplateError:
        return False


def scored_sequences(tokenizer: Tokenizer, max_positions: int) -> list[list[int]]:
    """The token sequences whose log-probabilities are compared: texts, and prompts of the chat template; for an encoder–decoder
    each text as the answer to the one before it."""
    longest = min(MAX_TOKENS, max_positions)
    if (start := tokenizer.decoder_start) is not None:
        half = (longest - len(tokenizer.document_end) - 1) // 2
        parts = [tokenizer.encode(text)[:half] for text in SCORED]
        return [[*source, *tokenizer.document_end, start, *answer] for source, answer in pairwise(parts)]
    texts = [tokenizer.encode_prefix(text) for text in SCORED]
    chats = [tokenizer.encode_prompt(messages) for messages in prompts(tokenizer)]
    return [tokens[:longest] for tokens in (*texts, *chats) if len(tokens) > 1]


def predicted_scores(tokenizer: Tokenizer, sequences: Sequence[list[int]], scores: Sequence[list[float]]) -> list[list[float]]:
    """The scores of sequences from `score_tokens` without the places of an encoder–decoder's sources, which have none."""
    if (start := tokenizer.decoder_start) is None:
        return list(scores)
    return [values[sequence.index(start) :] for sequence, values in zip(sequences, scores, strict=True)]


def tokenised_texts(tokenizer: Tokenizer, composed: bool = False) -> list[str]:
    """The texts whose tokens are compared: in the form NFC for a tokenizer that brings texts into it, and if `composed`."""
    is_composed = composed or tokenizer.core.normalizer
    return [unicodedata.normalize("NFC", text) if is_composed else text for text in TOKENISED]


def at_present(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a template that writes the present date, as other programs do."""
    if "strftime_now" not in tokenizer.template.jinja:
        return tokenizer
    present = copy(tokenizer)
    present.template = replace(tokenizer.template, date=datetime.date.today())
    return present


def check_tokens(program: str, what: str, ours: Sequence[int], theirs: Sequence[int], where: str) -> None:
    """FledgeError if another program makes other tokens of a text or conversation."""
    if list(ours) == list(theirs):
        return
    place = next((index for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    raise FledgeError(
        f"{program} makes other tokens of {what}: from token {place} on {list(theirs[place : place + 5])} "
        f"instead of {list(ours[place : place + 5])}; nothing was written",
        where=where,
    )


def check_all_tokens(
    program: str,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[int]],
    chats: Sequence[Sequence[int]],
    where: str,
    *,
    composed: bool = False,
) -> str:
    """A line about the tokens that another program makes of `tokenised_texts` and `prompts`. FledgeError as `check_tokens`."""
    ours = at_present(tokenizer)
    for text, found in zip(tokenised_texts(ours, composed), texts, strict=True):
        check_tokens(program, f"the text {text[:40]!r}", ours.encode(text), found, where)
    for messages, found in zip(prompts(ours), chats, strict=True):
        what = f"the conversation that ends with {messages[-1].content!r}"
        check_tokens(program, what, ours.encode_prompt(messages), found, where)
    return f"equal tokens in {program}: {len(texts)} texts, {len(chats)} conversations"


def check_difference(program: str, found: Difference, tolerance: float, where: str) -> None:
    """FledgeError if the log-probabilities that another program computes from the weights of the file differ by more than the
    tolerance in the mean."""
    if not found.mean <= tolerance:  # also for NaN
        raise FledgeError(
            f"{program} computes other log-probabilities from these weights: {found.text()}; the mean may be {tolerance:g}; "
            "nothing was written",
            where=where,
        )
