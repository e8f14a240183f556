"""What two texts share: ROUGE, copied prompts, words of content."""

import difflib
from collections.abc import Sequence

from fledge.evaluate.metrics.units import ngrams, split_units, split_words
from fledge.version import __version__

MAX_ROUGE = 100.0
COPIED_SHARE = 0.8  # of the prompt's units, in one run, that make an answer a copy of it
STEM_LETTERS = 4  # of an English word that are compared, an `s` or `e` at its end left out
MIN_COPIED = 4  # units of a prompt: less comes back by chance


def rouge_n(given: str, expected: str, n: int) -> float:
    """ROUGE-N (Lin 2004): F1 of the n-grams of two texts, 0 to 100; 0 if either has none."""
    one, other = ngrams(split_words(given), n), ngrams(split_words(expected), n)
    shared = sum((one & other).values())
    return _f1(shared, one.total(), other.total())


def rouge_l(given: str, expected: str) -> float:
    """ROUGE-L of two texts as wholes (Lin 2004): F1 of the longest common subsequence of their words, 0 to 100."""
    one, other = split_words(given), split_words(expected)
    return _f1(_longest_common_subsequence(one, other), len(one), len(other))


def rouge_signature(kind: str) -> str:
    """How ROUGE is computed, in the form that sacrebleu writes signatures in."""
    return f"nrefs:1|type:{kind}|score:f1|case:lower|tok:words,characters-of-cjk|stem:no|mean:answers|fledge:{__version__}"


def _f1(shared: int, given: int, expected: int) -> float:
    return MAX_ROUGE * 2 * shared / (given + expected) if shared else 0.0


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length. Each row of the table is one integer with a bit for each unit of `one` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, unit in enumerate(one):
        places[unit] = places.get(unit, 0) | 1 << index
    full = (1 << len(one)) - 1
    row = full
    for unit in other:
        matches = row & places.get(unit, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(one) - row.bit_count()


def resemblance(one: str, other: str) -> float:
    """Twice the units in matching runs ÷ the units of both texts (Ratcliff & Obershelp 1988): 1 for equal texts, 0 for texts
    without a unit in common."""
    return difflib.SequenceMatcher(None, split_units(one), split_units(other), autojunk=False).ratio()


def copied_share(prompt: str, answer: str) -> float:
    """The longest run of units that stands in both ÷ the units of the prompt, without punctuation marks."""
    asked, given = split_words(prompt), split_words(answer)
    if not asked:
        return 0.0
    match = difflib.SequenceMatcher(None, asked, given, autojunk=False).find_longest_match()
    return match.size / len(asked)


def copies_prompt(prompt: str, answer: str, expected: str | None = None) -> bool:
    """Whether an answer says the prompt again ("parrot"): at least 80 % of it in one run, and its reference does not. A prompt
    of fewer than four units is not looked at."""
    if len(split_words(prompt)) < MIN_COPIED or copied_share(prompt, answer) < COPIED_SHARE:
        return False
    return expected is None or copied_share(prompt, expected) < COPIED_SHARE


_STOP_WORDS = """
a an the and or but if so of to in on at by for from with about as into over than then that this these those it its is are was
were be been being am do does did doing done have has had having will would can could should may might must shall not no nor yes
i me my mine we us our you your yours he him his she her they them their who whom whose which what when where why how there here
all any both each few more most other some such only own same too very just also please tell give me write list make let
explain describe say help want need like know get one two up out off down again because while
请 介 绍 列 举 解 释 问 答 道 知 的 了 是 在 我 你 您 他 她 它 们 这 那 有 和 与 或 不 没 也 都 就 而 及 被 把 给 对
为 以 于 从 到 向 上 下 中 里 个 一 种 些 什 么 怎 样 吗
呢 吧 啊 请 能 会 可 以 要 想 让 用 说 写 做 如 何 哪 几 多 少 并 但 又 很 更 最 还 来 去 出 着 过 之 其 将 所 因 此 关 于
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def content_words(text: str) -> set[str]:
    """The words and characters of a text that say what it is about; of English words the first four letters, so that `vote`
    meets `votes` and `invest` meets `investment`."""
    return {_stem(word) for word in split_words(text) if word not in STOP_WORDS}


def _stem(word: str) -> str:
    if not word.isascii():
        return word
    return word[:-1][:STEM_LETTERS] if len(word) > 3 and word[-1] in "se" else word[:STEM_LETTERS]


def shared_content(of: str, within: str) -> float:
    """The share of the content words of `of` that stand in `within` too; 0 if it has none."""
    words = content_words(of)
    return len(words & content_words(within)) / len(words) if words else 0.0
