"""Detection of a text's language from its script and its most frequent words; fast enough for every row."""

import re
from functools import cache

import numpy as np

SAMPLE_CHARACTERS = 2000  # characters used for the script
WORD_SAMPLE_CHARACTERS = 1000  # characters used for the words

LANGUAGES = (
    "other", "code", "latin", "en", "zh", "ja", "ko", "cyrillic", "ru", "arabic", "ar", "el", "he", "hi", "bn", "ta", "te",
    "th", "hy", "ka", "am", "my", "km", "lo", "bo", "mn",
)  # fmt: skip
"""The possible results of `detect_language`; the index in this tuple is a stable small code.

"latin", "cyrillic" and "arabic" are languages in that script other than English, Russian and Arabic; "other" stands for texts
without letters or in an unknown script."""

# Scripts by code point (Unicode Blocks.txt); other code points do not count as letters.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2AF), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "han": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "arabic": ((0x620, 0x65F), (0x66E, 0x6D3), (0x6FA, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    "el": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "he": ((0x591, 0x5F4), (0xFB1D, 0xFB4F)),
    "hi": ((0x900, 0x97F),),
    "bn": ((0x980, 0x9FF),),
    "ta": ((0xB80, 0xBFF),),
    "te": ((0xC00, 0xC7F),),
    "th": ((0xE00, 0xE7F),),
    "hy": ((0x531, 0x58F),),
    "ka": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF)),
    "am": ((0x1200, 0x139F),),
    "my": ((0x1000, 0x109F),),
    "km": ((0x1780, 0x17FF),),
    "lo": ((0xE80, 0xEFF),),
    "bo": ((0xF00, 0xFFF),),
    "mn": ((0x1800, 0x18AF),),
}
# One character of these scripts counts as several letters, because it carries more information.
LETTERS_PER_CHARACTER = {"han": 3, "kana": 2, "hangul": 2}

_ENGLISH = """
the of and a to in is that it for was with are as his they be at one have this from or had by but not what all were when your
can said there an each which she do how their if will other about out many then them these so some her would make has more could
my than been who its now did may those you he we i me him our us does am no where why while after before because should into
just most over such only also very any don't doesn't isn't wasn't aren't weren't it's i'm you're can't there's that's let's
"""
_OTHER_LATIN = """
der das und ist nicht ein eine den dem mit sich auf für von zu auch wir ich sie wie aber oder wird sind bei es zum zur im vom
le la les des du est et un une dans que qui pour pas sur au avec ce il je nous vous sont plus par mais ou à aux ne
el los las y en del se por con para su al lo como más pero sus una está muy o os um uma não com da em dos das na ao às
di che il della sono gli nel alla anche più è ho hai non questo sulla
het een van niet zijn voor op te dat maar ook aan och att det som på är av inte jag till og ikke af ei og en et
nie jest się na że jak w z je se že v ve bir bu için ile yang ini itu dengan untuk tidak pada adalah
và của là không có được cho các một những
"""
ENGLISH, OTHER_LATIN = frozenset(_ENGLISH.split()), frozenset(_OTHER_LATIN.split())
_KEYWORDS = frozenset(  # of programs, and English function words too
    {
        "and",
        "as",
        "by",
        "do",
        "for",
        "from",
        "if",
        "in",
        "into",
        "is",
        "not",
        "on",
        "or",
        "then",
        "this",
        "where",
        "while",
        "with",
    }
)
_BLOCK_IN_A_LINE = re.compile(r"(?:if|for|while|with)\b.*[:)] ?\S.*[(=]")
_NOT_RUSSIAN = re.compile("[іїєґўђѓљњћќџѕјқңғүұөһәӣӯҳҷ]", re.IGNORECASE)
_NOT_ARABIC = re.compile("[پچژگکیٹڈڑےںھۆێە]")
_CODE_LINE = re.compile(
    r"[\])}]+[,;)]*$|@\w+$|#(?:include|define|if|endif|!)|//|(?:from [\w.]+ )?import [\w.*]+|(?:async )?def \w+\(|class \w+[(:]"
    r"|return\b|(?:if|for|while|elif|with|except)\b.*:$|(?:else|try|finally):|(?:const|let|var) \w+ ?="
    r"|[\w.\[\]'\"]+ [+*|-]?= ?\S|[\w.]+\(.*\)[,;]?$|</?\w+[^>]*>$|(?i:select .* from|insert into|create table) "
)


@cache
def _scripts() -> np.ndarray:
    """For each code point 0, or 1 + the index of its script in SCRIPTS. uint8 [0x110000]."""
    table = np.zeros(0x110000, np.uint8)
    for number, ranges in enumerate(SCRIPTS.values(), 1):
        for first, last in ranges:
            table[first : last + 1] = number
    return table


def _letters_by_script(sample: str) -> dict[str, int]:
    """The number of letters of each script, weighted by LETTERS_PER_CHARACTER."""
    codes = np.frombuffer(sample.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(_scripts()[codes], minlength=len(SCRIPTS) + 1)[1:].tolist()
    return {name: n * LETTERS_PER_CHARACTER.get(name, 1) for name, n in zip(SCRIPTS, counts, strict=True) if n}


def _is_code(sample: str) -> bool:
    """Whether at least half of the non-blank lines are lines of a program."""
    marks = len(sample) - len(sample.encode("ascii", "replace").translate(None, b"(){}[]=;_#<"))
    if marks * 40 < len(sample):
        return False
    lines = [line.strip() for line in sample.split("\n") if line and not line.isspace()]
    code_lines = sum(1 for line in lines if line[-1] in ";{}" or _CODE_LINE.match(line))
    return len(lines) >= 2 and 2 * code_lines >= len(lines)


def is_short_code(text: str) -> bool:
    """Whether each non-blank line of a short text is a line of a program, one line too, without words of English prose outside
    its quotes."""
    lines = [line.strip() for line in text[:SAMPLE_CHARACTERS].split("\n") if line.strip()]
    words = re.findall(r"[a-z']{2,}", re.sub(r"\"[^\"\n]*\"|'[^'\n]*'", "", text[:SAMPLE_CHARACTERS].lower()))
    if not lines or (ENGLISH - _KEYWORDS).intersection(words):
        return False

    def is_code(line: str) -> bool:
        return line[-1] in ";{}" or bool(_CODE_LINE.match(line) or _BLOCK_IN_A_LINE.match(line))

    return all(re.search(r"[(){}\[\]=;<>]", line) and is_code(line) for line in lines)


def _latin_language(sample: str) -> str:
    """Code by its lines; English if its function words prevail, or for a few ASCII words without other evidence; else latin."""
    if _is_code(sample):
        return "code"
    words = sample[:WORD_SAMPLE_CHARACTERS].lower().split()
    english, other = len(ENGLISH.intersection(words)), len(OTHER_LATIN.intersection(words))
    if english > other and (english * 20 >= len(words) or english * 20 >= sum(map(str.isalpha, words))):
        return "en"
    return "en" if sample.isascii() and not other and len(words) <= 12 else "latin"


def detect_language(text: str) -> str:
    """The likely language of a text, from its first 2,000 characters: one of LANGUAGES.

    Chinese is distinguished from Japanese by the absence of kana, English from other languages in Latin script by its function
    words.
    """
    sample = text[:SAMPLE_CHARACTERS]
    letters = {"latin": 1} if sample.isascii() and any(map(str.isalpha, sample)) else _letters_by_script(sample)
    if not letters:
        return "other"
    if "han" in letters and "kana" in letters:
        kana = letters.pop("kana")
        japanese = kana * 10 >= letters["han"]
        letters["kana" if japanese else "han"] = kana + letters.pop("han")
    script = max(letters, key=lambda name: letters[name])
    return _LANGUAGE_OF_SCRIPT.get(script, lambda _: script)(sample)


_LANGUAGE_OF_SCRIPT = {
    "latin": _latin_language,
    "han": lambda _: "zh",
    "kana": lambda _: "ja",
    "hangul": lambda _: "ko",
    "cyrillic": lambda sample: "cyrillic" if _NOT_RUSSIAN.search(sample) else "ru",
    "arabic": lambda sample: "arabic" if _NOT_ARABIC.search(sample) else "ar",
}
