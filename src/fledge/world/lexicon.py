"""The closed vocabulary: things with classifiers and plurals, colours, numbers, names."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A thing in both languages. A mass noun or a colour has no article."""

    zh: str
    en: str
    category: str
    article: str = "a"
    plural: str = ""
    classifier: str = ""

    def named(self, lang: str) -> str:
        """The word without an article."""
        return self.zh if lang == "zh" else self.en

    def with_article(self) -> str:
        """`an apple`, `water`."""
        return f"{self.article} {self.en}".strip()


@dataclass(frozen=True)
class Category:
    """A category of things, with its members in a fixed order."""

    zh: str
    en: str
    plural: str
    article: str
    members: tuple[Noun, ...]


@dataclass(frozen=True)
class Subject:
    """A person who likes, has, sees or wants something. `third` marks the third person singular."""

    zh: str
    en: str
    third: bool


def _nouns(category: str, rows: str) -> tuple[Noun, ...]:
    """The nouns of rows `zh en article plural classifier`, where `-` stands for an empty cell."""
    cells = [[cell.replace("-", "") for cell in row.split()] for row in rows.strip().splitlines()]
    return tuple(
        Noun(zh=zh, en=en, category=category, article=article, plural=plural, classifier=classifier)
        for zh, en, article, plural, classifier in cells
    )


FRUIT = _nouns(
    "fruit",
    """
苹果 apple an apples 个
香蕉 banana a bananas 根
梨 pear a pears 个
桃子 peach a peaches 个
橙子 orange an oranges 个
西瓜 watermelon a watermelons 个
柠檬 lemon a lemons 个
葡萄 grape a grapes 颗
""",
)
ANIMAL = _nouns(
    "animal",
    """
猫 cat a cats 只
狗 dog a dogs 只
鸟 bird a birds 只
鱼 fish a fish 条
马 horse a horses 匹
牛 cow a cows 头
羊 sheep a sheep 只
兔子 rabbit a rabbits 只
""",
)
VEGETABLE = _nouns(
    "vegetable",
    """
土豆 potato a potatoes 个
番茄 tomato a tomatoes 个
白菜 cabbage a cabbages 棵
黄瓜 cucumber a cucumbers 根
洋葱 onion an onions 个
南瓜 pumpkin a pumpkins 个
萝卜 radish a radishes 根
""",
)
DRINK = _nouns(
    "drink",
    """
水 water - - -
茶 tea - - -
牛奶 milk - - -
咖啡 coffee - - -
果汁 juice - - -
可乐 cola - - -
""",
)
INSTRUMENT = _nouns(
    "instrument",
    """
钢琴 piano a pianos 架
小提琴 violin a violins 把
吉他 guitar a guitars 把
笛子 flute a flutes 支
鼓 drum a drums 面
小号 trumpet a trumpets 支
""",
)
VEHICLE = _nouns(
    "vehicle",
    """
汽车 car a cars 辆
自行车 bicycle a bicycles 辆
火车 train a trains 列
飞机 plane a planes 架
轮船 ship a ships 艘
卡车 truck a trucks 辆
""",
)
COLOUR = _nouns(
    "colour",
    """
红色 red - - -
黄色 yellow - - -
蓝色 blue - - -
绿色 green - - -
白色 white - - -
黑色 black - - -
紫色 purple - - -
粉色 pink - - -
""",
)
POLLUTANT = _nouns(
    "pollutant",
    """
NOx NOx - - -
CO CO - - -
CO2 CO2 - - -
SO2 SO2 - - -
PM2.5 PM2.5 - - -
PM10 PM10 - - -
""",
)

CATEGORIES: dict[str, Category] = {
    "fruit": Category("水果", "fruit", "fruits", "a", FRUIT),
    "animal": Category("动物", "animal", "animals", "an", ANIMAL),
    "vegetable": Category("蔬菜", "vegetable", "vegetables", "a", VEGETABLE),
    "drink": Category("饮料", "drink", "drinks", "a", DRINK),
    "instrument": Category("乐器", "instrument", "instruments", "an", INSTRUMENT),
    "vehicle": Category("交通工具", "vehicle", "vehicles", "a", VEHICLE),
    "colour": Category("颜色", "colour", "colours", "a", COLOUR),
    "pollutant": Category("污染物", "pollutant", "pollutants", "a", POLLUTANT),
}
WORDS: tuple[Noun, ...] = tuple(n for c in CATEGORIES.values() for n in c.members if n.category != "pollutant")
COUNTABLE: tuple[Noun, ...] = FRUIT + ANIMAL + VEHICLE[:4]

COUNTS = (2, 3, 4, 5)
NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九")
NUMBERS_EN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ORDINALS = {"zh": ("第一个", "第二个", "第三个", "第四个", "第五个"), "en": ("first", "second", "third", "fourth", "fifth")}

SUBJECTS = (
    Subject("我", "I", False),
    Subject("你", "You", False),
    Subject("他", "He", True),
    Subject("她", "She", True),
    Subject("我们", "We", False),
    Subject("他们", "They", False),
)
VERBS = (("喜欢", "like", "likes"), ("有", "have", "has"), ("看见", "see", "sees"), ("想要", "want", "wants"))

NAMES = {
    "zh": ("小白", "小明", "小星", "小云", "小雨", "阿花", "阿青", "阿乐", "小鱼", "小鹿", "阿宝", "小竹"),
    "en": ("Nova", "Milo", "Luna", "Robin", "Ruby", "Toby", "Ivy", "Max", "Daisy", "Leo", "Sunny", "Pip"),
}


def is_a_sentence(noun: Noun, lang: str) -> str:
    """`猫是一种动物。` / `A cat is an animal.`"""
    kind = CATEGORIES[noun.category]
    if lang == "zh":
        return f"{noun.zh}是一种{kind.zh}。"
    head = noun.with_article()
    return f"{head[0].upper()}{head[1:]} is {kind.article} {kind.en}."


def category_word(noun: Noun, lang: str) -> str:
    """The category alone: `动物。` / `animal.`"""
    kind = CATEGORIES[noun.category]
    return f"{kind.zh}。" if lang == "zh" else f"{kind.en}."


def full_stop(lang: str) -> str:
    """The full stop of a language."""
    return "。" if lang == "zh" else "."


def other_language(lang: str) -> str:
    """The other of the two languages."""
    return "en" if lang == "zh" else "zh"


LANGUAGE_NAMES = {"zh": {"zh": "中文", "en": "英文"}, "en": {"zh": "Chinese", "en": "English"}}
