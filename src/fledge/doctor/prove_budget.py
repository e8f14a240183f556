"""The minutes of a proof: how long paired runs may be, from the seconds that the run itself took for its updates."""

from collections.abc import Mapping, Sequence
from typing import Any

from fledge.autotune.benchmark import fastest_product
from fledge.autotune.compute_config import chosen_device, known_precision
from fledge.doctor.prove_recipes import FEWEST_STEPS, Length, ProofRecipes
from fledge.errors import FledgeError
from fledge.prediction import expected_seconds, stage_inputs
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import Recipe
from fledge.run import StageDirectory
from fledge.run.console import silent
from fledge.run.events import read_events

RUN_SECONDS = 2.0  # of a run besides its updates: data, one evaluation, the held-out documents; measured 1 to 2 s on two cores
MARGIN = 0.9  # share of the minutes that is planned
LEAST_UPDATES = 10  # of a run whose speed is taken from its events
UNDISTURBED = 0.9  # quantile of the speeds of updates: what a busy machine delayed says little about the next minutes
NEARLY = 0.02  # share of the tokens by which two stages may differ and are still equally long


def seconds_per_token(directory: StageDirectory) -> float | None:
    """Seconds that a stage took for a token in updates that nothing delayed: one of ten was faster; evaluations are left out.
    None if it has too few. A proof on a machine that is busier finds so at its first run."""
    speeds = sorted(
        float(event["system/step_tokens_per_second"])
        for event in read_events(directory.events)
        if event["kind"] == "system" and event.get("system/step_tokens_per_second")
    )
    return 1 / speeds[int(UNDISTURBED * (len(speeds) - 1))] if len(speeds) >= LEAST_UPDATES else None


def whole_seconds(recipes: ProofRecipes, recipe: Recipe, prepared: PreparedStage) -> tuple[float, str]:
    """The seconds of training of a whole stage, and what they rest on: the speed of the run, else that of earlier stages like
    it or of matrix products."""
    measured = seconds_per_token(recipes.run.stage(recipes.stage))
    if measured is not None:
        return measured * prepared.plan.tokens, "the speed of the run itself"
    preparation = Preparation(recipe, silent)
    cost = preparation.model_cost(recipes.stage, preparation.tokenizer())
    flops = fastest_product(chosen_device(recipe.runtime), known_precision(recipe.runtime))
    return expected_seconds(stage_inputs(prepared, cost, recipe.runtime), flops), "the speed of this machine"


def least_share(variants: Sequence[PreparedStage]) -> float:
    """The smallest share of the stage that runs of all variants can train: one share for both runs of a pair, with enough
    updates for the variant that has the fewest."""
    return min(1.0, max(FEWEST_STEPS / one.plan.steps for one in variants))


def length_of(variants: Sequence[tuple[PreparedStage, float]], seeds: int, minutes: float, *, whole: bool) -> Length:
    """The length of the runs of a proof: as much of the stage as fits into the minutes, for each seed a run of each variant
    (its plan, and the seconds of its whole stage). `whole`: shorter runs would not show what is to be proved. Raises
    FledgeError if the minutes are too few."""
    if not 0 < minutes < float("inf"):
        raise FledgeError("must be a number above zero", where="--minutes")
    runs, training = seeds * len(variants), seeds * sum(seconds for _, seconds in variants)
    share = (MARGIN * 60 * minutes - runs * RUN_SECONDS) / max(training, 1e-9)
    least = 1.0 if whole else least_share([prepared for prepared, _ in variants])
    if share < least:
        needed = (least * training + runs * RUN_SECONDS) / MARGIN / 60
        what = "whole stages" if whole else f"{FEWEST_STEPS} updates each"
        raise FledgeError(
            f"{minutes:g} minutes are not enough for {runs} runs of {what}", where="--minutes",
            hint=f"write --minutes {needed + 0.05:.1f}",
        )  # fmt: skip
    return Length(min(1.0, share))


CHOOSES_THE_END = ("early_stopping", "select_checkpoint", "metric_for_best_model")
"""Keys of a stage whose effect shorter runs do not show, unless the patch makes the stage longer."""


def is_shorter(patched: PreparedStage, given: PreparedStage) -> bool:
    """Whether a patched stage trains on fewer tokens than the unchanged one."""
    return patched.plan.tokens < (1 - NEARLY) * given.plan.tokens


def needs_whole(patch: Mapping[str, Any], stage: str, given: PreparedStage, patched: PreparedStage) -> bool:
    """Whether only whole stages can prove a patch: one that ends training earlier, where longer training is the fault."""
    keys = {key.removeprefix(f"stages.{stage}.").partition(".")[0] for key in patch}
    if "duration" in keys and is_shorter(patched, given):
        return True
    return bool(keys & set(CHOOSES_THE_END)) and patched.plan.tokens <= given.plan.tokens


def newest_step(directory: StageDirectory) -> int:
    """The step of the newest checkpoint of a stage; 0 without one."""
    steps = [int(path.name.removeprefix("step-")) for path in directory.checkpoint_paths() if path.name[5:].isdigit()]
    return max(steps, default=0)
