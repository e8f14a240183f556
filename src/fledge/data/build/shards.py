"""The plan of a build: which files are read for which source, divided into shards that can be worked on alone."""

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from fledge.data.cleaning.languages import LANGUAGES
from fledge.data.parsing.registry import resolve
from fledge.data.reading.records import FileRange, files_of, ignored_files, spans_of
from fledge.errors import FledgeError
from fledge.recipe.schema import DataConfig, PreferenceStage, PretrainStage, SftStage, Source

AnyStage = PretrainStage | SftStage | PreferenceStage

SHARD_BYTES = 16 * 2**20
VERSION = 1
PARTS = ("train", "validation", "evaluation")


@dataclass(frozen=True)
class PlannedSource:
    """A source with its place in the recipe. `part` is train, validation or evaluation."""

    source: Source
    part: str
    key: str
    name: str
    path: str
    ignored_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """A piece of one source: its spans are read in order. A hub's dataset is one shard without spans."""

    number: int
    source: int
    spans: tuple[FileRange, ...]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.number:05d}"


@dataclass(frozen=True)
class BuildPlan:
    """All that a worker has to know; build_plan.json. `stamps` are size and time of each file, to tell when one changed."""

    stage: AnyStage
    name: str
    seed: int
    sources: tuple[PlannedSource, ...]
    shards: tuple[Shard, ...]
    size: int
    stamps: tuple[tuple[str, int, int], ...]
    libraries: dict[str, str | None]

    def of_part(self, *parts: str) -> list[Shard]:
        """The shards of these parts, in order."""
        return [shard for shard in self.shards if self.sources[shard.source].part in parts]

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What the recipe asks of the data, without where the files are now."""
        data = self.stage.data.model_dump(mode="json")
        return {"version": VERSION, "kind": self.stage.kind, "data": data, "seed": self.seed}

    def as_dict(self) -> dict[str, Any]:
        """build_plan.json."""
        return {
            "asked": self.asked,
            "name": self.name,
            "libraries": self.libraries,
            "batch": self.stage.batch.model_dump(mode="json"),
            "sources": [{**asdict(item), "source": item.source.model_dump(mode="json")} for item in self.sources],
            "shards": [asdict(shard) for shard in self.shards],
            "size": self.size,
            "stamps": [list(stamp) for stamp in self.stamps],
        }

    def encoded(self) -> bytes:
        """build_plan.json as bytes."""
        return orjson.dumps(self.as_dict(), option=orjson.OPT_INDENT_2)

    def compared(self) -> dict[str, Any]:
        """What makes two plans plans for the same data; the batch is only kept to tell how many steps an epoch has."""
        return {name: value for name, value in self.as_dict().items() if name != "batch"}

    @classmethod
    def read(cls, file: Path) -> "BuildPlan":
        """The plan of a build directory."""
        try:
            saved = orjson.loads(file.read_bytes())
        except FileNotFoundError:
            raise FledgeError(
                "this is not a directory of built data: it has no build_plan.json", where=str(file.parent)
            ) from None
        except ValueError as error:
            raise FledgeError(f"damaged: {error}", where=str(file), hint="build the data again") from None
        try:
            return _read_plan(saved)
        except (KeyError, TypeError, ValueError):  # pydantic's ValidationError is a ValueError
            raise FledgeError(
                "written by another version of fledge, or damaged", where=str(file), hint="remove the directory and build again"
            ) from None


def _read_plan(saved: dict[str, Any]) -> BuildPlan:
    asked = saved["asked"]
    if asked["version"] != VERSION:
        raise ValueError(asked["version"])
    kinds = {"pretrain": PretrainStage, "sft": SftStage, "preference": PreferenceStage}
    stage = kinds[asked["kind"]].model_validate({"kind": asked["kind"], "data": asked["data"], "batch": saved["batch"]})
    return BuildPlan(
        stage,
        saved["name"],
        asked["seed"],
        tuple(_planned(item) for item in saved["sources"]),
        tuple(Shard(s["number"], s["source"], tuple(FileRange(**span) for span in s["spans"])) for s in saved["shards"]),
        saved["size"],
        tuple((path, size, time) for path, size, time in saved["stamps"]),
        saved["libraries"],
    )


def _planned(saved: Mapping[str, Any]) -> PlannedSource:
    source = Source.model_validate(saved["source"])
    return PlannedSource(source, saved["part"], saved["key"], saved["name"], saved["path"], tuple(saved["ignored_files"]))


def _sources(stage: AnyStage, name: str) -> list[PlannedSource]:
    """Every source of the stage, registry entries resolved, with the recipe key that names it."""
    key = f"stages.{name}.data"
    data = stage.data
    validation = [] if isinstance(data.validation, int | float) else data.validation
    named = [("train", f"{key}.train", data.train), ("validation", f"{key}.validation", validation)]
    named.append(("evaluation", f"{key}.clean.decontaminate_against", data.clean.decontaminate_against))
    found = []
    for part, where, sources in named:
        for index, source in enumerate(sources):
            for concrete in resolve(source, f"{where}.{index}"):
                path = concrete.path or f"hub:{concrete.hub}"
                label = concrete.name or path.rstrip("/").rsplit("/", 1)[-1]
                found.append(PlannedSource(_of_part(concrete, part, f"{where}.{index}"), part, f"{where}.{index}", label, path))
    return found


def _of_part(source: Source, part: str, key: str) -> Source:
    """Only training draws epochs; of other sources, max_rows are the first ones. FledgeError for another quota."""
    if part == "train" or not source.mixed:
        return source
    if source.token_fraction or source.ratio or source.max_tokens or source.repeat != 1:
        raise FledgeError("share, ratio, max_tokens and repeat say what an epoch of training takes", where=key,
                          hint="use first_rows or max_rows here")  # fmt: skip
    rows = min(source.max_rows or source.max_samples or 0, source.max_samples or source.max_rows or 0)
    return source.model_copy(update={"max_rows": None, "max_samples": rows})


def plan_build(stage: AnyStage, name: str, seed: int) -> BuildPlan:
    """Find all files and divide them. FledgeError names the key of a missing file."""
    _check_languages(stage.data, f"stages.{name}.data")
    planned, shards, stamps, total = [], [], {}, 0
    for index, item in enumerate(_sources(stage, name)):
        if item.source.hub:
            planned.append(item)
            shards.append(Shard(len(shards), index, ()))
            continue
        files = files_of(item.source, item.key)
        over = tuple(str(path) for path in ignored_files(item.source))
        planned.append(PlannedSource(item.source, item.part, item.key, item.name, item.path, over))
        for file in files:
            state = file.stat()
            stamps[str(file)] = (str(file), state.st_size, state.st_mtime_ns)
            total += state.st_size
        for spans in _grouped(spans_of(files, item.source, SHARD_BYTES), item.source):
            shards.append(Shard(len(shards), index, spans))
    return BuildPlan(
        type(stage).model_validate({"kind": stage.kind, "data": stage.data, "batch": stage.batch}),
        name,
        seed,
        tuple(planned),
        tuple(shards),
        total,
        tuple(stamps.values()),
        _libraries(),
    )


def _check_languages(data: DataConfig, key: str) -> None:
    """FledgeError for a language that is not told apart."""
    for language in data.clean.languages or ():
        if language not in LANGUAGES:
            near = difflib.get_close_matches(language, LANGUAGES, 1, 0.3)
            raise FledgeError(
                f"'{language}' is no language that is told apart; they are {', '.join(LANGUAGES)}",
                where=f"{key}.clean.languages",
                hint=f"did you mean '{near[0]}'?" if near else None,
            )


def _libraries() -> dict[str, str | None]:
    """Versions of what cleaning may use: another one may clean otherwise, so it must not go on with the same build."""
    found: dict[str, str | None] = {}
    for name in ("ftfy", "selectolax", "rensa"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _grouped(spans: list[FileRange], source: Source) -> list[tuple[FileRange, ...]]:
    """Small files together; a source of which only the first rows are read is one shard."""
    if source.max_samples is not None:
        return [tuple(spans)]
    parts = Counter(span.file for span in spans)
    groups: list[list[FileRange]] = []
    room = 0.0
    for span in spans:
        size = Path(span.file).stat().st_size / parts[span.file]
        if not groups or room < size:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(span)
        room -= size
    return [tuple(group) for group in groups]
