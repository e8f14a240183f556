"""Faults of stages on rewards: groups that say nothing, groups of several prompts, cut answers, a policy that runs away."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fledge.doctor_bench.condition import Fault, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.training import rollout_source


def _constant(setup: RunSetup, tokens: int) -> None:
    """A reward that nearly every answer gets in full."""
    setup.stage["rewards"] = [{"rule": "length", "max_tokens": tokens}]


def _misgrouped(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """Advantages are taken within groups of answers to different prompts, and given to the wrong answers."""

    def make(original: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def changed(rewards: np.ndarray, scale: str) -> np.ndarray:
            prompts, answers = rewards.shape
            return original(rewards.T.reshape(prompts, answers), scale)

        return changed

    return wrapping(rollout_source, "group_advantages", make)


def _wrong_sign(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    def make(original: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        return lambda rewards, scale: -original(rewards, scale)

    return wrapping(rollout_source, "group_advantages", make)


def _cut(setup: RunSetup, tokens: int) -> None:
    setup.stage["rollout"] = {**setup.stage["rollout"], "max_new_tokens": tokens}


def _runs_away(setup: RunSetup, factor: float) -> None:
    from fledge.doctor_bench.faults.rates import scale_rate

    scale_rate(setup, factor)


def _fault(name: str, levels: dict[str, Any], **more: Any) -> Fault:
    return Fault(**{"name": name, "category": "rewards", "shapes": ("grpo",), "levels": levels, **more})


FAULTS = (
    _fault("rewards constant", {"": 500}, prepare=_constant),
    _fault("groups wrongly formed", {"": None}, patch=_misgrouped, is_silent=True),
    _fault("advantages with the wrong sign", {"": None}, patch=_wrong_sign, is_silent=True),
    _fault("answers cut", {"3": 3, "2": 2}, prepare=_cut),
    _fault("policy runs away", {"15x": 15.0, "60x": 60.0}, prepare=_runs_away, category="learning rate"),
)
