"""The task `columns`: the header row of a table of traffic and emission data -> a standard name for each column, as JSON."""

import json
import random
from collections.abc import Callable, Sequence

from fledge.tasks.names import Variant, load_names
from fledge.tasks.rows import TaskRow, as_json, as_typed, conversation
from fledge.tasks.split import COMBINATIONS, HELD_COMBINATIONS, NameSplit, split_of

NAMES_FILE = "columns.yaml"
SYSTEM = {
    "zh": "把表头的每一列对应到标准列名，用JSON回答；没有的写null，空列不写。",
    "en": "Map each column of the header to its standard name as JSON; null for none, no entry for empty ones.",
}
ASKS = {
    "zh": ("{c}", "表头：{c}", "请映射列名：{c}", "表格的第一行：\n{c}", "列名如下\n{c}"),
    "en": ("{c}", "Header: {c}", "Map these columns: {c}", "First line of the table:\n{c}", "columns\n{c}"),
}
UNITS = {
    "speed": ("(km/h)", "（公里/小时）", "_kmh", " [m/s]", "km/h"),
    "mileage": ("(km)", "（万公里）", "_km"),
    "gross_weight": ("(kg)", "（吨）", "_t"),
    "displacement": ("(L)", "（升）", "_ml", " [cc]"),
    "acceleration": ("(m/s²)", "_mps2", "（米/秒²）"),
    "road_grade": ("(%)", "（％）", " [deg]"),
    "road_length": ("(m)", "（公里）", "_km"),
    "traffic_volume": ("(veh/h)", "（辆/小时）", "_pcu"),
    "temperature": ("(℃)", "_degC", "（°C）"),
    "humidity": ("(%)", "（％）", "_pct"),
    "rpm": ("(r/min)", "（转/分）"),
    "fuel_rate": ("(L/100km)", "（升/百公里）", "_g_s"),
}
POLLUTANTS = ("co", "co2", "hc", "nox", "pm25")
POLLUTANT_UNITS = ("(g/km)", "（克/公里）", "_gkm", " [mg/m3]", "(g/s)", "(ppm)", "（µg/m³）")
TITLES = {"zh": ("排放测试结果", "排放", "污染物", "检测数据"), "en": ("Emissions", "test results", "tailpipe", "measured")}
LEVELS = ("/", "_", "-", " > ", ".", "：")
MIN_COLUMNS, MAX_COLUMNS = 3, 9
UNIT, MERGED, EMPTY, UNNAMED, MIXED, NAMELESS, HELD = 0.3, 0.25, 0.12, 0.3, 0.15, 0.2, 0.5


def _joined(mark: str) -> Callable[[Sequence[str]], str]:
    return mark.join


LAYOUTS: tuple[Callable[[Sequence[str]], str], ...] = (
    *map(_joined, (" | ", ",", "，", "\t", "、", ";", "； ", ", ")),
    lambda cells: "| " + " | ".join(cells) + " |",
    lambda cells: json.dumps(list(cells), ensure_ascii=False),
    lambda cells: ",".join(f'"{cell}"' for cell in cells),
    lambda cells: "\n".join(f"{number}. {cell}" for number, cell in enumerate(cells, 1)),
)


class ColumnsTask:
    """Rows of the task, from a seed. `row` is a function of its generator, the split and the group."""

    name = "columns"

    def __init__(self, seed: int) -> None:
        self.seed = seed
        names = load_names(NAMES_FILE)["columns"]
        titles = (title for texts in TITLES.values() for title in texts)
        shown = (*(name.standard for name in names if name.standard), *SYSTEM.values(), *titles)
        self.columns = NameSplit(seed, "column", names, shown)

    @property
    def name_splits(self) -> tuple[NameSplit, ...]:
        """The divided names of the task."""
        return (self.columns,)

    def combination_split(self, *standards: str) -> str:
        """The split that a set of standard columns belongs to."""
        return split_of(self.seed, HELD_COMBINATIONS, "set", *sorted(standards))

    def row(self, rng: random.Random, split: str, group: str) -> TaskRow:
        """A header; in held-out groups about half of its columns have held-out names, at least one."""
        lang = rng.choice(("zh", "en"))
        cells: list[str] = []
        answer: dict[str, str | None] = {}
        held: list[str] = []
        for variant, is_held in self._columns(rng, split, group, lang):
            cell = self._cell(rng, variant, lang)
            if rng.random() < EMPTY:
                self._add_empty(rng, cells, answer)
            if (key := cell.strip()) in answer:
                continue
            cells.append(cell)
            answer[key] = variant.standard
            held += [key] * is_held
        text = rng.choice(ASKS[lang]).format(c=rng.choice(LAYOUTS)(cells))
        messages = conversation(SYSTEM[lang], text, as_json(answer))
        return TaskRow(task=self.name, lang=lang, group=group, held_out=tuple(held), messages=messages, answer=answer)

    def _columns(self, rng: random.Random, split: str, group: str, lang: str) -> list[tuple[Variant, bool]]:
        """The columns of a header, each with whether its name is held out; no standard name twice."""
        pools = self.columns.by_split[split]
        count = rng.randint(MIN_COLUMNS, MAX_COLUMNS)
        while True:
            chosen: dict[str | int, tuple[Variant, bool]] = {}
            for place in range(count):
                is_held = group != COMBINATIONS and (place == 0 or rng.random() < HELD)
                spoken = lang if rng.random() >= MIXED else ("en" if lang == "zh" else "zh")
                pool, nameless = (pools[group], 0.0) if is_held else (pools[COMBINATIONS], NAMELESS)
                variant = pool.draw(rng, spoken, nameless)
                chosen.setdefault(variant.standard or place, (variant, is_held))
            standards = [variant.standard for variant, _ in chosen.values() if variant.standard]
            fits = group != COMBINATIONS or self.combination_split(*standards) == split
            if fits and len(standards) > 1:
                columns = list(chosen.values())
                rng.shuffle(columns)
                return columns

    def _cell(self, rng: random.Random, variant: Variant, lang: str) -> str:
        """The header of a column: typed, with a unit, or below a merged title."""
        text, standard = as_typed(rng, variant.text), variant.standard or ""
        units = POLLUTANT_UNITS if standard in POLLUTANTS else UNITS.get(standard, ())
        if units and rng.random() < UNIT:
            text += rng.choice(units)
        if standard in POLLUTANTS and rng.random() < MERGED:
            text = rng.choice(TITLES[lang]) + rng.choice(LEVELS) + text
        return text

    def _add_empty(self, rng: random.Random, cells: list[str], answer: dict[str, str | None]) -> None:
        """Add an empty column, or what programs write for one; after a merged title the cells are empty as well."""
        if rng.random() < UNNAMED:
            cells.append(f"Unnamed: {len(cells)}")
            answer[cells[-1]] = None
            return
        if rng.random() < MERGED:
            title = rng.choice(TITLES[rng.choice(("zh", "en"))])
            if title not in answer:
                cells.append(title)
                answer[title] = None
        cells += [""] * rng.randint(1, 2)
