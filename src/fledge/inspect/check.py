"""`fledge data check`: whether training on the data of a recipe would be meaningful."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.text import Text

from fledge.data import FORMATS, StageDataset
from fledge.data.analysis.check_context import CheckContext
from fledge.data.analysis.checks import CHECKS, findings
from fledge.data.analysis.preference_checks import PAIR
from fledge.data.analysis.stage_statistics import stage_statistics
from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.findings import Finding
from fledge.inspect.pairs_under_model import EASY, OFF_POLICY, SWAPPED, check_under_model
from fledge.inspect.tables import MARKS, PIPED_WIDTH, finding_text
from fledge.inspect.target import Overrides, recipe_of, stages_of, tokenizer_folder, without_drop_limit
from fledge.plan.warnings import PLAN, PlanError
from fledge.prepare import Preparation
from fledge.recipe import Recipe
from fledge.run import Log
from fledge.run.terminal import output_terminal
from fledge.tokenizer import Tokenizer

BUILD, MODEL = "build", "model"  # conditions of all other checks
StageFindings = dict[str, list[Finding]]
"""The findings of one stage by the name of the check; a check without findings has passed."""


def check(
    targets: Sequence[str], overrides: Overrides, stage: str | None, *, as_json: bool, model: str | None, log: Log
) -> None:
    """Print a line for each check of each stage. `model`: directory of a model that pairs of answers are scored by. Raises
    FledgeError when training would be meaningless."""
    recipe = recipe_of(targets, overrides)
    names = stages_of(recipe, stage)
    if model is not None and stage is None:
        names = [name for name in names if FORMATS[recipe.stages[name].kind].sequence_names == PAIR] or names
    results = check_stages(recipe, names, log, None if model is None else Path(model))
    errors = sum(finding.severity == "error" for group in results.values() for item in group.values() for finding in item)
    if as_json:
        print(escaped_json(orjson.dumps(_as_json_value(results), option=orjson.OPT_INDENT_2).decode()))
    else:
        _print(results)
    if errors:
        raise FledgeError(f"{errors:,} finding{'s' if errors > 1 else ''} that would make training meaningless",
                          where=", ".join(targets), hint="each ✗ above says what to do")  # fmt: skip


def check_stages(recipe: Recipe, names: Sequence[str], log: Log, model: Path | None = None) -> dict[str, StageFindings]:
    """The findings of each stage, with those of its pairs under a model where one is given. A stage whose data cannot be built
    has one finding, with the error of the build."""
    preparation = Preparation(recipe if recipe.built_dataset else without_drop_limit(recipe), log)
    results: dict[str, StageFindings] = {}
    for name in names if recipe.built_dataset is None else ():
        try:
            preparation.collect_rows(name)
        except FledgeError as error:
            results[name] = {BUILD: [_as_finding(BUILD, error)]}
    try:
        tokenizer = preparation.tokenizer(tokenizer_folder(recipe))
    except FledgeError as error:
        return {name: results.get(name) or {BUILD: [_as_finding(BUILD, error)]} for name in names}
    for name in names:
        if name not in results:
            results[name] = _check_stage(preparation, recipe, name, tokenizer, model)
    return {name: results[name] for name in names}


def _as_finding(check: str, error: FledgeError) -> Finding:
    return Finding(check=check, severity="error", message=error.what, where=error.where or "", hint=error.hint or "")


def _check_stage(
    preparation: Preparation, recipe: Recipe, name: str, tokenizer: Tokenizer, model: Path | None
) -> StageFindings:
    init_checkpoint = preparation.start_models.of_stage(name).config_directory
    vocabulary, model_findings = tokenizer.vocab_size, []
    max_positions: int | None = recipe.model.max_position_embeddings
    try:
        data = preparation.stage_data(name, tokenizer)
    except FledgeError as error:
        return {BUILD: [_as_finding(BUILD, error)]}
    if init_checkpoint is not None:
        vocabulary, max_positions, model_findings = _model(preparation, name, tokenizer)
    max_drop_fraction = recipe.stages[name].data.max_drop_fraction
    context = CheckContext(
        data,
        stage_statistics(data),
        tokenizer,
        vocab_size=vocabulary,
        max_drop_fraction=max_drop_fraction,
        max_positions=max_positions,
    )
    planned = {} if model_findings else {PLAN: _plan(preparation, name, tokenizer, data)}
    under_model = {} if model is None else check_under_model(model, context, preparation.log)
    return {BUILD: [], MODEL: model_findings, **planned, **findings(context), **under_model}


def _plan(preparation: Preparation, name: str, tokenizer: Tokenizer, data: StageDataset) -> list[Finding]:
    """What is doubtful about the plan of the stage; an error if it cannot be planned."""
    try:
        return preparation.prepare(name, tokenizer, data).warnings
    except PlanError as error:
        return [_as_finding(PLAN, error), *error.others]
    except FledgeError as error:
        return [_as_finding(PLAN, error)]


def _model(preparation: Preparation, name: str, tokenizer: Tokenizer) -> tuple[int, int | None, list[Finding]]:
    """The vocabulary and the positions (None: not known) of the checkpoint to start from, and findings when it does not fit
    the tokenizer or the context."""
    try:
        cost = preparation.model_cost(name, tokenizer)
    except FledgeError as error:
        return tokenizer.vocab_size, None, [_as_finding(MODEL, error)]
    return cost.vocab_size, cost.config.max_position_embeddings, []


PASSED: Mapping[str, str] = {
    BUILD: "the data can be built",
    MODEL: "the model fits the tokenizer and the context",
    PLAN: "updates, batch, rate and validation suit the data",
    **{check.name: check.passed for check in CHECKS},
    SWAPPED: "the model prefers no rejected answer by far",
    EASY: "there are no pairs to score",
    OFF_POLICY: "there are no prompts to answer",
}


def _print(results: Mapping[str, StageFindings]) -> None:
    terminal = output_terminal(PIPED_WIDTH)
    for name, checks in results.items():
        terminal.print(Text(name, style="bold"))
        for check, items in checks.items():
            if not items:
                mark, style = MARKS["passed"]
                terminal.print(Text.assemble((f"{mark} ", style), f"{check}: {PASSED[check]}"))
            for finding in items:
                terminal.print(finding_text(finding), soft_wrap=True)


def _as_json_value(results: Mapping[str, StageFindings]) -> dict[str, Any]:
    """The output of `--json`: for each stage its checks, each with its worst level and its findings."""
    return {"version": 1, "stages": [{"stage": name, "checks": _checks(checks)} for name, checks in results.items()]}


def _checks(checks: StageFindings) -> list[dict[str, Any]]:
    def level(items: Sequence[Finding]) -> str:
        return next((name for name in ("error", "warning") if any(item.severity == name for item in items)), "passed")

    return [
        {"check": name, "level": level(items), "findings": [item.as_dict() for item in items]} for name, items in checks.items()
    ]
