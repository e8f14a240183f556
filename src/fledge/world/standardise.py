"""Messy vehicle and pollutant names to standard names, as JSON."""

import json
import random

from fledge.world.phrases import phrase_book, vary
from fledge.world.records import Item, user
from fledge.world.world_seed import WorldSeed

VEHICLES = {
    "轻型客车": {"zh": ("轻型客车", "小型客车", "小客车", "轿车"), "en": ("passenger car", "small car", "sedan", "minivan")},
    "大型客车": {"zh": ("大型客车", "大客车", "大巴", "长途客车"), "en": ("coach", "large coach", "tour bus", "long bus")},
    "轻型货车": {"zh": ("轻型货车", "小型货车", "小货车", "轻卡"), "en": ("light truck", "small truck", "pickup", "van")},
    "重型货车": {"zh": ("重型货车", "大货车", "重卡", "重型卡车"), "en": ("heavy truck", "big truck", "lorry", "heavy lorry")},
    "摩托车": {"zh": ("摩托车", "摩托", "机车", "两轮摩托"), "en": ("motorcycle", "motorbike", "motor scooter", "scooter")},
    "出租车": {"zh": ("出租车", "的士", "计程车", "出租汽车"), "en": ("taxi", "cab", "taxi cab", "taxi car")},
    "公交车": {"zh": ("公交车", "公交", "公共汽车", "城市公交"), "en": ("city bus", "public bus", "bus", "town bus")},
}
POLLUTANTS = {
    "NOx": {"zh": ("NOx", "no x", "氮氧化物", "氮氧"), "en": ("NOx", "no x", "nitrogen oxides", "nitrogen oxide")},
    "CO": {"zh": ("CO", "c o", "一氧化碳"), "en": ("CO", "c o", "carbon monoxide")},
    "CO2": {"zh": ("CO2", "co 2", "二氧化碳"), "en": ("CO2", "co 2", "carbon dioxide")},
    "SO2": {"zh": ("SO2", "so 2", "二氧化硫"), "en": ("SO2", "so 2", "sulfur dioxide")},
    "PM2.5": {"zh": ("PM2.5", "pm 2.5", "细颗粒物", "细颗粒"), "en": ("PM2.5", "pm 2.5", "fine particles", "fine dust")},
    "PM10": {"zh": ("PM10", "pm 10", "粗颗粒物", "粗颗粒"), "en": ("PM10", "pm 10", "coarse particles", "coarse dust")},
}
FUELS = {"zh": ("（汽油）", "（柴油）", "（电动）"), "en": (" (petrol)", " (diesel)", " (electric)")}
BOOK = phrase_book(
    "standardise",
    (
        (
            "标准化：{v}，{p}",
            "把{v}，{p}变成标准名。",
            "车型和污染物标准化：{v}，{p}",
            "请整理这两个名称：{v}，{p}",
            "{v}，{p}的标准名是什么？",
            "{v}，{p}怎么标准化？",
        ),
        ("请标准化这两个名称：{v}，{p}", "请把{v}，{p}标准化。"),
    ),
    (
        (
            "Standardise: {v}, {p}",
            "Turn {v}, {p} into standard names.",
            "Standard vehicle and pollutant: {v}, {p}",
            "Please tidy these two names: {v}, {p}",
            "What are the standard names of {v}, {p}?",
            "Tidy: {v}, {p}",
        ),
        ("Please standardise these two names: {v}, {p}", "Please turn these into standard names: {v}, {p}"),
    ),
)


def aliases(table: dict[str, dict[str, tuple[str, ...]]], lang: str) -> tuple[tuple[str, str], ...]:
    """Every (alias, standard name) of a table in one language."""
    return tuple((alias, standard) for standard, names in table.items() for alias in names[lang])


def undecorated(name: str) -> str:
    """A name without fuel, spaces and capitals: the form that decides the split."""
    for fuel in FUELS["zh"] + FUELS["en"]:
        name = name.replace(fuel, "")
    return "".join(name.lower().split())


def messy_vehicle(rng: random.Random, alias: str, lang: str) -> str:
    """The alias as people type it: with capitals, stray spaces, or the fuel in brackets."""
    name = rng.choice((alias, alias, alias.capitalize(), alias.title())) if lang == "en" else alias
    roll = rng.random()
    if roll < 0.25:
        return name + rng.choice(FUELS[lang])
    return f" {name} " if roll < 0.4 else name


def messy_pollutant(rng: random.Random, alias: str) -> str:
    """The alias with random case and stray spaces. Only formulas change case; changed words would cost too many tokens."""
    formula = len(alias) <= 6 and alias.isascii()
    name = rng.choice((alias, alias, alias.lower(), alias.upper())) if formula else alias
    return f" {name} " if rng.random() < 0.2 else name


def answer(vehicle: str, pollutant: str) -> str:
    """The standard names as JSON, in the form used for both languages."""
    return json.dumps({"vehicle": vehicle, "pollutant": pollutant}, ensure_ascii=False, separators=(",", ":"))


def combination(rng: random.Random, world: WorldSeed, lang: str, split: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """A random vehicle alias and pollutant alias of the split, each with its standard name."""
    while True:
        vehicle, pollutant = rng.choice(aliases(VEHICLES, lang)), rng.choice(aliases(POLLUTANTS, lang))
        if world.fits_split(split, "standardise", pair_key(vehicle[0], pollutant[0])):
            return vehicle, pollutant


def pair_key(vehicle: str, pollutant: str) -> str:
    """The key of two names without decoration, so that `NO X` is held out together with ` nox`."""
    return f"{undecorated(vehicle)}|{undecorated(pollutant)}"


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """Two random messy names to standardise."""
    (vehicle, v_standard), (pollutant, p_standard) = combination(rng, world, lang, split)
    phrase = BOOK[lang].choose(rng, split)
    filled = phrase.text.format(v=messy_vehicle(rng, vehicle, lang), p=messy_pollutant(rng, pollutant))
    text = vary(rng, filled, lang).strip()
    return Item(
        task="standardise",
        lang=lang,
        key=pair_key(vehicle, pollutant),
        phrase=phrase,
        messages=(user(text),),
        reference=answer(v_standard, p_standard),
        answer_lang=lang,
        rule="json",
        details={"vehicle": v_standard, "pollutant": p_standard},
    )
