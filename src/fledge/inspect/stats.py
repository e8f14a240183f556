"""`fledge data stats`: statistics of the data of a recipe, or of files of rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.text import Text

from fledge.data.analysis.check_context import CheckContext
from fledge.data.analysis.checks import findings
from fledge.data.analysis.pre_tokenization import measure
from fledge.data.analysis.stage_statistics import stage_statistics
from fledge.escaping import escaped_json
from fledge.inspect.inspection import StageInspection
from fledge.inspect.tables import PIPED_WIDTH, tables
from fledge.inspect.target import Overrides, recipe_of, stages_of, tokenizer_folder, without_drop_limit
from fledge.prepare import Preparation
from fledge.recipe import Recipe
from fledge.run import Log, write_text
from fledge.run.terminal import output_terminal
from fledge.tokenizer import Tokenizer

VERSION = 1  # of the JSON


def inspect_stages(recipe: Recipe, stage: str | None, log: Log) -> tuple[list[StageInspection], Tokenizer]:
    """Build the data of a recipe in a temporary folder and measure it. Training is not affected."""
    names = stages_of(recipe, stage)
    preparation = Preparation(without_drop_limit(recipe.model_copy(update={"built_dataset": None})), log)
    tokenizer = preparation.tokenizer(tokenizer_folder(recipe))
    inspections = []
    for name in names:
        measured = measure(preparation.collect_rows(name), tokenizer, log)
        data = preparation.stage_data(name, tokenizer)
        statistics = stage_statistics(data, measured)
        limit = recipe.stages[name].data.max_drop_fraction
        stage_findings = findings(CheckContext(data, statistics, tokenizer, max_drop_fraction=limit))
        inspections.append(
            StageInspection(statistics, tuple(finding for group in stage_findings.values() for finding in group))
        )
    return inspections, tokenizer


def stats(
    targets: Sequence[str],
    overrides: Overrides,
    stage: str | None,
    kind: str | None,
    tokenizer_path: str | None,
    as_json: bool,
    page: str | None,
    log: Log,
) -> None:
    """Print the statistics of recipes or of files of rows, as tables or as JSON. `page` is the path of an HTML page to
    write."""
    tokenizer_override = [("tokenizer.path", tokenizer_path)] if tokenizer_path else []
    recipe = recipe_of(targets, [*overrides, *tokenizer_override], kind)
    inspections, tokenizer = inspect_stages(recipe, stage, log)
    if page is not None:
        from fledge.inspect.page import render

        write_text(Path(page), render(", ".join(Path(target).name for target in targets), inspections, tokenizer))
        log(f"page: {page}")
    if as_json:
        print(escaped_json(orjson.dumps(as_json_value(inspections, tokenizer), option=orjson.OPT_INDENT_2).decode()))
        return
    terminal = output_terminal(PIPED_WIDTH)
    for inspection in inspections:
        for renderable in tables(inspection.statistics, inspection.findings):
            terminal.print(renderable, soft_wrap=isinstance(renderable, Text))


def as_json_value(inspections: Sequence[StageInspection], tokenizer: Tokenizer) -> dict[str, Any]:
    """The output of `--json`."""
    described = {"vocab_size": tokenizer.vocab_size, "template": tokenizer.template.name}
    return {"version": VERSION, "tokenizer": described, "stages": [inspection.as_dict() for inspection in inspections]}
