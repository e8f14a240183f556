"""The task `vehicle`: a vehicle and a pollutant as people write them -> their standard names, as JSON."""

import random

from fledge.tasks.names import Variant, load_names
from fledge.tasks.rows import TaskRow, as_json, as_typed, conversation, shaped
from fledge.tasks.split import COMBINATIONS, HELD_COMBINATIONS, NAMES, SPELLINGS, TRAIN, NameSplit, split_of

NAMES_FILE = "vehicle.yaml"
SYSTEM = {
    "zh": "把车型和污染物换成标准名，用JSON回答；没有的写null。",
    "en": "Give the standard names of vehicle and pollutant as JSON; null for none.",
}
FORMS = {
    "zh": (
        "{v}，{p}",
        "{v} {p}",
        "车型：{v}\n污染物：{p}",
        "{v}/{p}",
        "请标准化：{v}、{p}",
        "{v}的{p}",
        "污染物={p}；车型={v}",
        "{p}（{v}）",
        "{v}\t{p}",
    ),
    "en": (
        "{v}, {p}",
        "{v} {p}",
        "vehicle: {v}\npollutant: {p}",
        "{v} / {p}",
        "Standardise: {v}; {p}",
        "{p} of {v}",
        "pollutant={p}; vehicle={v}",
        "{p} ({v})",
        "{v}\t{p}",
    ),
}
BEFORE = (
    "国六",
    "国VI ",
    "国Ⅴ",
    "京五 ",
    "国IV",
    "China 6 ",
    "Euro VI ",
    "Euro 5 ",
    "Euro-4 ",
    "Tier 3 ",
    "BS-VI ",
    "LEV III ",
)
AFTER = (
    "（柴油）",
    "(国五)",
    "（汽油）",
    "-电动",
    " (diesel)",
    " [petrol]",
    " CNG",
    ", Euro 6",
    "（国Ⅵ）",
    " <3.5t",
    "＞12吨",
    " E10",
    " (BEV)",
    " 2019款",
)
UNITS = (
    "(g/km)",
    "（克/公里）",
    " mg/m3",
    " g/kWh",
    "排放",
    "排放因子",
    "浓度(ppm)",
    " emission",
    " emissions",
    " EF",
    " kg/h",
    " (µg/m³)",
    "_g_per_km",
)
MISSING = ("", "-", "无", "N/A", "？", "—", "unknown", "未填")
MIXED, MISSED, DECORATED = 0.2, 0.04, 0.35


class VehicleTask:
    """Rows of the task, from a seed. `row` is a function of its generator, the split and the group."""

    name = "vehicle"

    def __init__(self, seed: int) -> None:
        self.seed = seed
        names = load_names(NAMES_FILE)
        standards = (name.standard for kind in names.values() for name in kind if name.standard)
        shown = (*standards, *SYSTEM.values(), "vehicle", "pollutant")
        self.vehicles = NameSplit(seed, "vehicle", names["vehicles"], shown)
        self.pollutants = NameSplit(seed, "pollutant", names["pollutants"], shown)

    @property
    def name_splits(self) -> tuple[NameSplit, ...]:
        """The divided names of the task."""
        return self.vehicles, self.pollutants

    def combination_split(self, vehicle: str | None, pollutant: str | None) -> str:
        """The split that a pair of standard names belongs to."""
        if vehicle is None or pollutant is None:
            return TRAIN
        return split_of(self.seed, HELD_COMBINATIONS, "pair", vehicle, pollutant)

    def row(self, rng: random.Random, split: str, group: str) -> TaskRow:
        """A row whose vehicle, pollutant or both are held out as the group says."""
        lang = rng.choice(("zh", "en"))
        vehicle, pollutant, held = self._pair(rng, split, group, lang)
        typed_v, typed_p = as_typed(rng, vehicle.text), as_typed(rng, pollutant.text)
        if rng.random() < DECORATED:
            typed_v = rng.choice(BEFORE) + typed_v if rng.random() < 0.5 else typed_v + rng.choice(AFTER)
        if rng.random() < DECORATED:
            typed_p += rng.choice(UNITS)
        answer = {"vehicle": vehicle.standard, "pollutant": pollutant.standard}
        if group == COMBINATIONS and split == TRAIN and rng.random() < MISSED:
            field = rng.choice(tuple(answer))
            answer[field] = None
            typed_v, typed_p = (rng.choice(MISSING), typed_p) if field == "vehicle" else (typed_v, rng.choice(MISSING))
        text = rng.choice(FORMS[lang]).format(v=typed_v, p=typed_p)
        messages = conversation(SYSTEM[lang], shaped(rng, text), as_json(answer))
        return TaskRow(task=self.name, lang=lang, group=group, held_out=held, messages=messages, answer=answer)

    def _pair(self, rng: random.Random, split: str, group: str, lang: str) -> tuple[Variant, Variant, tuple[str, ...]]:
        """Variants of a vehicle and a pollutant whose combination fits, and the fields whose variant is held out."""
        vehicles, pollutants = self.vehicles.by_split[split], self.pollutants.by_split[split]
        held: tuple[str, ...] = ()
        if group in (NAMES, SPELLINGS):
            held = rng.choices((("vehicle",), ("pollutant",), ("vehicle", "pollutant")), (3, 2, 1))[0]
        wanted = split if group == COMBINATIONS else TRAIN
        while True:
            other = lang if rng.random() >= MIXED else ("en" if lang == "zh" else "zh")
            vehicle = vehicles[group if "vehicle" in held else COMBINATIONS].draw(rng, lang)
            pollutant = pollutants[group if "pollutant" in held else COMBINATIONS].draw(rng, other)
            if self.combination_split(vehicle.standard, pollutant.standard) == wanted:
                return vehicle, pollutant, held
