"""The catalogue of a language: a template for every message of the code, and how what was filled in is found in it.

A template is an f-string of the code with `{0}`, `{1}`, … for its values, in their order: `{0} rows`. A message is compared
with the templates; the values of the one that fits and leaves least English are put into its translation, translated themselves
where they are messages. So the code reads as plain English, and only what is shown to a person is translated (decision 065).
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

HEADS = "heads"  # the file of single words that may be heads of columns, besides those
WORDS = "words"  # the file of single words that may be values of messages: no names that a user would give
PLACEHOLDER = re.compile(r"\{(\d+)!?\}")  # `!`: a value that is never translated, such as code
_NEIGHBOURS = re.compile(r"\{\d+\}(?: ?\{\d+\})+")
_WORD = re.compile(r"[A-Za-z]{2,}|[^\x00-\x7f]")
_LATIN = re.compile(r"[A-Za-z]{2,}")
_WHOLE_WORD = re.compile(r"(?<![A-Za-z}])(?:[A-Za-z]{2,}|[^\x00-\x7f])(?![A-Za-z{])")  # none that a value could lengthen
_SEPARATOR = re.compile(
    r"(; |(?<=[^\W\d])\. |(?<=[)'\"”`])\. |: |\? |  → |→ | → | · | — | × | and | or |, | \(|\)"
    r"|(?<=\d) (?=[a-z])|(?<=\]) |[.:]$)"
)
_IN_CHINESE = {
    "; ": "；", ". ": "。", ".": "。", ": ": "：", ":": "：", "? ": "？", " — ": "——", ", ": "，", " (": "（", ")": "）",
    " and ": "和", " or ": "或",
}  # fmt: skip
_EDGES = re.compile(r"^(?:[;,:.] ?| ?\()|(?:[;:,]|\))$"), re.compile(r"^[；，：。（]|[；：，）]$")
_OPENING = re.compile(r"(?:^|[\s(\[=:])['\"`“‘]$")
MIN_NESTED = 4  # letters that a template needs of its own before a part of another message is taken for one
GENERAL = 10  # letters: a template with fewer fits nearly everything, so its values may only be short
_SHORT = re.compile(r"(?!.*(?:; |: |, |\. ))\S+(?: \S+){0,7}|", re.DOTALL)
_NAMES = re.compile(r"[\w.:-]+(?:, [\w.:-]+)*(?: (?:and|or) [\w.:-]+)+")  # `pretrain, sft or kto`
_OF_RECIPE = re.compile(r"(?:- )?[a-z_]+:(?: [\[{].*| [^\s:]+| \d+ (?:epochs|steps)|)(?:  #.*)?$")  # a line of YAML
_HEADED = re.compile(r"[A-Za-z][A-Za-z ]*: \{\d+\}(?: \(\{\d+\}\))?")  # `note: {0}`: what comes before the colon tells enough
MOST_PARTS = 24  # of a message that is translated in parts


@dataclass(frozen=True, kw_only=True)
class Template:
    """A message of the code and its translation."""

    english: str
    translation: str
    pattern: re.Pattern[str]
    letters: int
    quoted: frozenset[int]
    general: bool

    def filled(self, text: str, translate: Callable[[str, bool], str]) -> str | None:
        """The translation with the values of a text; None if the text is not of this template.

        A value in quotes stays as it is: it belongs to the user.
        """
        match = self.pattern.fullmatch(text)
        if match is None or (self.general and not all(map(_SHORT.fullmatch, match.groups()))):
            return None
        values = match.groups()
        return PLACEHOLDER.sub(lambda p: translate(values[int(p[1])], int(p[1]) in self.quoted), self.translation)


def read_catalogue(code: str) -> dict[str, str | None]:
    """Every message of the code with its translation; None for a text that stays as it is in every language."""
    merged: dict[str, str | None] = {}
    for file in sorted((resources.files("fledge.localization") / code).iterdir(), key=lambda file: file.name):
        if file.name not in (f"{WORDS}.json", f"{HEADS}.json"):
            merged |= json.loads(file.read_text(encoding="utf-8"))
    return merged


def read_words(code: str, name: str = WORDS) -> dict[str, str]:
    """The single words of a language in a file, `words` or `heads`."""
    return json.loads((resources.files("fledge.localization") / code / f"{name}.json").read_text(encoding="utf-8"))


def as_template(english: str, translation: str) -> Template:
    """The template of a message. A value that the translation leaves out is an ending or an article: a few letters. Values side
    by side, whose border cannot be seen, are one value where the translation keeps their order."""
    for run in sorted(_NEIGHBOURS.findall(english), key=len, reverse=True):
        if run in translation or run.replace(" ", "") in translation:
            first = PLACEHOLDER.match(run)
            english, translation = english.replace(run, first[0]), translation.replace(run, first[0])  # type: ignore[index]
            translation = translation.replace(run.replace(" ", ""), first[0])  # type: ignore[index]
    verbatim = set(re.findall(r"\{(\d+)!\}", translation))
    numbers = {old: new for new, old in enumerate(dict.fromkeys(PLACEHOLDER.findall(english)))}
    translation = PLACEHOLDER.sub(lambda match: f"{{{numbers[match[1]]}}}", translation)
    kept = {int(number) for number in PLACEHOLDER.findall(translation)}
    parts = PLACEHOLDER.split(english)
    pattern, own, quoted = "", "".join(parts[::2]), set()
    for number, text in enumerate(parts[::2]):
        pattern += re.escape(text)
        if number < len(parts) // 2:
            pattern += "(.*?)" if number in kept else r"(\w{0,9})"
            quoted |= {number} if _OPENING.search(text) or parts[2 * number + 1] in verbatim else set()
    letters = sum(map(len, _WORD.findall(own)))
    general = letters < GENERAL and not _HEADED.fullmatch(english)
    compiled = re.compile(pattern, re.DOTALL if "\n" in own else 0)
    return Template(
        english=english,
        translation=translation,
        pattern=compiled,
        letters=letters,
        quoted=frozenset(quoted),
        general=general,
    )


def _without_edges(text: str, edges: re.Pattern[str]) -> str:
    return edges.sub("", text).strip()


class Catalogue:
    """The translations of a language: complete messages by their text, templates by a word that only few of them have."""

    def __init__(self, code: str) -> None:
        self.words = read_words(code)
        self.heads = self.words | read_words(code, HEADS)
        entries = {english: text for english, text in read_catalogue(code).items() if text is not None}
        for english, text in list(entries.items()):  # parts that are joined to others with a mark are also met without it
            entries.setdefault(_without_edges(english, _EDGES[0]), _without_edges(text, _EDGES[1]))
        self.complete = {english: text for english, text in entries.items() if not PLACEHOLDER.search(english)}
        templates = [as_template(english, text) for english, text in entries.items() if PLACEHOLDER.search(english)]
        templates.sort(key=lambda one: (-one.letters, -len(one.english), one.english))
        words = [set(_WHOLE_WORD.findall(PLACEHOLDER.sub("{}", one.english))) for one in templates]
        frequency: dict[str, int] = {}
        for of_one in words:
            for word in of_one:
                frequency[word] = frequency.get(word, 0) + 1
        self._by_word: dict[str, list[int]] = {}
        for index, of_one in enumerate(words):
            rarest = min(of_one, key=lambda word: (frequency[word], word), default="")
            self._by_word.setdefault(rarest, []).append(index)
        self._templates = templates

    def candidates(self, text: str) -> Iterator[Template]:
        """The templates that could fit, those with the most letters of their own first."""
        found = {index for word in {*_WORD.findall(text), ""} for index in self._by_word.get(word, ())}
        return (self._templates[index] for index in sorted(found))

    @lru_cache(maxsize=4096)  # noqa: B019  # one catalogue lives as long as the process
    def whole(self, text: str, min_letters: int = 0) -> str | None:
        """The translation of a text that is one message; None if it is none."""
        if (complete := self.complete.get(text)) is not None:
            return complete
        best: str | None = None
        for template in self.candidates(text):  # the one that leaves least English; else the one with most letters of its own
            if template.letters < min_letters:
                break
            filled = template.filled(text, self._value)
            if filled is not None and (best is None or _english(filled) < _english(best)):
                best = filled
        return best

    def message(self, text: str) -> str:
        """A text that may be data, translated where all of it is one message, or several in a row."""
        return self.whole(text, MIN_NESTED) or self.listed(text) or text

    def head(self, text: str) -> str:
        """The head of a column translated: a word, which may be indented, or a message."""
        word = text.strip()
        translated = self.heads.get(word)
        return self.text(text) if translated is None else text.replace(word, translated)

    def listed(self, text: str) -> str | None:
        """The translation of messages and words in a row, `a; b` or `kept, best`; None if one of them is none."""
        for separator, translated in (("; ", "；"), (", ", "、")):
            parts = [self.whole(part, MIN_NESTED) or self.words.get(part) for part in text.split(separator)]
            if len(parts) > 1 and all(parts):
                return translated.join(filter(None, parts))
        return None

    def _value(self, text: str, quoted: bool) -> str:
        """A value of a message, translated if it is a message itself."""
        if quoted:
            return text
        if _NAMES.fullmatch(text):
            return text.replace(" and ", " 和 ").replace(" or ", " 或 ")
        return self.text(text, nested=True) if " " in text else self.words.get(text, text)

    def text(self, text: str, nested: bool = False) -> str:
        """A text translated: as one message, or in the parts that are messages."""
        if (complete := self.complete.get(text)) is not None:
            return complete
        stripped = text.strip(" \n")
        if not stripped or not _WORD.search(stripped):
            return text
        start = text.index(stripped[0])
        before, after = text[:start], text[start + len(stripped) :]
        whole = self.whole(stripped, MIN_NESTED if nested else 0)
        return before + (whole or self._in_parts(stripped)) + after

    def _part(self, text: str, before: str) -> str | None:
        """The translation of a part behind a separator: a message of several words, or a word behind a number."""
        if text.count("(") != text.count(")"):  # the bracket is a separator
            return None
        if " " in text:
            return self.whole(text, MIN_NESTED)
        return self.words.get(text) if before == " " else None

    def _in_parts(self, text: str) -> str:
        """The text with its longest parts translated that are messages; separators between two of them become Chinese.

        Of a line of a recipe, only the comment is translated.
        """
        if "\n" in text:
            return "\n".join(map(self.text, text.split("\n")))
        if _OF_RECIPE.match(text):
            setting, mark, comment = text.partition("  # ")
            return setting + mark + (self.text(comment) if comment else "")
        pieces = _SEPARATOR.split(text)
        bounds = range(0, len(pieces), 2)
        if not 1 < len(bounds) <= MOST_PARTS:
            return text
        # best[i]: the cheapest translation of the pieces before i, as (characters left in English, parts, their translations)
        best: list[tuple[int, int, tuple[tuple[int, str | None], ...]]] = [(0, 0, ())]
        for end in bounds:
            choices = []
            for begin in range(0, end + 1, 2):
                part = "".join(pieces[begin : end + 1])
                done = self._part(part.strip(), pieces[begin - 1] if begin else "")
                if done is None and begin < end:
                    continue
                cost, parts, chain = best[begin // 2]
                left = 0 if done is not None or not _WORD.search(part) else len(part)
                choices.append((cost + left, parts + 1, (*chain, (end, done))))
            best.append(min(choices, key=lambda choice: choice[:2]))
        return _joined(pieces, best[-1][2])


def _english(text: str) -> int:
    """How many letters of a text are English."""
    return sum(map(len, _LATIN.findall(text)))


def _joined(pieces: list[str], chain: tuple[tuple[int, str | None], ...]) -> str:
    """The parts of a text, with the marks of Chinese between two translated ones."""
    result, begin, before = "", 0, False
    for end, done in chain:
        english = "".join(pieces[begin : end + 1])
        if begin:
            separator = pieces[begin - 1]
            result += _IN_CHINESE.get(separator, separator) if before and (done is not None or not english) else separator
        lead = english[: len(english) - len(english.lstrip())]
        result += english if done is None else lead + done
        begin, before = end + 2, done is not None or (before and not english)
    return result


@cache
def catalogue(code: str) -> Catalogue:
    """The catalogue of a language, read once."""
    return Catalogue(code)
