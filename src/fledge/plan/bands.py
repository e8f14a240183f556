"""Figures of a plan beside what is known to be usual: tokens per parameter, updates, warm-up, learning rate and batch.

A value outside of its band is no mistake; the band says what published laws and fledge's own trials would have chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fledge.model.cost import ModelCost
from fledge.plan.hyperparameters import FINE_TUNING_SHARES, RunSize, fine_tuning_rate
from fledge.plan.hyperparameters import derived_rate as reference_rate
from fledge.plan.stage import StagePlan
from fledge.recipe.schema import Stage

COMPUTE_OPTIMAL = 20.0  # tokens per parameter (Hoffmann et al. 2022)
OPTIMAL_BAND = (10.0, 40.0)  # where the loss for equal compute is within about one percent of the best: fledge's choice
UPDATES_OF_EPOCH = (50.0, 20_000.0)  # chosen by fledge: fewer leave little to correct, more are a batch of little use
RATE_FACTOR = 3.0  # by which published rates for one run differ
ADAMW_BATCH_POWER, STEP_LAW_BATCH = 0.571, 0.581
LADDER_PARAMETERS, LADDER_RATE, LADDER_BATCH = 108e6, 0.0047, 2048 * 160


@dataclass(frozen=True, kw_only=True)
class Band:
    """A figure of a plan and the range in which it usually is. `source`: of the range. `unit`: after the numbers."""

    name: str
    value: float
    low: float
    high: float
    source: str
    unit: str = ""

    @property
    def position(self) -> str:
        """`below`, `inside` or `above` the range."""
        return "below" if self.value < self.low else "above" if self.value > self.high else "inside"


@dataclass(frozen=True, kw_only=True)
class BandInputs:
    """What the bands of a stage depend on. `starts_fresh`: from new weights."""

    stage: Stage
    plan: StagePlan
    cost: ModelCost
    starts_fresh: bool


def bands_of(inputs: BandInputs) -> list[Band]:
    """All bands that apply to a stage."""
    return [band for rule in RULES for band in rule(inputs)]


def step_law(parameters: float, tokens: float) -> tuple[float, float]:
    """Learning rate of AdamW and tokens of a batch for so many parameters without embeddings, and training tokens: 1.797 ·
    N^−0.713 · D^0.307, 0.581 · D^0.571 (Li et al. 2025, "Step Law", fitted on 0.2 to 1 billion parameters)."""
    return 1.797 * parameters**-0.713 * tokens**0.307, STEP_LAW_BATCH * tokens**ADAMW_BATCH_POWER


def ladder(parameters: float) -> tuple[float, float]:
    """Learning rate of AdamW and tokens of a batch: half of 0.0047 · (N / 108M)^(−1/3), and 327,680 · (N / 108M)^(2/3) (OLMo's
    model ladder, after Porian et al. 2024, for 20 tokens per parameter)."""
    size = parameters / LADDER_PARAMETERS
    return LADDER_RATE * size ** (-1 / 3) / 2, LADDER_BATCH * size ** (2 / 3)


def _tokens_per_parameter(inputs: BandInputs) -> Iterator[Band]:
    if not inputs.starts_fresh:
        return
    yield Band(
        name="tokens per parameter",
        value=inputs.plan.tokens / inputs.plan.active_parameters,
        low=OPTIMAL_BAND[0],
        high=OPTIMAL_BAND[1],
        source=f"compute-optimal is about {COMPUTE_OPTIMAL:g} (Hoffmann et al. 2022); above it a small model still improves",
    )


def _updates_of_epoch(inputs: BandInputs) -> Iterator[Band]:
    plan = inputs.plan
    yield Band(
        name="updates per epoch",
        value=plan.rows / plan.effective_batch_rows,
        low=UPDATES_OF_EPOCH[0],
        high=UPDATES_OF_EPOCH[1],
        source="chosen by fledge; the gradient noise scale decides (fledge tune --what batch)",
    )


def _fresh_rate(inputs: BandInputs) -> Iterator[Band]:
    plan, cost = inputs.plan, inputs.cost
    if not inputs.starts_fresh or not plan.optimizer.startswith("adamw"):
        return
    known = cost.scaling_parameters()
    run = RunSize(cost.config.hidden_size, plan.effective_batch_tokens, plan.steps, plan.tokens)
    rates = [step_law(known, plan.tokens)[0], ladder(known)[0], reference_rate(plan.optimizer, run)[0]]
    yield Band(
        name="learning rate",
        value=plan.learning_rate,
        low=min(rates) / RATE_FACTOR,
        high=max(rates) * RATE_FACTOR,
        source=f"Step Law (Li et al. 2025) {rates[0]:.2g}, OLMo's ladder {rates[1]:.2g}, fledge's trials {rates[2]:.2g}",
    )


def _fresh_batch(inputs: BandInputs) -> Iterator[Band]:
    plan, known = inputs.plan, inputs.cost.scaling_parameters()
    if not inputs.starts_fresh:
        return
    batches = [step_law(known, plan.tokens)[1], ladder(known)[1]]
    yield Band(
        name="tokens per update",
        value=plan.effective_batch_tokens,
        low=min(batches) / RATE_FACTOR,
        high=max(batches) * RATE_FACTOR,
        source=f"Step Law {batches[0]:,.0f}, OLMo's ladder {batches[1]:,.0f}; both were fitted on larger models",
    )


def _fine_tuning_rate(inputs: BandInputs) -> Iterator[Band]:
    plan, stage = inputs.plan, inputs.stage
    if inputs.starts_fresh or stage.kind not in FINE_TUNING_SHARES or not plan.optimizer.startswith("adamw"):
        return
    run = RunSize(inputs.cost.config.hidden_size, plan.effective_batch_tokens, plan.steps, plan.tokens)
    rate, _ = fine_tuning_rate(stage.kind, plan.optimizer, run, has_adapter=stage.adapter is not None)
    yield Band(
        name="learning rate",
        value=plan.learning_rate,
        low=rate / RATE_FACTOR**2,
        high=rate * RATE_FACTOR,
        source=f"fledge's trials: about {rate:.2g} for this kind of stage, width, batch and length",
    )


RULES: tuple[Callable[[BandInputs], Iterator[Band]], ...] = (
    _tokens_per_parameter,
    _updates_of_epoch,
    _fresh_rate,
    _fresh_batch,
    _fine_tuning_rate,
)
