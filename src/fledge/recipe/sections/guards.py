"""The guards of a stage: the figures that they watch, and the actions when they trigger."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fledge.recipe.sections.base import ConfigModel, Fraction, Positive
from fledge.recipe.units import memory_size, time_span

Sigma = Annotated[float, Field(gt=0)]
RollbackAction = Literal["skip_rows", "lower_lr"]


def _action(value: object) -> object:
    """`warn` is short for `{action: warn}`."""
    return {"action": value} if isinstance(value, str) else value


class NonFiniteGuard(ConfigModel):
    """A loss or gradient that is not finite: the update is always skipped. After `consecutive` skipped updates, `action`."""

    action: Literal["warn", "stop", "rollback"] = "rollback"
    consecutive: Positive = 3
    on_rollback: RollbackAction = Field(default="skip_rows", description="what changes after a rollback")


class GradSpikeGuard(ConfigModel):
    """A gradient norm that exceeds the norms of the last steps by `sigma` standard deviations (of their logarithms) and by
    `factor` times their geometric mean. `skip` skips the update."""

    action: Literal["ignore", "warn", "skip", "stop", "rollback"] = "warn"
    sigma: Sigma = 6.0
    factor: Annotated[float, Field(ge=1)] = 4.0
    window: Annotated[int, Field(ge=32)] = Field(default=128, description="number of previous steps to compare with")
    on_rollback: RollbackAction = "skip_rows"


class LossSpikeGuard(ConfigModel):
    """A training loss that exceeds the losses of the last steps by `sigma` standard deviations and by `factor` times their
    mean."""

    action: Literal["ignore", "warn", "stop", "rollback"] = "warn"
    sigma: Sigma = 6.0
    factor: Annotated[float, Field(ge=1)] = 1.2
    window: Annotated[int, Field(ge=32)] = 128
    on_rollback: RollbackAction = "skip_rows"


class DivergenceGuard(ConfigModel):
    """The training loss, smoothed over `window` steps, has risen by `min_increase` above its minimum."""

    action: Literal["ignore", "warn", "stop", "rollback"] = "rollback"
    min_increase: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="nats per target token; for preferences: nats per pair"
    )
    window: Positive = 50
    on_rollback: RollbackAction = "lower_lr"


class ValidationIncreaseGuard(ConfigModel):
    """The validation loss has risen in `patience` consecutive evaluations, and by the fraction `min_increase` in total."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    patience: Positive = 3
    min_increase: Fraction = Field(default=0.01, description="smaller increases are noise")


class DisplacementGuard(ConfigModel):
    """Likelihood displacement: over `window` steps, the chosen answers of the pairs are less likely than under the reference
    (where the loss has none, than in the first `window` steps) by more than `max_drop`, and the rejected ones are less likely,
    too."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    max_drop: Annotated[float, Field(gt=0)] = Field(default=0.2, description="nats per token of the chosen answers")
    window: Positive = Field(default=10, description="number of steps to average over")


class LengthBiasGuard(ConfigModel):
    """The rewards follow the length of the answers: their margin is correlated with the difference in length by more than
    `max_correlation` over `window` steps, and most pairs whose chosen answer is the shorter one are wrong. Of a reward model
    also the reverse: a negative correlation, and wrong pairs whose chosen answer is the longer one."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    max_correlation: Fraction = 0.5
    window: Positive = Field(default=20, description="number of steps to average over")


class NoPreferenceGuard(ConfigModel):
    """In the second half of a stage on preferences, over `window` steps, the log-odds of chosen against rejected answers have
    not grown by `min_growth`. With a reference, the margin of the rewards tells the growth."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    min_growth: Annotated[float, Field(ge=0)] = 0.01
    window: Positive = Field(default=10, description="number of steps to average over")


class ChanceAccuracyGuard(ConfigModel):
    """In the second half of a reward stage, over `window` steps, the reward model gives the chosen answer more than the
    rejected one in fewer than `min_accuracy` of the pairs, by more than chance explains; tossing a coin is right in half."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    min_accuracy: Fraction = 0.55
    window: Positive = Field(default=20, description="number of steps to average over")


class PassRateGuard(ConfigModel):
    """The fraction of prompt tests that pass is below `min_pass_rate`."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    min_pass_rate: Fraction = 0.5


class RepetitionGuard(ConfigModel):
    """Answers to the prompt tests are repetitive: the mean fraction of repeated n-grams is above `max_repetition`."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    max_repetition: Fraction = 0.3


class ThroughputGuard(ConfigModel):
    """Tokens per second (median of the last 20 steps) are below the fraction `min_speed_ratio` of the 200 steps before."""

    action: Literal["ignore", "warn"] = "warn"
    min_speed_ratio: Fraction = 0.5


class DiskGuard(ConfigModel):
    """Free disk space of the run directory is below `min_free`. Even without it, checkpoints that do not fit are not
    started."""

    action: Literal["warn", "stop"] = "stop"
    min_free: Annotated[int, BeforeValidator(memory_size), Field(gt=0)] | None = None


class TimeGuard(ConfigModel):
    """The stage has trained for `max_time`: it ends with its current weights, and the next stage continues from them."""

    action: Literal["warn", "stop"] = "stop"
    max_time: Annotated[float, BeforeValidator(time_span), Field(gt=0)] | None = None


class RollbackConfig(ConfigModel):
    """After a rollback to the last good checkpoint, `skip_rows` skips the rows at which the guard triggered; `lower_lr`
    multiplies the learning rate by `lr_factor` from there on."""

    retries: Annotated[int, Field(ge=0)] = Field(default=3, description="rollbacks per stage; after that the stage stops")
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5


def guard(kind: type[ConfigModel]) -> Any:
    """The type of a guard's section, for which the name of an action may stand."""
    return Annotated[kind, BeforeValidator(_action)]


class CommonGuards(ConfigModel):
    """The guards of every kind of stage. `warn` reports, `stop` ends the run, `skip` skips one update, `rollback` returns to
    the last good checkpoint. The name of an action alone is short for a mapping with `action`."""

    non_finite: guard(NonFiniteGuard) = NonFiniteGuard()  # type: ignore[valid-type]
    grad_spike: guard(GradSpikeGuard) = GradSpikeGuard()  # type: ignore[valid-type]
    loss_spike: guard(LossSpikeGuard) = LossSpikeGuard()  # type: ignore[valid-type]
    divergence: guard(DivergenceGuard) = DivergenceGuard()  # type: ignore[valid-type]
    pass_rate: guard(PassRateGuard) = PassRateGuard()  # type: ignore[valid-type]
    repetition: guard(RepetitionGuard) = RepetitionGuard()  # type: ignore[valid-type]
    throughput: guard(ThroughputGuard) = ThroughputGuard()  # type: ignore[valid-type]
    disk: guard(DiskGuard) = DiskGuard()  # type: ignore[valid-type]
    time: guard(TimeGuard) = TimeGuard()  # type: ignore[valid-type]
    rollback: RollbackConfig = RollbackConfig()


class GuardsConfig(CommonGuards):
    """The guards of a stage that lowers a loss on given rows."""

    validation_increase: guard(ValidationIncreaseGuard) = ValidationIncreaseGuard()  # type: ignore[valid-type]
    displacement: guard(DisplacementGuard) = DisplacementGuard()  # type: ignore[valid-type]
    length_bias: guard(LengthBiasGuard) = LengthBiasGuard()  # type: ignore[valid-type]
    no_preference: guard(NoPreferenceGuard) = NoPreferenceGuard()  # type: ignore[valid-type]


class RewardGuardsConfig(CommonGuards):
    """The guards of a stage that trains a reward model."""

    validation_increase: guard(ValidationIncreaseGuard) = ValidationIncreaseGuard()  # type: ignore[valid-type]
    length_bias: guard(LengthBiasGuard) = LengthBiasGuard()  # type: ignore[valid-type]
    chance_accuracy: guard(ChanceAccuracyGuard) = ChanceAccuracyGuard()  # type: ignore[valid-type]
