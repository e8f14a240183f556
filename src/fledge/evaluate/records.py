"""Results of evaluation sets: the metrics of a set, of its groups, and of every item, and the files that hold them.

A result is two files in a folder: `<set>.json`, the summary, and `<set>.items.jsonl`, one item a line. A number that does not
exist (not a number, infinite) is null in them and NaN in memory.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import BeforeValidator, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict

from fledge.errors import FledgeError
from fledge.run.events import nan_to_none
from fledge.run.text_files import read_json, read_json_lines, write_json, write_text

BEFORE, AFTER = "before", "after"  # folders of a stage's results, beside step-XXXXXXXX
ITEMS_SUFFIX = ".items.jsonl"
DAMAGED_HINT = "evaluate the set again: fledge eval MODEL --set … --out DIR"


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric of a set of items.

    `interval`: 95 %, None where there is none. `count`: the items it is of. `signature`: how it is computed, as sacrebleu
    writes it; None for a metric with one definition. `higher_is_better`: None where neither way is better."""

    value: Number
    interval: tuple[Number, Number] | None = None
    count: NonNegativeInt
    higher_is_better: bool | None
    signature: str | None = None


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """What a model gave for one item of a set.

    `id`: equal in all runs for what is asked and expected (`item_ids`). `group`: "" for none. `prompt`: the last turn;
    `context`: those before it, as a person reads them. `expected`, `given`,
    `finish_reason`: None where nothing is generated or compared. `values`: metric → value of this item, 0.0 or 1.0 where it is
    yes or no. `failures`: sentences about rules that do not hold."""

    id: str
    group: str = ""
    prompt: str
    context: str = ""
    expected: str | None = None
    given: str | None = None
    finish_reason: str | None = None
    values: dict[str, Number] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """The result of a model on an evaluation set.

    `fingerprint`: of the items and settings; results are comparable where it is equal. `groups`: the metrics of each group.
    `seconds`: how long it took. `notes`: sentences on how it was measured and what was left out."""

    name: str
    kind: str
    fingerprint: str
    metrics: dict[str, MetricValue]
    groups: dict[str, dict[str, MetricValue]] = field(default_factory=dict)
    items: tuple[ItemResult, ...] = ()
    seconds: Number = 0.0
    notes: tuple[str, ...] = ()


class _ItemsFile(TypedDict):
    """What a summary says of its file of items."""

    count: NonNegativeInt
    xxh3: str


class _Summary(TypedDict):
    """The file `<set>.json`: a result whose items are in another file."""

    name: str
    kind: str
    fingerprint: str
    metrics: dict[str, MetricValue]
    groups: dict[str, dict[str, MetricValue]]
    seconds: Number
    notes: tuple[str, ...]
    items: _ItemsFile


# -- ids ---------------------------------------------------------------------------------------------------------------


def content_hash(*parts: Any) -> str:
    """A hash of JSON values, 16 hexadecimal digits; equal in all processes for equal values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return xxhash.xxh3_64(text.encode("utf-8", "surrogatepass")).hexdigest()


def item_ids(contents: Sequence[Any]) -> list[str]:
    """An id for each item of a set, from what is asked and expected (a JSON value). Equal contents get ids that differ at
    their end: `…`, `…-2`, `…-3`."""
    seen: Counter[str] = Counter()
    ids = []
    for content in contents:
        one = content_hash(content)
        seen[one] += 1
        ids.append(one if seen[one] == 1 else f"{one}-{seen[one]}")
    return ids


# -- files -------------------------------------------------------------------------------------------------------------


def write_set_result(folder: Path, result: SetResult) -> Path:
    """Write the two files of a result, and return that of the summary. Raises FledgeError when the disk refuses them."""
    lines = "".join(f"{json.dumps(nan_to_none(asdict(item)), ensure_ascii=False)}\n" for item in result.items)
    write_text(items_file(folder, result.name), lines)
    summary = asdict(replace(result, items=()))
    summary["items"] = {"count": len(result.items), "xxh3": _text_hash(lines)}
    file = folder / f"{result.name}.json"
    write_json(file, nan_to_none(summary))  # last: it says what the file of items holds
    return file


def read_set_result(file: Path, with_items: bool = True) -> SetResult:
    """The result whose summary is `file`. Raises FledgeError for a file that is missing or damaged, and for items that do not
    belong to the summary. Without `with_items` the items are not read."""
    summary = read_json(file, _Summary, DAMAGED_HINT)
    metrics = _metrics(summary["metrics"])
    groups = {name: _metrics(values) for name, values in summary["groups"].items()}
    items = _read_items(items_file(file.parent, file.stem), summary["items"]) if with_items else ()
    plain = {key: summary[key] for key in ("name", "kind", "fingerprint")}
    seconds = _nan_for_null(summary["seconds"])
    return SetResult(**plain, metrics=metrics, groups=groups, items=items, seconds=seconds, notes=tuple(summary["notes"]))


def read_set_results(folder: Path, unreadable: Callable[[Path, FledgeError], None] | None = None) -> dict[str, SetResult]:
    """The results in a folder, by name; none if there is no such folder. One that cannot be read goes with its error to
    `unreadable`, and without that is an error."""
    results: dict[str, SetResult] = {}
    for file in set_result_files(folder):
        try:
            result = read_set_result(file)
        except FledgeError as error:
            if unreadable is None:
                raise
            unreadable(file, error)
        else:
            results[result.name] = result
    return results


def set_result_files(folder: Path) -> list[Path]:
    """The summaries of the results in a folder, by name; none if there is no such folder."""
    return sorted(path for path in folder.glob("*.json") if items_file(folder, path.stem).exists())


def items_file(folder: Path, name: str) -> Path:
    """The file of the items of a set's result."""
    return folder / f"{name}{ITEMS_SUFFIX}"


def _read_items(file: Path, expected: Mapping[str, Any]) -> tuple[ItemResult, ...]:
    items, text = read_json_lines(file, ItemResult, DAMAGED_HINT)
    if len(items) != expected["count"] or _text_hash(text) != expected["xxh3"]:
        what = f"these are not the items of the summary beside it: {len(items):,} of {expected['count']:,}"
        raise FledgeError(what, where=str(file), hint=DAMAGED_HINT)
    return tuple(items)


def _metrics(values: Mapping[str, Any]) -> dict[str, MetricValue]:
    return {name: _metric_reader().validate_python(value) for name, value in values.items()}


@cache
def _metric_reader() -> Any:
    return TypeAdapter(MetricValue)


def _text_hash(text: str) -> str:
    return xxhash.xxh3_64(text.encode("utf-8", "surrogatepass")).hexdigest()
