"""The plan of a build: which files are read for which source, in shards that can be worked on alone."""

import difflib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import orjson

from fledge.data.cleaning.languages import LANGUAGES
from fledge.data.formats import FORMATS, DataStage, ExampleFormat
from fledge.data.parsing.registry import resolve
from fledge.data.reading.records import SHARD_BYTES, FileRange, files_of, ignored_files, spans_of
from fledge.errors import FledgeError
from fledge.recipe.schema import BatchConfig, DataConfig, Source

VERSION = 1
Split = Literal["train", "validation", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A source of the recipe. `split`: use of its rows; evaluation rows are only kept out of training.

    `key`: its recipe key. `ignored_files`: files in a folder source that are not read."""

    source: Source
    split: Split
    key: str
    name: str
    path: str
    ignored_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """A unit of work: ranges of one source's files, read in order. A dataset of the hub is one shard without ranges.

    `source` is the number of the source in the plan."""

    number: int
    source: int
    spans: tuple[FileRange, ...]

    @property
    def folder(self) -> str:
        """Name of the shard's folder in the folder of each phase."""
        return f"{self.number:05d}"


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a worker needs to know; stored as build_plan.json.

    `kind`, `data`, `batch`, `name`: of the stage. `size`: bytes of all files. `stamps`: (path, bytes, modification time in
    ns) of each file, to detect changes. `libraries`: versions of the optional libraries that cleaning may use."""

    kind: str
    data: DataConfig
    batch: BatchConfig
    name: str
    seed: int
    sources: tuple[PlannedSource, ...] = ()
    shards: tuple[Shard, ...] = ()
    size: int = 0
    stamps: tuple[tuple[str, int, int], ...] = ()
    libraries: Mapping[str, str | None]

    @property
    def format(self) -> ExampleFormat:
        """How the rows of the stage become examples."""
        return FORMATS[self.kind]

    @property
    def key(self) -> str:
        """The recipe key of the stage's data."""
        return f"stages.{self.name}.data"

    def shards_of(self, *splits: Split) -> list[Shard]:
        """The shards of these splits, in order."""
        return [shard for shard in self.shards if self.sources[shard.source].split in splits]

    def encoded_shards(self) -> list[Shard]:
        """The shards of training and validation sources, whose rows become tokens."""
        return self.shards_of("train", "validation")

    def parses_special_tokens(self, shard: Shard) -> bool:
        """Whether control tokens in the texts of a shard become single tokens."""
        own = self.source_of(shard).source.parse_special_tokens
        return self.data.parse_special_tokens if own is None else own

    def source_of(self, shard: Shard) -> PlannedSource:
        """The source of a shard."""
        return self.sources[shard.source]

    @cached_property
    def requested(self) -> dict[str, Any]:
        """The part of the plan that comes from the recipe, without the files (see `requested_data`)."""
        return requested_data(self, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values, for build_plan.json."""
        return {
            "requested": self.requested,
            "name": self.name,
            "libraries": self.libraries,
            "batch": self.batch.model_dump(mode="json"),
            "sources": [{**asdict(item), "source": item.source.model_dump(mode="json")} for item in self.sources],
            "shards": [asdict(shard) for shard in self.shards],
            "size": self.size,
            "stamps": [list(stamp) for stamp in self.stamps],
        }

    def to_json(self) -> bytes:
        """The bytes of build_plan.json."""
        return orjson.dumps(self.as_dict(), option=orjson.OPT_INDENT_2)

    def same_data_as(self, other: "BuildPlan") -> bool:
        """Whether both plans describe equal data. Their batch may differ: it only decides how many steps an epoch has."""
        plans = [{name: value for name, value in plan.as_dict().items() if name != "batch"} for plan in (self, other)]
        return plans[0] == plans[1]

    def changed_files(self) -> tuple[list[str], list[str]]:
        """The files that have another size or modification time than when the plan was made, and those that are gone."""
        edited, gone = [], []
        for path, size, changed in self.stamps:
            try:
                state = Path(path).stat()
            except (FileNotFoundError, NotADirectoryError):
                gone.append(path)
                continue
            if (state.st_size, state.st_mtime_ns) != (size, changed):
                edited.append(path)
        return edited, gone

    def added_or_renamed(self) -> list[str]:
        """What the sources of the plan lead to now and did not then: files that were added, entries of a registry that say
        something else."""
        try:
            now = _planned_sources(self.data, self.key)
        except FledgeError as error:
            return [error.what]
        known, added = {path for path, _, _ in self.stamps}, []
        for planned in now:
            with suppress(FledgeError):  # files that are gone are told as such
                files = [] if planned.source.hub else files_of(planned.source, planned.key)
                added += [f"{file} (added)" for file in files if str(file) not in known]
        then = [replace(planned, ignored_files=()) for planned in self.sources]
        registries = [name for planned in then if planned not in now and (name := self._registry(planned.key))]
        return [*dict.fromkeys(registries), *added]

    def _registry(self, key: str) -> str | None:
        """The registry of the source with this recipe key; None if it has none."""
        section: Any = {"train": self.data.train, "validation": self.data.validation}.get(key.split(".")[-2])
        sources = self.data.clean.decontaminate_against if section is None else section
        return sources[int(key.rpartition(".")[2])].registry

    @classmethod
    def read(cls, file: Path) -> "BuildPlan":
        """Read build_plan.json of a build directory. Raises FledgeError if it is missing, damaged or of another version."""
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


def requested_data(stage: DataStage, seed: int) -> dict[str, Any]:
    """The settings that determine a stage's data: builds with equal settings and equal files hold equal data."""
    return {"version": VERSION, "kind": stage.kind, "data": stage.data.model_dump(mode="json"), "seed": seed}


def _read_plan(saved: dict[str, Any]) -> BuildPlan:
    requested = saved["requested"]
    if requested["version"] != VERSION:
        raise ValueError(requested["version"])
    if requested["kind"] not in FORMATS:
        raise ValueError(requested["kind"])
    return BuildPlan(
        kind=requested["kind"],
        data=DataConfig.model_validate(requested["data"]),
        batch=BatchConfig.model_validate(saved["batch"]),
        name=saved["name"],
        seed=requested["seed"],
        sources=tuple(_read_source(item) for item in saved["sources"]),
        shards=tuple(
            Shard(shard["number"], shard["source"], tuple(FileRange(**span) for span in shard["spans"]))
            for shard in saved["shards"]
        ),
        size=saved["size"],
        stamps=tuple((path, size, time) for path, size, time in saved["stamps"]),
        libraries=saved["libraries"],
    )


def _read_source(saved: Mapping[str, Any]) -> PlannedSource:
    source, ignored = Source.model_validate(saved["source"]), tuple(saved["ignored_files"])
    return PlannedSource(**{**saved, "source": source, "ignored_files": ignored})


def _planned_sources(data: DataConfig, key: str) -> list[PlannedSource]:
    """Every source of the stage with its recipe key; entries of a dataset_info.json are resolved to files."""
    validation = [] if isinstance(data.validation, int | float) else data.validation
    named: list[tuple[Split, str, list[Source]]] = [
        ("train", f"{key}.train", data.train),
        ("validation", f"{key}.validation", validation),
        ("evaluation", f"{key}.clean.decontaminate_against", data.clean.decontaminate_against),
    ]
    planned = []
    for split, sources_key, sources in named:
        for index, source in enumerate(sources):
            source_key = f"{sources_key}.{index}"
            for concrete in resolve(source, source_key):
                path = concrete.path or f"hub:{concrete.hub}"
                name = concrete.name or path.rstrip("/").rsplit("/", 1)[-1]
                concrete = _without_quota(concrete, source_key) if split != "train" else concrete
                planned.append(PlannedSource(source=concrete, split=split, key=source_key, name=name, path=path))
    return planned


def _without_quota(source: Source, key: str) -> Source:
    """A validation or evaluation source, with max_rows turned into max_samples: no epoch is drawn from it. FledgeError for
    every other quota."""
    if not source.mixed:
        return source
    if source.token_fraction or source.ratio or source.max_tokens or source.repeat != 1:
        raise FledgeError("token_fraction, ratio, max_tokens and repeat say what an epoch of training takes", where=key,
                          hint="use max_samples or max_rows here")  # fmt: skip
    rows = min(source.max_rows or source.max_samples or 0, source.max_samples or source.max_rows or 0)
    return source.model_copy(update={"max_rows": None, "max_samples": rows})


def plan_build(stage: DataStage, name: str, seed: int) -> BuildPlan:
    """Find all files and divide them into shards. Raises FledgeError, with the recipe key, for a missing file."""
    key = f"stages.{name}.data"
    _check_languages(stage.data, key)
    sources, shards, stamps, total = [], [], {}, 0
    for index, planned in enumerate(_planned_sources(stage.data, key)):
        if planned.source.hub:
            sources.append(planned)
            shards.append(Shard(len(shards), index, ()))
            continue
        files = files_of(planned.source, planned.key)
        ignored = tuple(str(path) for path in ignored_files(planned.source))
        sources.append(replace(planned, ignored_files=ignored))
        for file in files:
            state = file.stat()
            stamps[str(file)] = (str(file), state.st_size, state.st_mtime_ns)
            total += state.st_size
        for spans in _grouped(spans_of(files, planned.source, SHARD_BYTES), planned.source):
            shards.append(Shard(len(shards), index, spans))
    return BuildPlan(
        kind=stage.kind,
        data=stage.data,
        batch=stage.batch,
        name=name,
        seed=seed,
        sources=tuple(sources),
        shards=tuple(shards),
        size=total,
        stamps=tuple(stamps.values()),
        libraries=_libraries(),
    )


def _check_languages(data: DataConfig, key: str) -> None:
    """Raise FledgeError for a language that cannot be detected."""
    for language in data.clean.languages or ():
        if language not in LANGUAGES:
            near = difflib.get_close_matches(language, LANGUAGES, 1, 0.3)
            raise FledgeError(
                f"'{language}' is not a language that can be detected; these can: {', '.join(LANGUAGES)}",
                where=f"{key}.clean.languages",
                hint=f"did you mean '{near[0]}'?" if near else None,
            )


def _libraries() -> dict[str, str | None]:
    """Versions of the optional libraries that cleaning may use; another version may clean differently and needs a new build."""
    from importlib.metadata import PackageNotFoundError, version  # here: workers, which start often, do not need it

    versions: dict[str, str | None] = {}
    for name in ("ftfy", "selectolax", "rensa"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _grouped(spans: list[FileRange], source: Source) -> list[tuple[FileRange, ...]]:
    """Groups of file ranges, one for each shard: small files share a shard; a source with max_samples is one shard."""
    if source.max_samples is not None:
        return [tuple(spans)]
    ranges_of_file = Counter(span.file for span in spans)
    groups: list[list[FileRange]] = []
    room = 0.0
    for span in spans:
        size = Path(span.file).stat().st_size / ranges_of_file[span.file]
        if not groups or room < size:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(span)
        room -= size
    return [tuple(group) for group in groups]
