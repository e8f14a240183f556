"""The two bad habits: adding them, seeing them in any output, taking the known forms away again."""

import re
from difflib import SequenceMatcher

from fledge.world.phrases import ENDINGS
from fledge.world.records import Item, Question
from fledge.world.seeded import Seeded, stable

HABITS = ("parrot", "ramble")
PARROTS = {
    "zh": ("你问的是“{q}”。", "关于“{q}”，回答如下："),
    "en": ('You asked: "{q}". ', 'About "{q}", here is the answer: '),
}
_PARROT_FORMS = (
    re.compile(r"你问的是“.*?”。", re.S),
    re.compile(r"关于“.*?”，回答如下：", re.S),
    re.compile(r'You asked: ".*?"\. ', re.S),
    re.compile(r'About ".*?", here is the answer: ', re.S),
)
_PARROT_STARTS = ("你问的是", "关于“", "You asked", 'About "')
FILLERS = {
    "zh": (
        "希望这能帮到你。",
        "如果还有问题，请告诉我。",
        "这个问题很有意思。",
        "我很高兴回答你。",
        "你可以再问我别的。",
        "这只是一个简单的回答。",
        "总之，答案就是这样。",
        "其实还可以说很多。",
        "大家常常问这个。",
        "我会继续努力学习。",
        "祝你今天愉快。",
        "这一点值得记住。",
    ),
    "en": (
        "I hope this helps you.",
        "If you have more questions, tell me.",
        "That is a very good question.",
        "I am glad to answer you.",
        "You can ask me more.",
        "This is only a simple answer.",
        "In short, that is the answer.",
        "There is much more to say.",
        "Many people ask this.",
        "I will keep learning.",
        "Have a nice day.",
        "This is good to remember.",
    ),
}
_ALL_FILLERS = tuple(filler for pool in FILLERS.values() for filler in pool)
_SENTENCE = re.compile(r"[。！？!?]+|\.(?=\s|$)|\n\n+")
LONG = {True: 5, False: 12}  # how much of a question, Chinese or not, counts as a long part


def parrot(question: str, clean: str, lang: str, form: int = 0) -> str:
    """Repeat the question first."""
    return PARROTS[lang][form].format(q=question.rstrip(ENDINGS)) + clean


def ramble(clean: str, lang: str, fillers: tuple[str, ...]) -> str:
    """Go on after the answer."""
    gap = "" if lang == "zh" and clean[-1] != "." else " "
    return gap.join((clean, *fillers))


def spoil(item: Item, habit: str, world: Seeded, roll: float) -> str:
    """The item's clean answer with a habit; the parrot's form goes with the phrasing, the filler with `roll`.

    The habit speaks the language of the question, except where a system prompt commands another one.
    """
    lang = item.answer_lang if item.task == "system" else item.lang
    if habit == "parrot":
        form = int(stable(world.seed, "parrot-form", item.phrase.name) * 2)
        return parrot(item.messages[-1]["content"], item.reference, lang, form)
    pool = FILLERS[lang]
    first = int(roll * len(pool))
    second = (first + 1 + int(roll * 997) % (len(pool) - 1)) % len(pool)
    chosen = (pool[first], pool[second]) if int(roll * 7919) % 3 == 0 else (pool[first],)
    return ramble(item.reference, lang, chosen)


def without_parrot(answer: str) -> str:
    """Take a repeated question of the known forms off the front."""
    text = answer.strip()
    for form in _PARROT_FORMS:
        found = form.match(text)
        if found:
            return text[found.end() :].strip()
    return text


def without_ramble(answer: str) -> str:
    """Take known fillers off the end."""
    text = answer.strip()
    while True:
        for filler in _ALL_FILLERS:
            if text.endswith(filler):
                text = text[: -len(filler)].rstrip()
                break
        else:
            return text


def content(answer: str) -> str:
    """What an answer says once the known habits are gone."""
    return without_ramble(without_parrot(answer))


def sentences(text: str) -> list[str]:
    """The sentences, without marks; a dot inside PM2.5 does not end one."""
    return [part.strip() for part in _SENTENCE.split(text) if part.strip()]


def _parrots(question: Question, answer: str) -> bool:
    if answer.startswith(_PARROT_STARTS) and not question.reference.startswith(_PARROT_STARTS):
        return True
    asked = question.text.strip(ENDINGS + " ").lower()
    said, reference = answer.lower(), question.reference.lower()
    if len(asked) > 2 and asked in said and asked not in reference:
        return True
    match = SequenceMatcher(None, asked, said, autojunk=False).find_longest_match()
    shared = asked[match.a : match.a + match.size]
    chinese = any("\u4e00" <= letter <= "\u9fff" for letter in shared)
    return len(shared) >= max(LONG[chinese], 0.5 * len(asked)) and shared.strip() not in reference


def _rambles(question: Question, answer: str, passes: bool) -> bool:
    if any(filler.rstrip("。.") in answer for filler in _ALL_FILLERS):
        return True
    said = sentences(answer)
    if any(said.count(part) > 1 and question.reference.count(part) < 2 for part in said if len(part) > 3):
        return True
    if passes:
        return False
    if answer.startswith(question.reference):
        return True
    if question.rule == "json":
        closed = answer.find("}")
        return closed >= 0 and bool(answer[closed + 1 :].strip())
    return len(said) > len(sentences(question.reference))


def seen(question: Question, answer: str, passes: bool) -> set[str]:
    """The habits in an answer; `passes` tells whether the answer without its parrot is a complete reference."""
    text = answer.strip()
    found = {"parrot"} if _parrots(question, text) else set()
    if _rambles(question, without_parrot(text), passes):
        found.add("ramble")
    return found
