"""Reads a run directory into records; anything missing or broken is tolerated and remembered."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from fledge.report.records import (
    DroppedExample,
    Evaluation,
    Events,
    Ledger,
    Problem,
    Run,
    Sample,
    Scores,
    Source,
    Split,
    Stage,
    World,
    WorldError,
)

STAGE_MARKS = ("plan.json", "data_report.json", "events.jsonl", "eval")


def number(value: object) -> float | None:
    """The value as a float (NaN and infinities included), or None when it is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def mapping(value: object) -> dict[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, object]]:
    return [mapping(item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []


class Reader:
    """Reads files below one root and keeps the list of what could not be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []

    def whole(self, path: str) -> str | None:
        file = self.root / path
        if not file.is_file():
            return None
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            self.problems.append(Problem(path, None))
            return None

    def json_object(self, path: str) -> dict[str, object] | None:
        content = self.whole(path)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self.problems.append(Problem(path, None))
            return None
        return mapping(value)

    def json_lines(self, path: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        broken = 0
        for line in (self.whole(path) or "").split("\n"):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                rows.append(mapping(value))
            else:
                broken += 1
        if broken:
            self.problems.append(Problem(path, broken))
        return rows


def gather(run_directory: Path) -> Run:
    root = Path(run_directory)
    if not root.is_dir():
        raise FileNotFoundError(f"no run directory at {root}")
    reader = Reader(root)
    summary = reader.json_object("summary.json") or {}
    names = stage_names(root, summary.get("stages"))
    stages = tuple(read_stage(reader, name) for name in names)
    return Run(
        name=text(summary.get("name")) or root.resolve().name,
        seconds=number(summary.get("seconds")),
        recipe=reader.whole("recipe.yaml"),
        environment={**(reader.json_object("environment.json") or {}), **decisions(reader, names)},
        tokenizer=mapping(summary.get("tokenizer")),
        stages=stages,
        problems=tuple(reader.problems),
    )


def decisions(reader: Reader, names: list[str]) -> dict[str, object]:
    """How each stage computed, where that was recorded."""
    made = {name: reader.json_object(f"{name}/compute.json") for name in names}
    return {name: decision for name, decision in made.items() if decision}


def stage_names(root: Path, listed: object) -> list[str]:
    """The stages that the summary lists, or those found on disk, in the order of the recipe."""
    if isinstance(listed, list):
        names = [name for name in listed if isinstance(name, str) and is_plain_name(name)]
        if names:
            return list(dict.fromkeys(names))
    found = [entry.name for entry in root.iterdir() if entry.is_dir() and has_stage_mark(entry)]
    order = {name: position for position, name in enumerate(recipe_stages(root))}
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


def recipe_stages(root: Path) -> list[str]:
    """The names of the stages of the run's recipe, in order; none where it cannot be read."""
    try:
        recipe = yaml.safe_load(Reader(root).whole("recipe.yaml") or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return list(mapping(mapping(recipe).get("stages")))


def is_plain_name(name: str) -> bool:
    """A stage name is one folder below the run directory, never a way out of it."""
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in "/\\\0")


def has_stage_mark(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in STAGE_MARKS)


def read_stage(reader: Reader, name: str) -> Stage:
    ledger = reader.json_object(f"{name}/data_report.json")
    world = reader.json_object(f"{name}/eval/world.json")
    return Stage(
        name=name,
        plan=reader.json_object(f"{name}/plan.json") or {},
        ledger=None if ledger is None else read_ledger(ledger),
        events=read_events(reader.json_lines(f"{name}/events.jsonl")),
        before=read_evaluation(reader.json_object(f"{name}/eval/before.json")),
        after=read_evaluation(reader.json_object(f"{name}/eval/after.json")),
        world=read_world(world) if world else None,
    )


def read_events(rows: list[dict[str, object]]) -> Events:
    def of(*kinds: str) -> tuple[Mapping[str, object], ...]:
        return tuple(row for row in rows if row.get("kind") in kinds)

    alarms = of("alert", "guard")
    return Events(of("step"), of("system"), of("eval"), of("checkpoint"), alarms, of("stop"), of("prompt_tests"))


def read_evaluation(row: Mapping[str, object] | None) -> Evaluation | None:
    if row is None:
        return None
    metrics = {key.removeprefix("eval/"): number(value) for key, value in row.items()}
    samples = tuple(
        Sample(
            text(item.get("prompt")),
            text(item.get("answer")),
            item["ended"] if isinstance(item.get("ended"), bool) else None,  # type: ignore[arg-type]
        )
        for item in mappings(row.get("samples"))
    )
    return Evaluation({key: value for key, value in metrics.items() if value is not None}, samples)


def read_world(row: Mapping[str, object]) -> World:
    ends = row.get("interval")
    low, high = (number(ends[0]), number(ends[1])) if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return World(
        overall=read_scores(row),
        preference_accuracy=number(row.get("preference_accuracy")),
        interval=None if low is None or high is None else (low, high),
        tasks={name: read_scores(mapping(task)) for name, task in mapping(row.get("tasks")).items()},
        errors=tuple(
            WorldError(*(text(item.get(key)) for key in ("task", "question", "answer", "reference")))
            for item in mappings(row.get("errors"))
        ),
    )


def read_scores(row: Mapping[str, object]) -> Scores:
    return Scores(*(number(row.get(key)) for key in ("n", "exact_match", "content_match", "habit_rate")))


def read_ledger(row: Mapping[str, object]) -> Ledger:
    return Ledger(
        sources=tuple(read_source(item) for item in mappings(row.get("sources"))),
        train=read_split(row.get("train")),
        validation=read_split(row.get("validation")),
    )


def read_source(row: Mapping[str, object]) -> Source:
    dropped = ((reason, number(count)) for reason, count in mapping(row.get("dropped")).items())
    return Source(
        name=text(row.get("name")),
        path=text(row.get("path")),
        rows=number(row.get("rows")),
        used=number(row.get("used_rows")),
        dropped=tuple((reason, count) for reason, count in dropped if count),
        truncated=number(row.get("truncated_rows")),
        split=number(row.get("split_rows")),
        shortened=number(row.get("shortened_rows")),
        tokens=number(row.get("tokens")),
        target_tokens=number(row.get("target_tokens")),
        examples=tuple(
            DroppedExample(*(text(item.get(key)) for key in ("reason", "where", "detail")))
            for item in mappings(row.get("first_events"))
        ),
    )


def read_split(value: object) -> Split | None:
    if not isinstance(value, dict):
        return None
    row = mapping(value)
    keys = ("examples", "packed_rows", "tokens", "target_tokens", "padding_share")
    return Split(*(number(row.get(key)) for key in keys))
