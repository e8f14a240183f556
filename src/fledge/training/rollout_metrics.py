"""The answers to one prompt, and the metrics of all answers of a rollout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fledge.generation import Completion, FinishReason
from fledge.training.rollout import DrawnAnswer, RewardTable, has_equal_rewards, length_correlation


@dataclass(kw_only=True)
class Group:
    """The G answers to one prompt, which this rank or another one has drawn.

    `step`, `row`, `example`: the update that trains them, the prompt's packed row in the stream and its number in the data.
    `prompt`, `answer`: tokens of the prompt and of the reference answer. `tokens`: of the answers, with the stop token.
    `logps`: their log-probabilities under the generator; empty where it gives none. `rewards` [G, R]. `attempts`: how often the
    group was drawn again.
    """

    step: int
    row: int
    example: int
    prompt: list[int]
    answer: list[int]
    tokens: list[list[int]] = field(default_factory=list)
    logps: list[list[float]] = field(default_factory=list)
    reasons: list[FinishReason] = field(default_factory=list)
    rewards: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    attempts: int = 0

    def fill(self, drawn: Sequence[DrawnAnswer], completions: Sequence[Completion], rewards: np.ndarray, attempt: int) -> None:
        """Take over G answers, in place of earlier ones."""
        self.tokens = [list(one.completion_tokens) for one in drawn]
        self.reasons = [one.finish_reason for one in drawn]
        self.rewards, self.attempts = rewards, attempt
        self.logps = [
            [*one.logprobs, *([] if one.stop_logprob is None else [one.stop_logprob])]
            for one in completions
            if one.logprobs is not None
        ]

    def as_json(self) -> dict[str, Any]:
        """The group as JSON values, for other ranks."""
        return {**vars(self), "rewards": self.rewards.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Group":
        """The group from the values of `as_json`."""
        return cls(**{**values, "rewards": np.asarray(values["rewards"], np.float64)})


def rollout_metrics(groups: Sequence[Group], totals: np.ndarray, rewards: RewardTable) -> dict[str, float]:
    """The metrics of a rollout; `totals` [P, G]: the weighted sums of rewards. Names are those of TRL where it has them.

    `frac_reward_zero_std` is the share of groups whose rewards are all equal, after `groups_redrawn`, the share of groups that
    were drawn again; lengths are in tokens, the stop token included; `unique_fraction` is the share of different answers in a
    group, and `length_reward_correlation` is left out where lengths or rewards do not vary."""
    values = np.concatenate([group.rewards for group in groups])
    lengths = np.asarray([[len(tokens) for tokens in group.tokens] for group in groups], np.float64)
    cut = np.asarray([[reason == "length" for reason in group.reasons] for group in groups])
    unique = [len({tuple(tokens) for tokens in group.tokens}) / len(group.tokens) for group in groups]
    metrics = {
        "reward": totals.mean(),
        "reward_std": totals.std(axis=1, ddof=1).mean(),
        "frac_reward_zero_std": np.mean([has_equal_rewards(group) for group in totals]),
        "groups_redrawn": np.mean([group.attempts > 0 for group in groups]),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": cut.mean(),
        "completions/unique_fraction": np.mean(unique),
    }
    for number, name in enumerate(rewards.names):
        metrics |= {f"rewards/{name}/mean": values[:, number].mean(), f"rewards/{name}/std": values[:, number].std(ddof=1)}
    correlation = length_correlation(totals, lengths)
    if correlation is not None:
        metrics["completions/length_reward_correlation"] = correlation
    return {name: float(value) for name, value in metrics.items()}
