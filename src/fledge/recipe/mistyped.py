"""What was probably meant by text of a recipe that cannot be read: `３`, `1,5e-4`, `4 rows`, `否`, `【a.jsonl】`."""

import re
import unicodedata
from typing import Any

_MARKS = str.maketrans("“”„‘’「」『』【】〔〕、。−–—", '"""\'\'""""[][],.---')
PUNCTUATION = re.compile(r"[“”„‘’「」『』【】〔〕、。：，；（）［］｛｝＝＃－]")  # what an input method writes instead of ASCII
_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
_COMMA = re.compile(r"([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)")
_POWER = re.compile(rf"({_NUMBER})\s*[x×*·]\s*10\s*(?:\^|\*\*)?\s*\(?([+-]?\d+)\)?")
_WITH_UNIT = re.compile(rf"({_NUMBER})\s*([^\W\d_][^\W\d]*|%)")
_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "%": 1e-2, "万": 1e4, "千": 1e3}
_BOOLEANS = {
    **dict.fromkeys(("是", "开", "真", "对", "启用", "enable", "enabled", "y"), "true"),
    **dict.fromkeys(("否", "关", "假", "不", "禁用", "disable", "disabled", "n"), "false"),
}
_DURATION_WORDS = (("轮次", "epochs"), ("轮", "epochs"), ("步", "steps"), ("个", " "), ("词元", "tokens"))


def ascii_form(text: str) -> str:
    """The text with ASCII digits, letters and punctuation in place of full-width ones."""
    return unicodedata.normalize("NFKC", text).translate(_MARKS)


def bare(text: str) -> str:
    """The text in ASCII form without quotes and brackets around it: `“a.jsonl”` and `【a.jsonl】` are `a.jsonl`."""
    return ascii_form(text).strip().strip("\"'[]").strip()


def full_width_marks(line: str) -> str | None:
    """A hint for a line with full-width punctuation, which names the first mark; None without one."""
    found = PUNCTUATION.search(line)
    if found is None:
        return None
    way = 'ordinary quotes: "…"' if found[0] in "“”„‘’" else f"'{ascii_form(found[0])}'"
    return f"the full-width '{found[0]}' stands there: write {way}"


def meant_duration(text: str) -> str:
    """The text of a duration with ASCII digits and English units: `３轮` is `3 epochs`."""
    text = ascii_form(text)
    for word, unit in _DURATION_WORDS:
        text = text.replace(word, f" {unit}")
    return " ".join(text.split())


def meant_number(text: str) -> str | None:
    """The number that a text is meant to be, as YAML has it; None if no number can be seen in it."""
    text = bare(text)
    if _THOUSANDS.fullmatch(text):
        return text.replace(",", "")
    if found := _COMMA.fullmatch(text):
        return f"{found[1]}.{found[2]}"
    if found := _POWER.fullmatch(text):
        return f"{found[1]}e{int(found[2])}"
    if found := _WITH_UNIT.fullmatch(text):
        value = float(found[1].replace("_", "")) * _SCALES.get(found[2].lower(), 1)
        return f"{value:.10g}"
    return text if re.fullmatch(_NUMBER, text) else None


def meant(value: Any, error: str) -> str | None:
    """What to write instead of a value, for the type of pydantic's error; None if that cannot be told."""
    if isinstance(value, dict):
        unit, amount = next(iter(value.items()), ("", None))
        numbers = error == "string_type" and len(value) == 1 and isinstance(amount, int | float)
        return f"'{amount} {unit}'" if numbers and unit in ("epochs", "steps", "tokens") else None
    if not isinstance(value, str):
        return None
    if error == "bool_parsing":
        return _BOOLEANS.get(bare(value).lower())
    if error.startswith(("int_", "float_")) or error == "literal_error":
        number = meant_number(value)
        whole = error.startswith("int_") and number is not None and not float(number).is_integer()
        return None if whole else number
    return None
