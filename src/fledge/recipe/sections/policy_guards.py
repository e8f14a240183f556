"""The guards of a stage that trains on rewards."""

from typing import Annotated, Literal

from pydantic import Field

from fledge.recipe.sections.base import ConfigModel, Fraction, Positive
from fledge.recipe.sections.guards import CommonGuards, DivergenceGuard, guard

Action = Literal["ignore", "warn", "stop"]


class RewardHackingGuard(ConfigModel):
    """The score of held-out answers fell by `min_fall` from its best value, while the mean training reward did not fall: what
    the rewards count is not what is wanted."""

    action: Action = "warn"
    min_fall: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.05, description="of the share of exact answers")


class EntropyCollapseGuard(ConfigModel):
    """The entropy of the answers, averaged over `window` updates, is below the fraction `min_fraction` of what it was over the
    first ones, while most groups have equal rewards: the model gives one answer to a question, right or wrong."""

    action: Action = "warn"
    min_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    window: Positive = 10


class LengthHackingGuard(ConfigModel):
    """The mean length of answers, averaged over `window` updates, is `factor` times what it was over the first ones, or the
    inverse of it, and the score of held-out answers is not better than at the start."""

    action: Action = "warn"
    factor: Annotated[float, Field(gt=1)] = 1.5
    window: Positive = 10


class TruncatedGuard(ConfigModel):
    """The share of answers that are cut at rollout.max_new_tokens, averaged over `window` updates, is above `max_share`."""

    action: Action = "warn"
    max_share: Fraction = 0.5
    window: Positive = 10


class EqualGroupsGuard(ConfigModel):
    """The share of groups whose rewards are all equal, averaged over `window` updates, is above `max_share`: such groups teach
    nothing."""

    action: Action = "warn"
    max_share: Fraction = 0.9
    window: Positive = 20


class PolicyGuardsConfig(CommonGuards):
    """The guards of a stage that trains on rewards. There is no guard of its validation loss, which may rise, and `divergence`
    is off: the loss scatters around 0 while rewards rise, and its rows cannot be measured again."""

    divergence: guard(DivergenceGuard) = DivergenceGuard(action="ignore")  # type: ignore[valid-type]

    reward_hacking: guard(RewardHackingGuard) = RewardHackingGuard()  # type: ignore[valid-type]
    entropy_collapse: guard(EntropyCollapseGuard) = EntropyCollapseGuard()  # type: ignore[valid-type]
    length_hacking: guard(LengthHackingGuard) = LengthHackingGuard()  # type: ignore[valid-type]
    truncated: guard(TruncatedGuard) = TruncatedGuard()  # type: ignore[valid-type]
    equal_groups: guard(EqualGroupsGuard) = EqualGroupsGuard()  # type: ignore[valid-type]
