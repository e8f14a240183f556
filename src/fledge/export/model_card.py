"""README.md of an exported model: what it is, how it compares, the data and the scores that its run recorded, the recipe.

Everything stands in files of the run. What they do not say is said to be unknown.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from fledge.errors import FledgeError
from fledge.export.source import ExportSource
from fledge.export.weight_types import WeightType
from fledge.report.read_run import mapping, read_run
from fledge.report.records import Run, Stage
from fledge.run.directory import StageDirectory
from fledge.run.text_files import read_json
from fledge.version import __version__

METRICS = {"loss": "loss", "perplexity": "perplexity", "token_accuracy": "token accuracy", "bits_per_byte": "bits per byte",
           "accuracy": "preference accuracy"}  # fmt: skip


def _task(source: ExportSource) -> str:
    """The task in the words of the hub."""
    return "text-generation" if source.model.decoder_start is None else "text2text-generation"


def model_card(source: ExportSource, library: str, weight_type: WeightType, lines: list[str]) -> str:
    """The text of README.md. `library`: what loads the model. `lines`: what was written and how it compares."""
    run, licence = _run(source), base_licence(source)
    front = {"license": licence} if licence else {}
    front |= {"library_name": library, "pipeline_tag": _task(source)}
    parameters = source.model.cost.parameters().total
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=True, allow_unicode=True) + "---",
        f"# {source.name}",
        f"{source.architecture}, {parameters:,} parameters, {source.model.config.max_position_embeddings:,} positions, "
        f"{source.model.vocab_size:,} tokens; weights in {weight_type.label}. Exported by fledge {__version__}.",
        "## Comparison with the model before export",
        *_bullets(lines),
        "## Licence",
        f"The base model's directory names: {licence}." if licence else "No licence is recorded.",
        *([] if run is None else _about_run(source, run)),
    ]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: list[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _run(source: ExportSource) -> Run | None:
    """The run of the model; None for a model outside of a run, or if its files cannot be read."""
    if source.run is None:
        return None
    try:
        return read_run(source.run)
    except (FledgeError, OSError):
        return None


# -- licence ------------------------------------------------------------------------------------------------------------


def base_licence(source: ExportSource) -> str | None:
    """The licence that README.md of the base model's directory names in its head: of the model that the recipe starts from, or
    of the exported directory itself outside of a run. None if it is not known."""
    if source.run is None:
        return _named_licence(source.folder)
    try:
        recipe = yaml.safe_load((source.run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    path = mapping(mapping(recipe).get("model")).get("path")
    if not isinstance(path, str):
        return None
    return _named_licence(Path(path)) or _named_licence(
        _directory_of_start(source.run, next(iter(mapping(mapping(recipe).get("stages"))), ""))
    )


def _directory_of_start(run: Path, stage: str) -> Path:
    """The directory that the first stage loaded, where the recipe names a file or a model of the hub."""
    try:
        return Path(str(mapping(read_json(run / stage / "start.json")).get("source")))
    except FledgeError:
        return run


def _named_licence(folder: Path) -> str | None:
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        named = mapping(yaml.safe_load(head[1])).get("license") if head else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return named if isinstance(named, str) else None


# -- the run ------------------------------------------------------------------------------------------------------------


def _about_run(source: ExportSource, run: Run) -> Iterator[str]:
    """Paragraphs about data, scores and recipe of the stages up to the exported one."""
    names = [stage.name for stage in run.stages]
    stages = run.stages[: names.index(source.stage) + 1] if source.stage in names else ()
    yield "## Data"
    rows = [row for stage in stages for row in _data_rows(stage)]
    yield _table(("stage", "source", "rows", "used", "dropped", "tokens"), rows) if rows else "Nothing is recorded."
    yield "## Scores"
    yield from _scores(source, stages)
    if run.recipe:
        yield "## Recipe"
        yield f"```yaml\n{run.recipe.rstrip()}\n```"


def _data_rows(stage: Stage) -> Iterator[tuple[str, ...]]:
    for each in stage.data_report.sources if stage.data_report else ():
        dropped = ", ".join(f"{count:,.0f} {reason}" for reason, count in each.dropped) or "0"
        yield stage.name, each.name, _count(each.rows), _count(each.used), dropped, _count(each.tokens)


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _scores(source: ExportSource, stages: tuple[Stage, ...]) -> Iterator[str]:
    """The evaluations after each stage; of the exported stage only if the exported checkpoint is the one that was evaluated."""
    rows = []
    for stage in stages:
        if stage.name == source.stage and not _is_result(source):
            yield "The exported checkpoint is not the result of its stage, whose scores are therefore left out."
            continue
        metrics = stage.after.metrics if stage.after else {}
        rows += [(stage.name, label, f"{metrics[key]:.4f}") for key, label in METRICS.items() if key in metrics]
        if stage.world and stage.world.overall.exact_match is not None:
            interval = stage.world.interval
            between = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
            share = f"{stage.world.overall.exact_match:.3f} of {_count(stage.world.overall.n)}{between}"
            rows.append((stage.name, "questions of its world answered exactly", share))
    yield _table(("stage", "measure on held-out data", "value"), rows) if rows else "Nothing is recorded."


def _is_result(source: ExportSource) -> bool:
    """Whether the exported folder is the result of its stage."""
    if source.run is None or source.stage is None:
        return False
    stage = StageDirectory(source.run / source.stage)
    result = stage.result()
    return result is not None and (stage.root / result["model"]).resolve() == source.folder.resolve()
