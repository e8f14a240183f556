"""Two-line verses from a grammar, about a theme and optionally a companion."""

import random
import re

from fledge.world.phrases import phrase_book, vary
from fledge.world.records import TRAIN, Item, user
from fledge.world.world_seed import WorldSeed

# theme -> its predicates; the first line is time + theme + predicate
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
    "春": ("正暖", "又来", "满园"),
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
    "spring": ("is warm", "comes home", "is green"),
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

ALONE = phrase_book(
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
TOGETHER = phrase_book(
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
    """The key of theme and companion, which is held out both in verses and in requests."""
    return f"{theme}|{friend}"


def compose(rng: random.Random, theme: str, friend: str, lang: str) -> str:
    """A random verse of the grammar."""
    return FORMS[lang].format(
        time=rng.choice(TIMES[lang]),
        theme=theme,
        deed=rng.choice(THEMES[lang][theme]),
        friend=friend,
        ending=rng.choice(ENDINGS[lang]),
    )


def combination(rng: random.Random, world: WorldSeed, lang: str, split: str) -> tuple[str, str]:
    """A random theme and companion of the split."""
    while True:
        theme, friend = rng.choice(tuple(THEMES[lang])), rng.choice(FRIENDS[lang])
        if world.fits_split(split, "verse", pair_key(theme, friend)):
            return theme, friend


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random request for a verse. Its rule accepts any verse of the grammar with the requested words."""
    theme, friend = combination(rng, world, lang, split)
    alone = split == TRAIN and rng.random() < 0.4
    phrase = (ALONE if alone else TOGETHER)[lang].choose(rng, split)
    text = vary(rng, phrase.text.format(t=theme, f=friend), lang)
    details = {"theme": theme} if alone else {"theme": theme, "friend": friend}
    return Item(
        task="verse",
        lang=lang,
        key=pair_key(theme, friend),
        phrase=phrase,
        messages=(user(text),),
        reference=compose(rng, theme, friend, lang),
        answer_lang=lang,
        rule="verse",
        details=details,
    )


def is_verse(answer: str, theme: str, friend: str | None, lang: str) -> bool:
    """Whether the whole answer is a verse of the grammar about this theme (and with this companion)."""
    match = PATTERNS[lang].fullmatch(answer)
    if not match or match["theme"] != theme or match["friend"] not in FRIENDS[lang]:
        return False
    if match["ending"] not in ENDINGS[lang] or friend not in (None, match["friend"]):
        return False
    deeds, times = THEMES[lang][theme], TIMES[lang]
    if lang == "zh":
        return match["deed"] in deeds and match["time"] in times
    return match["rest"] in {f"{deed} {time}" for deed in deeds for time in times}
