"""`fledge plan`: data built once, a probe if one is asked for, and the forecast on each device."""

from collections.abc import Sequence
from pathlib import Path

from fledge.autotune.compute_config import check_device, describe_runtime
from fledge.build_dataset import build
from fledge.forecast.assumed import parse_tokens
from fledge.forecast.forecast import RunForecast, check_files, know_recipe
from fledge.forecast.probe import probe_recipe
from fledge.forecast.target import target_of, this_machine
from fledge.forecast.text import lines_of
from fledge.localization import localized
from fledge.pipeline import check_extras, check_sharding
from fledge.recipe import Recipe, to_yaml
from fledge.run import Console


def plan_recipe(
    recipe: Recipe,
    console: Console,
    folder: Path,
    *,
    devices: Sequence[str] = (),
    here: bool = True,
    probe_steps: int | None = None,
    tokens: Sequence[str] = (),
    prices: Sequence[str] = (),
) -> RunForecast:
    """The forecast of a recipe on the cards that `devices` name and, with `here` or for a probe, on this machine.

    `folder`: for data and runs of a probe. `tokens`, `prices`: as `fledge plan` takes them. Raises FledgeError as a run would
    before its first step, for an unknown card, and for settings that a card does not support.
    """
    targets = [target_of(text, recipe.runtime) for text in devices]  # before the data is read
    amounts = parse_tokens(list(tokens), list(recipe.stages)) if tokens else None
    if here or probe_steps is not None:
        check_device(recipe.runtime)
        targets.insert(0, this_machine(recipe.runtime))
    check_sharding(recipe)
    check_extras(recipe)
    if amounts is None:
        check_files(recipe)
    if probe_steps is not None and recipe.built_dataset is None:
        build(recipe, folder / "data", None, console.log)
        recipe = recipe.model_copy(update={"built_dataset": str(folder / "data")})
    known, probe = know_recipe(recipe, console, target=targets[0], tokens=amounts), None
    if probe_steps is not None:
        micro_steps = {name: stage.inputs.micro_batches for name, stage in known.stages.items()}
        probe = probe_recipe(known.with_planned_batches, probe_steps, folder, console, micro_steps)
    return known.forecast(targets, probe=probe, prices=prices)


def dry_run(recipe: Recipe, console: Console, full: bool = False) -> str:
    """How a recipe would be computed here, and the forecast of every stage; with `full`, behind the recipe with all defaults,
    as text that is a recipe. Nothing is written. What a person needs stands last, because a terminal shows the end.

    Raises FledgeError as a run would before its first step.
    """
    forecast = plan_recipe(recipe, console, Path())
    lines = ["runtime", *(f"  {line}" for line in describe_runtime(recipe.runtime)), *lines_of(forecast)]
    lines.append("compiling and the start are not counted")
    lines = [localized(line) for line in lines]
    if not full:
        return "\n".join([*lines, localized("--full prints the recipe with all defaults too")])
    plan = [f"# {line}" for line in "\n".join(lines).splitlines()]  # a name of a file may have several lines
    return "\n".join(["# " + localized("the recipe with all defaults; the plan is at the end"), to_yaml(recipe), *plan])
