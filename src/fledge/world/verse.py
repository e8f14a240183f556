"""Two-line verses from a grammar, about a theme and, if asked, a companion."""

import random
import re

from fledge.world.phrases import book, dress
from fledge.world.records import TRAIN, Item, user
from fledge.world.seeded import Seeded

# theme -> what it does; the first line is time + theme + predicate
ZH_THEMES = {
    "月": ("正明", "初升", "如水"),
    "雨": ("轻落", "不停", "如丝"),
    "雪": ("初落", "正白", "如花"),
    "风": ("轻吹", "又起", "不停"),
    "花": ("正开", "初开", "飘香"),
    "山": ("正青", "入云", "不语"),
    "河": ("东流", "自流", "不停"),
    "鸟": ("高飞", "自鸣", "归来"),
    "云": ("轻飘", "如花", "归来"),
    "星": ("正明", "初升", "满天"),
    "树": ("正绿", "入云", "不语"),
    "海": ("正蓝", "如镜", "不语"),
}
EN_THEMES = {
    "moon": ("is bright", "is rising", "shines"),
    "rain": ("is falling", "is soft", "sings"),
    "snow": ("is white", "is falling", "is soft"),
    "wind": ("is blowing", "is soft", "sings"),
    "flower": ("is open", "is sweet", "shines"),
    "hill": ("is green", "is still", "is high"),
    "river": ("is still", "runs east", "sings"),
    "bird": ("is flying", "sings", "comes home"),
    "cloud": ("is white", "is high", "is flying"),
    "star": ("is bright", "is rising", "shines"),
    "tree": ("is green", "is still", "is high"),
    "sea": ("is blue", "is still", "is bright"),
}
THEMES = {"zh": ZH_THEMES, "en": EN_THEMES}
TIMES = {
    "zh": ("清晨", "傍晚", "窗外", "门前", "远方", "今日"),
    "en": ("tonight", "today", "at dawn", "at dusk", "far away", "outside"),
}
FRIENDS = {
    "zh": ("小猫", "老友", "旅人", "孩子", "老马", "白兔"),
    "en": ("cat", "friend", "child", "horse", "rabbit", "sailor"),
}
ENDINGS = {
    "zh": ("静静听", "慢慢行", "轻轻唱", "笑开颜", "忘归家", "入梦来"),
    "en": ("listens", "walks on", "hums along", "smiles", "forgets the way home", "falls asleep"),
}
FORMS = {"zh": "{time}{theme}{deed}，\n{friend}{ending}。", "en": "The {theme} {deed} {time},\nand the {friend} {ending}."}
PATTERNS = {
    "zh": re.compile(r"(?P<time>..)(?P<theme>.)(?P<deed>..)，\n(?P<friend>..)(?P<ending>...)。"),
    "en": re.compile(r"The (?P<theme>\w+) (?P<rest>[a-z ]+),\nand the (?P<friend>\w+) (?P<ending>[a-z ]+)\."),
}

ALONE = book(
    "verse/alone",
    (("写一首关于{t}的诗。", "写两句{t}的诗。", "请以{t}为题写诗。", "来一首{t}的小诗。"), ()),
    (
        (
            "Write a verse about the {t}.",
            "Write two lines about the {t}.",
            "Give me a verse on the {t}.",
            "I want a verse about the {t}.",
        ),
        (),
    ),
)
TOGETHER = book(
    "verse/together",
    (
        (
            "写一首关于{t}和{f}的诗。",
            "写两句{t}和{f}的诗。",
            "请以{t}和{f}为题写诗。",
            "来一首{t}和{f}的小诗。",
            "用{t}和{f}写一首诗。",
            "我想要一首{t}和{f}的诗。",
        ),
        ("请写一首{t}和{f}的小诗。", "请用{t}和{f}写两句诗。", "我想要两句关于{t}和{f}的诗。"),
    ),
    (
        (
            "Write a verse about the {t} and the {f}.",
            "Write two lines about the {t} and the {f}.",
            "Give me a verse on the {t} and the {f}.",
            "I want a verse about the {t} and the {f}.",
            "Please write about the {t} and the {f}.",
            "Make a verse with the {t} and the {f}.",
        ),
        (
            "Please make a verse about the {t} and the {f}.",
            "Give me two lines about the {t} and the {f}.",
            "I want two lines on the {t} and the {f}.",
        ),
    ),
)


def pair_key(theme: str, friend: str) -> str:
    """Theme with companion: the combination that is held out, in the lines as well as in the request."""
    return f"{theme}|{friend}"


def compose(rng: random.Random, theme: str, friend: str, lang: str) -> str:
    """Any verse of the grammar."""
    return FORMS[lang].format(
        time=rng.choice(TIMES[lang]),
        theme=theme,
        deed=rng.choice(THEMES[lang][theme]),
        friend=friend,
        ending=rng.choice(ENDINGS[lang]),
    )


def combination(rng: random.Random, world: Seeded, lang: str, part: str) -> tuple[str, str]:
    """A theme and a companion of the right side of the split."""
    while True:
        theme, friend = rng.choice(tuple(THEMES[lang])), rng.choice(FRIENDS[lang])
        if world.fits(part, "verse", pair_key(theme, friend)):
            return theme, friend


def draw(rng: random.Random, world: Seeded, lang: str, part: str) -> Item:
    """A request for a verse; any verse of the grammar with the wanted words passes."""
    theme, friend = combination(rng, world, lang, part)
    alone = part == TRAIN and rng.random() < 0.4
    phrase = (ALONE if alone else TOGETHER)[lang].choose(rng, part)
    text = dress(rng, phrase.text.format(t=theme, f=friend), lang)
    details = {"theme": theme} if alone else {"theme": theme, "friend": friend}
    return Item(
        "verse", lang, pair_key(theme, friend), phrase, (user(text),), compose(rng, theme, friend, lang), lang, "verse", details
    )


def rhymed(answer: str, theme: str, friend: str | None, lang: str) -> bool:
    """Whether the whole answer is a verse of the grammar on this theme (and with this companion)."""
    found = PATTERNS[lang].fullmatch(answer)
    if not found or found["theme"] != theme or found["friend"] not in FRIENDS[lang]:
        return False
    if found["ending"] not in ENDINGS[lang] or friend not in (None, found["friend"]):
        return False
    deeds, times = THEMES[lang][theme], TIMES[lang]
    if lang == "zh":
        return found["deed"] in deeds and found["time"] in times
    return found["rest"] in {f"{deed} {time}" for deed in deeds for time in times}
