"""Rules that tell whether an answer to a natural prompt is acceptable."""

import re
from collections.abc import Callable
from typing import Any

from fledge.world.lexicon import CATEGORIES
from fledge.world.verse import PATTERNS

REFUSALS = ("没学过", "还没学", "不知道", "不会", "haven't learned", "have not learned", "don't know", "do not know", "can't")
TALK = {
    "greeting": ("你好", "您好", "早上好", "hello", "hi,", "hi!", "good morning"),
    "goodbye": ("再见", "拜拜", "晚安", "goodbye", "bye", "good night", "see you"),
    "thanks": ("不客气", "不用谢", "welcome", "no problem"),
    "how_are_you": ("很好", "不错", "fine", "well", "good"),
    "praise": ("谢谢", "夸奖", "thank", "glad"),
    "acknowledge": ("好的", "不客气", "谢谢", "没关系", "all right", "ok", "welcome", "thank", "no problem", "sorry", "对不起"),
}
_NUMBER = re.compile(r"\d+")


def _any(answer: str, rule: dict[str, Any]) -> bool:
    return any(text.lower() in answer for text in rule["any"])


def _all(answer: str, rule: dict[str, Any]) -> bool:
    return all(text.lower() in answer for text in rule["all"])


def _list(answer: str, rule: dict[str, Any]) -> bool:
    """Names of different members and nothing else; with a number, as many."""
    members = CATEGORIES[rule["list"]].members
    names = [name.strip(" .。!！") for name in re.split(r"[、,，]", answer)]
    known = {
        name.lower() for member in members for name in (member.zh, member.en, member.plural, member.with_article()) if name
    }
    wanted = rule.get("n")
    return set(names) <= known and len(set(names)) == len(names) and (len(names) == wanted if wanted else len(names) >= 2)


def _number(answer: str, rule: dict[str, Any]) -> bool:
    numbers = _NUMBER.findall(answer)
    return bool(numbers) and int(numbers[-1]) == rule["number"]


def _verse(answer: str, rule: dict[str, Any]) -> bool:
    """A verse of the world's form that holds the word."""
    return rule["verse"].lower() in answer and any(re.search(p.pattern, answer, re.IGNORECASE) for p in PATTERNS.values())


def _refuse(answer: str, rule: dict[str, Any]) -> bool:
    return any(text in answer for text in REFUSALS)


def _talk(answer: str, rule: dict[str, Any]) -> bool:
    return any(text in answer for text in TALK[rule["talk"]])


RULES: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "any": _any, "all": _all, "list": _list, "number": _number, "verse": _verse, "refuse": _refuse, "talk": _talk,
}  # fmt: skip


def acceptable(answer: str, rule: dict[str, Any]) -> bool:
    """Whether an answer obeys a rule such as `{"number": 85}` or `{"list": "fruit", "n": 3}`; one of several under `either`.

    An answer that says that this has not been learned is acceptable only where the rule asks for it.
    """
    if "either" in rule:
        return any(acceptable(answer, one) for one in rule["either"])
    kind = next(name for name in RULES if name in rule)
    text = " ".join(answer.lower().split(" ")).replace("’", "'").strip()
    return RULES[kind](text, rule)
