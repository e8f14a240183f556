"""The two bad habits: adding them to answers, finding them in any output, and removing their known forms."""

import re
from difflib import SequenceMatcher

from fledge.world.phrases import ENDINGS
from fledge.world.records import Item, Question
from fledge.world.world_seed import WorldSeed, stable_fraction

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
LONG = {True: 5, False: 12}  # characters of a long passage of a question: Chinese (True) or not (False)


def add_parrot(question: str, clean: str, lang: str, form: int = 0) -> str:
    """The answer with the question repeated before it."""
    return PARROTS[lang][form].format(q=question.rstrip(ENDINGS)) + clean


def add_ramble(clean: str, lang: str, fillers: tuple[str, ...]) -> str:
    """The answer with needless sentences after it."""
    gap = "" if lang == "zh" and clean[-1] != "." else " "
    return gap.join((clean, *fillers))


def add_habit(item: Item, habit: str, world: WorldSeed, roll: float) -> str:
    """The item's clean answer with a habit. The phrasing decides the form of the parrot, `roll` in [0, 1) the fillers.

    The habit uses the language of the question, except where a system prompt demands another language.
    """
    lang = item.answer_lang if item.task == "system" else item.lang
    if habit == "parrot":
        form = int(stable_fraction(world.seed, "parrot-form", item.phrase.name) * 2)
        return add_parrot(item.messages[-1]["content"], item.reference, lang, form)
    pool = FILLERS[lang]
    first = int(roll * len(pool))
    second = (first + 1 + int(roll * 997) % (len(pool) - 1)) % len(pool)
    chosen = (pool[first], pool[second]) if int(roll * 7919) % 3 == 0 else (pool[first],)
    return add_ramble(item.reference, lang, chosen)


def without_parrot(answer: str) -> str:
    """The answer without a repeated question of a known form at its beginning."""
    text = answer.strip()
    for form in _PARROT_FORMS:
        match = form.match(text)
        if match:
            return text[match.end() :].strip()
    return text


def without_ramble(answer: str) -> str:
    """The answer without known fillers at its end."""
    text = answer.strip()
    while True:
        for filler in _ALL_FILLERS:
            if text.endswith(filler):
                text = text[: -len(filler)].rstrip()
                break
        else:
            return text


def without_habits(answer: str) -> str:
    """The answer without the known forms of both habits."""
    return without_ramble(without_parrot(answer))


def sentences(text: str) -> list[str]:
    """The sentences without their marks. A dot inside of a word such as PM2.5 does not end a sentence."""
    return [sentence.strip() for sentence in _SENTENCE.split(text) if sentence.strip()]


def _parrots(question: Question, answer: str) -> bool:
    if answer.startswith(_PARROT_STARTS) and not question.reference.startswith(_PARROT_STARTS):
        return True
    question_text = question.text.strip(ENDINGS + " ").lower()
    answer_text, reference = answer.lower(), question.reference.lower()
    if len(question_text) > 2 and question_text in answer_text and question_text not in reference:
        return True
    match = SequenceMatcher(None, question_text, answer_text, autojunk=False).find_longest_match()
    shared = question_text[match.a : match.a + match.size]
    chinese = any("\u4e00" <= letter <= "\u9fff" for letter in shared)
    return len(shared) >= max(LONG[chinese], 0.5 * len(question_text)) and shared.strip() not in reference


def _rambles(question: Question, answer: str, is_complete: bool) -> bool:
    if any(filler.rstrip("。.") in answer for filler in _ALL_FILLERS):
        return True
    answer_sentences = sentences(answer)
    if any(
        answer_sentences.count(sentence) > 1 and question.reference.count(sentence) < 2
        for sentence in answer_sentences
        if len(sentence) > 3
    ):
        return True
    if is_complete:
        return False
    if answer.startswith(question.reference):
        return True
    if question.rule == "json":
        closed = answer.find("}")
        return closed >= 0 and bool(answer[closed + 1 :].strip())
    return len(answer_sentences) > len(sentences(question.reference))


def find_habits(question: Question, answer: str, is_complete: bool) -> set[str]:
    """The habits in an answer. `is_complete` tells whether the answer without its parrot is a correct answer."""
    text = answer.strip()
    habits = {"parrot"} if _parrots(question, text) else set()
    if _rambles(question, without_parrot(text), is_complete):
        habits.add("ramble")
    return habits
