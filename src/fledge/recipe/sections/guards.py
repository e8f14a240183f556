"""What watches a stage, and what is to happen when it finds something."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fledge.recipe.sections.base import ConfigModel, Positive, Share
from fledge.recipe.units import memory_size, time_span

Sigma = Annotated[float, Field(gt=0)]
Then = Literal["skip_rows", "lower_lr"]


def _action(value: object) -> object:
    """`warn` is short for `{action: warn}`."""
    return {"action": value} if isinstance(value, str) else value


class NonFiniteGuard(ConfigModel):
    """A gradient or loss that is not finite: its update is always left out. After `in_a_row` of them, `action`."""

    action: Literal["warn", "stop", "rollback"] = "rollback"
    consecutive: Positive = 3
    on_rollback: Then = Field(default="skip_rows", description="what is different after a roll-back")


class GradSpikeGuard(ConfigModel):
    """A gradient norm above the last ones by `sigma` standard deviations (of their logarithms) and `times` their
    geometric mean. `skip` leaves the update out."""

    action: Literal["ignore", "warn", "skip", "stop", "rollback"] = "warn"
    sigma: Sigma = 6.0
    factor: Annotated[float, Field(ge=1)] = 4.0
    window: Annotated[int, Field(ge=32)] = Field(default=128, description="steps that are compared with")
    on_rollback: Then = "skip_rows"


class LossSpikeGuard(ConfigModel):
    """A training loss above the last ones by `sigma` standard deviations and `times` their mean."""

    action: Literal["ignore", "warn", "stop", "rollback"] = "warn"
    sigma: Sigma = 6.0
    factor: Annotated[float, Field(ge=1)] = 1.2
    window: Annotated[int, Field(ge=32)] = 128
    on_rollback: Then = "skip_rows"


class DivergenceGuard(ConfigModel):
    """The training loss, smoothed over `window` steps, has risen by `rise` above its lowest."""

    action: Literal["ignore", "warn", "stop", "rollback"] = "rollback"
    min_increase: Annotated[float, Field(gt=0)] = Field(default=1.0, description="nats a target; preferences: nats a pair")
    window: Positive = 50
    on_rollback: Then = "lower_lr"


class ValidationIncreaseGuard(ConfigModel):
    """The validation loss was higher than the time before, `times` evaluations in a row, and by `rise` of it in all."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    patience: Positive = 3
    min_increase: Share = Field(default=0.01, description="less is noise")


class PassRateGuard(ConfigModel):
    """Fewer of the regression prompts pass than this share."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    min_pass_rate: Share = 0.5


class RepetitionGuard(ConfigModel):
    """The answers to the regression prompts repeat themselves: the mean share of repeated pieces is above this one."""

    action: Literal["ignore", "warn", "stop"] = "warn"
    max_repetition: Share = 0.3


class ThroughputGuard(ConfigModel):
    """Tokens a second of the last 20 steps (a median) fell below this share of what they were over the 200 before."""

    action: Literal["ignore", "warn"] = "warn"
    min_speed_ratio: Share = 0.5


class DiskGuard(ConfigModel):
    """Less free space than `free` where the run is kept. Without it, saving still refuses what would not fit."""

    action: Literal["warn", "stop"] = "stop"
    min_free: Annotated[int, BeforeValidator(memory_size), Field(gt=0)] | None = None


class TimeGuard(ConfigModel):
    """The stage has trained for `after`: it ends as it is, and the next one goes on from there."""

    action: Literal["warn", "stop"] = "stop"
    max_time: Annotated[float, BeforeValidator(time_span), Field(gt=0)] | None = None


class RollbackConfig(ConfigModel):
    """After a roll-back to the last good checkpoint: with `skip_rows`, the rows at which it went wrong are passed over;
    with `lower_lr`, the learning rate is multiplied by `lr_factor` from there on."""

    retries: Annotated[int, Field(ge=0)] = Field(default=3, description="roll-backs of a stage; then it stops")
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5


def _guard(kind: type[ConfigModel]) -> Any:
    return Annotated[kind, BeforeValidator(_action)]


class GuardsConfig(ConfigModel):
    """The guards of a stage. `warn` tells, `stop` ends the run, `skip` leaves one update out, `rollback` goes back to the
    last good checkpoint. The name of an action alone is short for a mapping with it."""

    non_finite: _guard(NonFiniteGuard) = NonFiniteGuard()  # type: ignore[valid-type]
    grad_spike: _guard(GradSpikeGuard) = GradSpikeGuard()  # type: ignore[valid-type]
    loss_spike: _guard(LossSpikeGuard) = LossSpikeGuard()  # type: ignore[valid-type]
    divergence: _guard(DivergenceGuard) = DivergenceGuard()  # type: ignore[valid-type]
    validation_increase: _guard(ValidationIncreaseGuard) = ValidationIncreaseGuard()  # type: ignore[valid-type]
    pass_rate: _guard(PassRateGuard) = PassRateGuard()  # type: ignore[valid-type]
    repetition: _guard(RepetitionGuard) = RepetitionGuard()  # type: ignore[valid-type]
    throughput: _guard(ThroughputGuard) = ThroughputGuard()  # type: ignore[valid-type]
    disk: _guard(DiskGuard) = DiskGuard()  # type: ignore[valid-type]
    time: _guard(TimeGuard) = TimeGuard()  # type: ignore[valid-type]
    rollback: RollbackConfig = RollbackConfig()
