"""The batch of a stage, from the gradient noise scale: how many tokens an update may average before more are wasted."""

import math
from typing import Any

from fledge.errors import FledgeError
from fledge.plan import StagePlan
from fledge.plan.horizon import LEAST_ROWS
from fledge.recipe.schema import BatchConfig, ScheduleConfig
from fledge.run import StageDirectory
from fledge.run.events import read_events
from fledge.tune.lengths import kept_min_rate
from fledge.tune.noise import MIN_STEPS, NoiseScale, noise_scale, recorded_norms
from fledge.tune.result import TuneResult
from fledge.tune.runs import ShortRuns

FRACTION, LEAST, MOST = 1 / 4, 120, 1000  # steps of the run that is measured: a quarter of the stage, between these
SHARE = 1 / 4  # batch ÷ critical batch: a quarter more tokens than the least, and five times the fewest steps
FEWEST_ROWS = 2  # of an update: one of a single row has no halves, so its noise could not be measured again
MULTIPLES = (1 / 16, 1 / 4, 1, 4)  # of the critical batch, in the table


def measure(runs: ShortRuns) -> StageDirectory:
    """Train the first steps of the stage, each update in two micro-batches at least, and record the norms of all steps."""
    plan = runs.plan({})
    steps = max(min(LEAST, plan.steps), min(MOST, round(plan.steps * FRACTION)))
    rows = plan.effective_batch_rows
    if rows < 2:
        raise FledgeError("an update of one row has no halves to compare", where=f"{runs.prefix}.batch",
                          hint="write at least two rows: batch.micro_batch_size or gradient_accumulation_steps")  # fmt: skip
    micro = _largest_divisor(rows, min(plan.micro_batch_size, rows // 2))
    batch = BatchConfig(micro_batch_size=micro, gradient_accumulation_steps=rows // micro)
    values: dict[str, Any] = {f"{runs.prefix}.batch": batch.model_dump(mode="json"), "logging.every_steps": 1}
    if steps < plan.steps:  # the beginning of the whole stage is measured, not a short stage with an end of its own
        schedule = ScheduleConfig(name="constant", warmup=min(plan.warmup_steps, steps - 1))
        values[f"{runs.prefix}.schedule"] = schedule.model_dump(mode="json")
        values[f"{runs.prefix}.duration"] = f"{steps} steps"
        automatic = {"learning_rate": plan.learning_rate, "betas": list(plan.betas), "weight_decay": plan.weight_decay}
        for key in runs.stage.optimizer.automatic:
            values[f"{runs.prefix}.optimizer.{key}"] = automatic[key]
    (directory,) = runs.run([values])
    if directory is None:
        raise FledgeError("the run whose gradients are measured failed", where=str(runs.recipes.paths.folder))
    return directory


def _largest_divisor(rows: int, most: int) -> int:
    """The most rows of a micro-batch, at most `most`, that divide the rows of an update."""
    return max(size for size in range(1, most + 1) if rows % size == 0)


def noise_of(directory: StageDirectory) -> tuple[NoiseScale, NoiseScale | None]:
    """The noise scale of the second half of the recorded steps, and of the first, to see how it grows. Raises FledgeError where
    too little was recorded, or the gradient cannot be told from noise."""
    norms = recorded_norms(read_events(directory.events))
    if len(norms) < MIN_STEPS:
        raise FledgeError(
            f"{len(norms):,} steps have recorded gradients of two halves, and {MIN_STEPS} are the least",
            where=str(directory.root),
            hint="updates of two micro-batches record them, at every step with logging.every_steps: 1; or name the recipe",
        )
    later = noise_scale(norms[len(norms) // 2 :])
    if later is None:
        raise FledgeError("the gradient cannot be told from its noise in these steps", where=str(directory.root),
                          hint="train longer, or with a larger batch")  # fmt: skip
    return later, noise_scale(norms[: len(norms) // 2])


def find_batch(runs: ShortRuns) -> TuneResult:
    """The batch of the stage: measured by a run of its first steps."""
    later, earlier = noise_of(measure(runs))
    plan = runs.plan({})
    targets = plan.target_tokens / max(1, plan.tokens)  # of the tokens of a row, those that the loss is of
    per_row = plan.effective_batch_tokens / plan.effective_batch_rows * targets
    wanted = 2 ** round(math.log2(max(1.0, SHARE * later.tokens / per_row)))
    rows, patch = rows_that_work(runs, plan, wanted)
    return TuneResult(
        patch=patch,
        evidence=[*evidence(later, earlier), *_table(later, per_row), *_why_other_rows(wanted, rows, plan.rows)],
        confidence=_confidence(later, rows, plan.effective_batch_rows),
        figures={"critical_batch_targets": later.tokens, "interval": later.interval, "targets_per_row": per_row, "rows": rows,
                 "steps": [later.first, later.last]},
    )  # fmt: skip


def rows_that_work(runs: ShortRuns, plan: StagePlan, wanted: int) -> tuple[int, dict[str, Any]]:
    """The rows of an update nearest to those wanted with which the stage can be planned, and the patch: at least as many as its
    kind needs, at most those of an epoch, and more than wanted where an update would read answers of one label only. A warm-up
    in steps that the stage then does not have becomes a share. Raises FledgeError if there are none."""
    least = max(FEWEST_ROWS, LEAST_ROWS.get(plan.kind, 1))
    most = max(least, 2 ** math.floor(math.log2(max(1, plan.rows))))
    first, problems = min(most, max(least, wanted)), list[FledgeError]()
    warmup = {f"{runs.prefix}.schedule.warmup": plan.warmup_share} if runs.stage.schedule.warmup >= 1 else {}
    for rows in (first << doubled for doubled in range((most // first).bit_length())):
        for patch in (_patch(runs, plan, rows), _patch(runs, plan, rows) | warmup):
            try:
                runs.plan(patch)
            except FledgeError as error:
                problems.append(error)
            else:
                return rows, patch
    raise problems[0]


def _patch(runs: ShortRuns, plan: StagePlan, rows: int) -> dict[str, Any]:
    """The change of the recipe with which an update has so many rows, without what else sets or changes its size."""
    micro = _largest_divisor(rows, min(rows, plan.micro_batch_size))
    patch: dict[str, Any] = {
        f"{runs.prefix}.batch.micro_batch_size": micro,
        f"{runs.prefix}.batch.gradient_accumulation_steps": rows // micro,
    }
    for key in ("tokens_per_step", "warmup"):
        if getattr(runs.stage.batch, key) is not None:
            patch[f"{runs.prefix}.batch.{key}"] = None
    if "learning_rate" not in runs.stage.optimizer.automatic and rows != plan.effective_batch_rows:
        factor = math.sqrt(rows / plan.effective_batch_rows)
        patch[f"{runs.prefix}.optimizer.learning_rate"] = float(f"{plan.learning_rate * factor:.3g}")
        patch |= kept_min_rate(runs, plan)
    return patch


def _why_other_rows(wanted: int, rows: int, of_epoch: int) -> list[str]:
    """Why an update does not have the rows that the noise asks for, if it has others."""
    if rows < wanted:
        return [f"an update has {rows:,} rows, not {wanted:,}: an epoch has only {of_epoch:,} packed rows"]
    if rows > wanted > 1:
        return [f"an update has {rows:,} rows, not {wanted:,}: the least with which this stage can be trained"]
    return []


def evidence(later: NoiseScale, earlier: NoiseScale | None) -> list[str]:
    """The critical batch in words, and how it has changed."""
    low, high = later.interval
    upper = "no upper end" if high is None else f"{high:,.0f}"
    lines = [
        f"critical batch: {later.tokens:,.0f} target tokens [{low:,.0f}, {upper}], from the gradients of steps {later.first:,} "
        f"to {later.last:,} (B_simple, McCandlish et al. 2018)"
    ]
    if earlier is not None:
        grown = "it grows while the loss falls" if later.tokens > earlier.tokens else "it has not grown since"
        lines.append(f"in the steps {earlier.first:,} to {earlier.last:,} before it was {earlier.tokens:,.0f}: {grown}")
    return lines


def _table(scale: NoiseScale, per_row: float) -> list[str]:
    lines = []
    for multiple in MULTIPLES:
        batch = multiple * scale.tokens
        lines.append(
            f"  a batch of {batch:,.0f} targets ({batch / per_row:,.3g} rows) takes "
            f"{scale.more_tokens(batch):.2f} × the least tokens and {scale.more_steps(batch):.2f} × the fewest steps"
        )
    return lines


def _confidence(scale: NoiseScale, rows: int, own: int) -> str:
    low, high = scale.interval
    where = "the recipe has this size already" if rows == own else f"the recipe has {own:,} rows"
    if high is None or high > 4 * low:
        return f"low: the interval spans more than a factor of four; {where}"
    return f"medium: the noise scale tells the order of the best batch, not the batch itself; {where}"
