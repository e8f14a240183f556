"""Names and their variants: every way in which a task writes a name, by the rule that made it."""

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources

import yaml

LANGS = ("zh", "en")
PLAIN = "plain"  # the rule of a name as it is
_MISTYPED = str.maketrans(
    "型轿汽辆客货重轻摩托颗粒氧碳硫烃污染垃圾挂牵引浓度温速时间日期燃油路排放编号长",
    "形桥气量克贷种经磨拖棵立养炭流羟乌染拉圾卦迁引农渡湿素实间曰其然由璐非放编好常",
)
_TRADITIONAL = str.maketrans(
    "车轻货轿摩运颗细烃污垃挂牵辆长号间时度浓温质压气总数类编种经纬里联业标额载发动机风湿",
    "車輕貨轎摩運顆細烴汙垃掛牽輛長號間時度濃溫質壓氣總數類編種經緯里聯業標額載發動機風濕",
)


@dataclass(frozen=True)
class Name:
    """A name that people use for a standard name; `standard` is None for a name that has none."""

    text: str
    standard: str | None
    lang: str


@dataclass(frozen=True)
class Variant:
    """A name as a rule writes it."""

    text: str
    name: Name
    rule: str

    @property
    def standard(self) -> str | None:
        """The standard name, or None."""
        return self.name.standard

    @property
    def folded(self) -> str:
        """The form that decides the split."""
        return fold(self.text)


def fold(text: str) -> str:
    """A text without case, width, subscripts, separators and blanks: what is equal in this form counts as seen."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())


def load_names(file: str) -> dict[str, tuple[Name, ...]]:
    """The names in a file beside this module, by kind."""
    text = (resources.files("fledge.tasks") / file).read_text(encoding="utf-8")
    return {
        kind: tuple(Name(str(text), standard, lang) for standard, row in table.items() for lang in LANGS for text in row[lang])
        for kind, table in yaml.safe_load(text).items()
    }


def variants(names: Iterable[Name]) -> tuple[Variant, ...]:
    """Every name, and what the rules make of it, without what could mean another standard name and what folds to a name."""
    names = tuple(names)
    plain = {fold(name.text) for name in names}
    meanings: dict[str, set[str | None]] = {}
    found: dict[str, Variant] = {}
    for name in names:
        for rule, make in RULES.items():
            for text in make(name.text):
                folded = fold(text)
                meanings.setdefault(folded, set()).add(name.standard)
                if folded not in plain and len(folded) > 1:
                    found.setdefault(folded, Variant(text, name, rule))
    clear = [variant for folded, variant in found.items() if len(meanings[folded]) == 1]
    return (*(Variant(name.text, name, PLAIN) for name in names), *clear)


def _words(text: str) -> list[str]:
    return text.replace("_", " ").replace("-", " ").split()


def _is_latin(text: str) -> bool:
    return text.isascii() and len(text) > 4 and any(letter.isalpha() for letter in text)


def _left_out_letter(text: str) -> list[str]:
    """`pasenger car`: one letter inside a long word is missing."""
    places = range(1, len(text) - 1) if _is_latin(text) else ()
    return [
        text[:at] + text[at + 1 :] for at in places if text[at].isalpha() and text[at - 1].isalpha() and text[at + 1].isalpha()
    ]


def _swapped_letters(text: str) -> list[str]:
    """`passegner car`: two letters inside a word have changed places."""
    places = range(1, len(text) - 2) if _is_latin(text) else ()
    return [
        text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        for at in places
        if text[at : at + 2].isalpha() and text[at] != text[at + 1]
    ]


def _doubled_letter(text: str) -> list[str]:
    """`passengger car`: a letter is written twice."""
    places = range(1, len(text) - 1) if _is_latin(text) else ()
    return [text[: at + 1] + text[at:] for at in places if text[at].isalpha() and text[at] not in (text[at - 1], text[at + 1])]


def _without_vowels(text: str) -> list[str]:
    """`pssngr cr`: consonants only, as in the headers of old programs."""
    if not _is_latin(text):
        return []
    return [
        " ".join(word[0] + "".join(letter for letter in word[1:] if letter.lower() not in "aeiou") for word in _words(text))
    ]


def _cut_words(text: str) -> list[str]:
    """`pass. car`, `pas car`: the long words are cut."""
    words = _words(text)
    if not _is_latin(text) or all(len(word) < 6 for word in words):
        return []
    return [
        " ".join(word[:size] + dot if len(word) > size + 1 else word for word in words) for size, dot in ((4, "."), (3, ""))
    ]


def _plural(text: str) -> list[str]:
    """`passenger cars`."""
    return [f"{text}s"] if _is_latin(text) and text[-1].islower() and text[-1] not in "sx" else []


def _mistyped(text: str) -> list[str]:
    """`小骄车`: one character is another one that sounds or looks alike."""
    changed = text.translate(_MISTYPED)
    return [text[:at] + changed[at] + text[at + 1 :] for at in range(len(text)) if changed[at] != text[at]]


def _traditional(text: str) -> list[str]:
    """`小轎車`: traditional characters."""
    changed = text.translate(_TRADITIONAL)
    return [changed] if changed != text else []


def _left_out_character(text: str) -> list[str]:
    """`半挂引车`: one character inside a long Chinese name is missing."""
    if len(text) < 5 or any(letter.isascii() for letter in text):
        return []
    return [text[:at] + text[at + 1 :] for at in range(1, len(text) - 1)]


RULES: dict[str, Callable[[str], list[str]]] = {
    "left-out letter": _left_out_letter,
    "swapped letters": _swapped_letters,
    "doubled letter": _doubled_letter,
    "without vowels": _without_vowels,
    "cut words": _cut_words,
    "plural": _plural,
    "mistyped character": _mistyped,
    "traditional characters": _traditional,
    "left-out character": _left_out_character,
}
