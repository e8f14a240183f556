"""Reading a run directory into records. A missing or damaged file never stops the report; it is listed as a problem."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from fledge.errors import FledgeError
from fledge.report.records import (
    DataReport,
    DroppedRow,
    Evaluation,
    Events,
    NaturalAnswers,
    Problem,
    Run,
    Sample,
    Scores,
    Source,
    Split,
    Stage,
    World,
    WorstCase,
    WrongAnswer,
)
from fledge.run.directory import check_layout

STAGE_FILES = ("plan.json", "data_report.json", "events.jsonl", "eval")


def number(value: object) -> float | None:
    """The value as a float (NaN and infinities included), or None when it is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def text(value: object) -> str:
    """The value as text: strings literally, None as an empty string, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def mapping(value: object) -> dict[str, object]:
    """The value as a mapping with text keys; empty when it is not a mapping."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def items(value: object) -> list[object]:
    """The items of a list; none of anything else."""
    return list(value) if isinstance(value, list) else []


def mappings(value: object) -> list[dict[str, object]]:
    """The mappings of a list, in order; empty when the value is not a list."""
    return [mapping(item) for item in items(value) if isinstance(item, dict)]


class Reader:
    """Reads files below one root directory and keeps the list of files that could not be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []

    def read_text(self, path: str) -> str | None:
        """The text of a file, or None when the file is missing or cannot be read."""
        file = self.root / path
        if not file.is_file():
            return None
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            self.problems.append(Problem(path, None))
            return None

    def json_object(self, path: str) -> dict[str, object] | None:
        """The JSON object in a file, or None when the file is missing or holds anything else."""
        content = self.read_text(path)
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
        """The JSON objects of a JSON Lines file. Damaged lines are left out and counted in one problem."""
        rows: list[dict[str, object]] = []
        broken = 0
        for line in (self.read_text(path) or "").split("\n"):
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


def read_run(run_directory: Path) -> Run:
    """The records of a run directory. Raises FileNotFoundError if it is missing, FledgeError if it is no run, or if an earlier
    version wrote it."""
    root = Path(run_directory)
    if not root.is_dir():
        raise FileNotFoundError(f"no run directory at {root}")
    check_layout(root)
    check_is_run(root)
    reader = Reader(root)
    summary = reader.json_object("summary.json") or {}
    names = stage_names(root, summary.get("stages"))
    stages = tuple(read_stage(reader, name) for name in names)
    return Run(
        name=text(summary.get("name")) or root.resolve().name,
        seconds=number(summary.get("seconds")),
        recipe=reader.read_text("recipe.yaml"),
        environment={**(reader.json_object("environment.json") or {}), **compute_configs(reader, names)},
        tokenizer=mapping(summary.get("tokenizer")),
        stages=stages,
        problems=tuple(reader.problems),
    )


def check_is_run(root: Path) -> None:
    """Raise FledgeError for a folder that holds no run: nothing is written into such a folder."""
    stages = [entry for entry in root.iterdir() if entry.is_dir() and is_stage_directory(entry)]
    if (root / "recipe.yaml").is_file() or (root / "summary.json").is_file() or stages:
        return
    runs = sorted(file.parent.name for file in root.glob("*/recipe.yaml"))[:3]
    hint = f"name one of the runs in it: {', '.join(runs)}" if runs else "name a run directory, such as runs/NAME"
    if is_stage_directory(root) and (root.parent / "recipe.yaml").is_file():
        hint = f"this is a stage of the run {root.parent}: name the run"
    raise FledgeError("this is not a run: it holds no recipe.yaml, no summary.json and no stage", where=str(root), hint=hint)


def compute_configs(reader: Reader, names: list[str]) -> dict[str, object]:
    """The recorded compute configuration of each stage that has one, by the name of the stage."""
    configs = {name: reader.json_object(f"{name}/compute.json") for name in names}
    return {name: config for name, config in configs.items() if config}


def stage_names(root: Path, listed: object) -> list[str]:
    """The stages that the summary lists. Without a summary: the stage directories on disk, in the order of the recipe."""
    if isinstance(listed, list):
        names = [name for name in listed if isinstance(name, str) and is_plain_name(name)]
        if names:
            return list(dict.fromkeys(names))
    directories = [entry.name for entry in root.iterdir() if entry.is_dir() and is_stage_directory(entry)]
    positions = {name: position for position, name in enumerate(recipe_stages(root))}
    return sorted(directories, key=lambda name: (positions.get(name, len(positions)), name))


def recipe_stages(root: Path) -> list[str]:
    """The names of the stages of the run's recipe, in order. Empty when the recipe cannot be read."""
    return list(mapping(parsed_recipe(Reader(root).read_text("recipe.yaml")).get("stages")))


def parsed_recipe(recipe: str | None) -> dict[str, object]:
    """The values of the text of a recipe. Empty when it cannot be read."""
    try:
        return mapping(yaml.safe_load(recipe or ""))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}


def is_plain_name(name: str) -> bool:
    """Whether the name stands for one folder directly below the run directory and not for a path out of the run."""
    return bool(name) and name not in (".", "..") and not any(character in name for character in "/\\\0")


def is_stage_directory(folder: Path) -> bool:
    """Whether the folder holds any file that only a stage writes."""
    return any((folder / name).exists() for name in STAGE_FILES)


def read_stage(reader: Reader, name: str) -> Stage:
    """The records of one stage, from the files in its folder."""
    data_report = reader.json_object(f"{name}/data_report.json")
    world = reader.json_object(f"{name}/eval/world.json")
    result = reader.json_object(f"{name}/result.json") or {}
    trained, parameters = number(result.get("trained_parameters")), number(result.get("parameters"))
    return Stage(
        name=name,
        plan=reader.json_object(f"{name}/plan.json") or {},
        data_report=None if data_report is None else read_data_report(data_report),
        events=read_events(reader.json_lines(f"{name}/events.jsonl")),
        before=read_evaluation(reader.json_object(f"{name}/eval/before.json")),
        after=read_evaluation(reader.json_object(f"{name}/eval/after.json")),
        world=read_world(world) if world else None,
        verdicts=tuple(mappings(result.get("verdicts"))),
        trained=(trained, parameters) if trained and parameters else None,
        decision=mapping(result.get("verdict")),
        worst=read_worst(reader.json_lines(f"{name}/eval/errors.jsonl")),
        prediction=reader.json_object(f"{name}/prediction.json") or {},
    )


def read_events(rows: list[dict[str, object]]) -> Events:
    """The events of a stage, sorted by kind."""

    def of_kind(*kinds: str) -> tuple[Mapping[str, object], ...]:
        return tuple(row for row in rows if row.get("kind") in kinds)

    return Events(
        steps=of_kind("step"),
        resources=of_kind("system"),
        evals=of_kind("eval"),
        checkpoints=of_kind("checkpoint"),
        alerts=of_kind("alert", "guard", "finding"),
        stops=of_kind("stop"),
        prompt_tests=of_kind("prompt_tests"),
    )


def read_evaluation(row: Mapping[str, object] | None) -> Evaluation | None:
    """An evaluation file as a record, or None when the file is missing."""
    if row is None:
        return None
    metrics = {key.removeprefix("eval/"): number(value) for key, value in row.items()}
    samples = tuple(
        Sample(
            text(item.get("prompt")),
            text(item.get("answer")),
            item["finish_reason"] == "stop" if item.get("finish_reason") is not None else None,
        )
        for item in mappings(row.get("samples"))
    )
    losses = {key: value for key, value in row.items() if key.startswith("loss_") and isinstance(value, list | dict)}
    return Evaluation({key: value for key, value in metrics.items() if value is not None}, samples, losses)


def read_worst(rows: list[dict[str, object]]) -> tuple[WorstCase, ...]:
    """The validation rows with the highest losses, from `eval/errors.jsonl`."""
    return tuple(
        WorstCase(
            source=text(row.get("group")),
            loss=number(row.get("loss")),
            where=text(row.get("where")),
            text=text(row.get("text")),
            targets=text(row.get("targets")),
        )
        for row in rows
        if row.get("kind") == "loss"
    )


def read_world(row: Mapping[str, object]) -> World:
    """The scores on questions with known answers, from `eval/world.json`."""
    return World(
        overall=read_scores(row),
        preference_accuracy=number(row.get("preference_accuracy")),
        interval=read_interval(row),
        natural=read_natural(mapping(row.get("natural"))),
        tasks={name: read_scores(mapping(task)) for name, task in mapping(row.get("tasks")).items()},
        errors=tuple(
            WrongAnswer(
                task=text(item.get("task")),
                question=text(item.get("question")),
                answer=text(item.get("answer")),
                reference=text(item.get("reference")),
            )
            for item in mappings(row.get("errors"))
        ),
    )


def read_interval(row: Mapping[str, object]) -> tuple[float, float] | None:
    """The ends of an interval; None where it is missing or damaged."""
    ends = row.get("interval")
    low, high = (number(ends[0]), number(ends[1])) if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def read_natural(row: Mapping[str, object]) -> NaturalAnswers | None:
    """The answers to prompts in natural words, or None where none were asked."""
    acceptable = number(row.get("acceptable"))
    if acceptable is None:
        return None
    rates = {name: number(mapping(group).get("acceptable")) for name, group in mapping(row.get("groups")).items()}
    return NaturalAnswers(
        n=number(row.get("n")),
        acceptable=acceptable,
        interval=read_interval(row),
        groups={name: rate for name, rate in rates.items() if rate is not None},
        errors=tuple(
            WrongAnswer(
                task=text(item.get("group")),
                question=" ⏎ ".join(map(text, items(item.get("turns")))),
                answer=text(item.get("answer")),
                reference=json.dumps(item.get("accept"), ensure_ascii=False),
            )
            for item in mappings(row.get("errors"))
        ),
    )


def read_scores(row: Mapping[str, object]) -> Scores:
    """The scores of one group of questions."""
    return Scores(
        n=number(row.get("n")),
        exact_match=number(row.get("exact_match")),
        content_match=number(row.get("content_match")),
        habit_rate=number(row.get("habit_rate")),
    )


def read_data_report(row: Mapping[str, object]) -> DataReport:
    """The data report of a stage, from `data_report.json`."""
    return DataReport(
        sources=tuple(read_source(item) for item in mappings(row.get("sources"))),
        train=read_split(row.get("train")),
        validation=read_split(row.get("validation")),
    )


def read_source(row: Mapping[str, object]) -> Source:
    """The row counts of one data source. Drop reasons with no row are left out."""
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
            DroppedRow(reason=text(item.get("reason")), location=text(item.get("where")), detail=text(item.get("detail")))
            for item in mappings(row.get("first_events"))
        ),
    )


def read_split(value: object) -> Split | None:
    """The totals of the training or the validation split, or None when they are missing."""
    if not isinstance(value, dict):
        return None
    row = mapping(value)
    return Split(
        examples=number(row.get("examples")),
        packed_rows=number(row.get("packed_rows")),
        tokens=number(row.get("tokens")),
        target_tokens=number(row.get("target_tokens")),
        padding_share=number(row.get("padding_share")),
    )
