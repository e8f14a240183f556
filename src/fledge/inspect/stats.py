"""`fledge data stats`: what the data of a recipe, or of files of rows, is like."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from fledge.data.analysis.check_context import CheckContext
from fledge.data.analysis.checks import findings
from fledge.data.analysis.pre_tokenization import measure
from fledge.data.analysis.stage_statistics import stage_statistics
from fledge.inspect.inspection import StageInspection
from fledge.inspect.tables import PIPED_WIDTH, tables
from fledge.inspect.target import Overrides, Say, recipe_of, stages_of, tokenizer_folder, without_drop_limit
from fledge.prepare import Preparation
from fledge.recipe import Recipe
from fledge.run import write_text
from fledge.tokenizer import Tokenizer

VERSION = 1  # of the JSON


def look(recipe: Recipe, stage: str | None, say: Say) -> tuple[list[StageInspection], Tokenizer]:
    """Build the data of a recipe in a temporary folder and measure it. What training sees is not changed by that."""
    names = stages_of(recipe, stage)
    preparation = Preparation(without_drop_limit(recipe.model_copy(update={"built_dataset": None})), say)
    tokenizer = preparation.tokenizer(tokenizer_folder(recipe))
    looked = []
    for name in names:
        measured = measure(preparation.collect_rows(name), tokenizer, say)
        data = preparation.stage_data(name, tokenizer)
        statistics = stage_statistics(data, measured)
        found = findings(CheckContext(data, statistics, tokenizer, None, recipe.stages[name].data.max_drop_fraction))
        looked.append(StageInspection(statistics, tuple(finding for group in found.values() for finding in group)))
    return looked, tokenizer


def stats(
    targets: Sequence[str],
    overrides: Overrides,
    stage: str | None,
    kind: str | None,
    tokenizer_path: str | None,
    as_json: bool,
    page: str | None,
    say: Say,
) -> None:
    """Print the statistics of recipes or of files of rows, as tables or as JSON; `page` also writes them as HTML."""
    chosen = [("tokenizer.path", tokenizer_path)] if tokenizer_path else []
    recipe = recipe_of(targets, [*overrides, *chosen], kind)
    looked, tokenizer = look(recipe, stage, say)
    if page is not None:
        from fledge.inspect.page import render

        write_text(Path(page), render(", ".join(Path(target).name for target in targets), looked, tokenizer))
        say(f"page: {page}")
    if as_json:
        print(orjson.dumps(as_json_value(looked, tokenizer), option=orjson.OPT_INDENT_2).decode())
        return
    terminal = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for one in looked:
        for renderable in tables(one.statistics, one.findings):
            terminal.print(renderable, soft_wrap=isinstance(renderable, Text))


def as_json_value(looked: Sequence[StageInspection], tokenizer: Tokenizer) -> dict[str, Any]:
    """What --json prints."""
    described = {"vocab_size": tokenizer.vocab_size, "template": tokenizer.template.name}
    return {"version": VERSION, "tokenizer": described, "stages": [one.as_dict() for one in looked]}
