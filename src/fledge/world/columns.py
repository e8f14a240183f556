"""Messy column names to standard field names, as JSON."""

import json
import random

from fledge.world.phrases import phrase_book, vary
from fledge.world.records import Item, user
from fledge.world.world_seed import WorldSeed

FIELDS = {
    "plate": {"zh": ("车牌", "车牌号", "车牌号码"), "en": ("plate_no", "license plate", "plate number")},
    "vehicle": {"zh": ("车型", "车辆类型", "车种"), "en": ("veh_type", "vehicle type", "type of vehicle")},
    "fuel": {"zh": ("燃料", "燃油类型", "油品"), "en": ("fuel_type", "fuel used", "kind of fuel")},
    "speed": {"zh": ("车速", "速度", "平均速度"), "en": ("avg_speed", "mean speed", "average speed")},
    "time": {"zh": ("时间", "时刻", "采样时间"), "en": ("time_of_day", "sample time", "clock time")},
    "date": {"zh": ("日期", "采样日期", "年月日"), "en": ("sample_date", "day", "calendar day")},
    "road": {"zh": ("道路", "路名", "路段"), "en": ("road_name", "street", "road section")},
    "city": {"zh": ("城市", "所在城市", "地市"), "en": ("city_name", "town", "name of city")},
    "nox": {"zh": ("NOx排放量", "NOx浓度", "氮氧化物量"), "en": ("nox_g", "NOx emission", "NOx level")},
    "co": {"zh": ("CO排放量", "CO浓度", "一氧化碳量"), "en": ("co_g", "CO emission", "CO level")},
    "pm": {"zh": ("PM排放量", "PM浓度", "颗粒物量"), "en": ("pm_g", "PM emission", "PM level")},
    "temp": {"zh": ("温度", "气温", "环境温度"), "en": ("air_temp", "temperature", "degrees")},
}
BOOK = phrase_book(
    "columns",
    (
        (
            "列名对应：{c}",
            "映射列名：{c}",
            "把这些列名换成标准字段：{c}",
            "{c}对应哪些字段？",
            "请映射这些列：{c}",
            "整理列名：{c}",
        ),
        ("请把这些列换成标准字段：{c}", "请整理这些列名：{c}"),
    ),
    (
        (
            "Map columns: {c}",
            "Map these columns to fields: {c}",
            "Rename columns: {c}",
            "Which fields are {c}?",
            "Please map {c}.",
            "Standard fields for: {c}",
        ),
        ("Please rename these columns: {c}", "Map to standard fields: {c}"),
    ),
)
WIDTHS, WIDTH_WEIGHTS = (2, 3, 4), (0.55, 0.3, 0.15)
SEPARATORS = {"zh": "、", "en": ", "}


def set_key(names: list[str]) -> str:
    """The key of a set of columns, independent of their order."""
    return "|".join(sorted(names))


def combination(rng: random.Random, world: WorldSeed, lang: str, split: str) -> dict[str, str]:
    """Column name to field, for a random set of columns of the split."""
    while True:
        fields = rng.sample(tuple(FIELDS), rng.choices(WIDTHS, WIDTH_WEIGHTS)[0])
        mapping = {rng.choice(FIELDS[name][lang]): name for name in fields}
        if world.fits_split(split, "columns", set_key(list(mapping))):
            return mapping


def answer(mapping: dict[str, str]) -> str:
    """The mapping as JSON, in the order of the question."""
    return json.dumps(mapping, ensure_ascii=False, separators=(",", ":"))


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random set of columns to map."""
    mapping = combination(rng, world, lang, split)
    phrase = BOOK[lang].choose(rng, split)
    text = vary(rng, phrase.text.format(c=SEPARATORS[lang].join(mapping)), lang)
    return Item(
        task="columns",
        lang=lang,
        key=set_key(list(mapping)),
        phrase=phrase,
        messages=(user(text),),
        reference=answer(mapping),
        answer_lang=lang,
        rule="json",
        details={"columns": list(mapping)},
    )
