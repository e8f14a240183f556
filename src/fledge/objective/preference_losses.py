"""The losses of direct preference optimization, each a function of a pair's log-probabilities.

Let Δ = (log π(c) − log π_ref(c)) − (log π(r) − log π_ref(r)) for a chosen completion c and a rejected completion r. At the
first step the policy π is the reference π_ref, so Δ = 0: the loss of a pair is ln 2 for `sigmoid`, 1 for `hinge` and
(1 / (2β))² for `ipo`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of P pairs, summed over the tokens of each completion. Every tensor is [P, 2]: chosen, rejected.

    `lengths`: summed weights of each completion's tokens, which is its number of tokens if all weights are 1.
    """

    policy: Tensor
    reference: Tensor
    lengths: Tensor

    def rewards(self, beta: float) -> Tensor:
        """The implicit rewards β · (log π − log π_ref) [P, 2] (Rafailov et al. 2023, §4)."""
        return beta * (self.policy - self.reference)

    def delta(self, beta: float) -> Tensor:
        """Δ [P], from the rewards that are reported."""
        rewards = self.rewards(beta)
        return (rewards[:, 0] - rewards[:, 1]) / beta

    def mean_delta(self) -> Tensor:
        """Δ [P] of log-probabilities that are averaged over the tokens of each completion."""
        averages = (self.policy - self.reference) / self.lengths
        return averages[:, 0] - averages[:, 1]


@dataclass(frozen=True)
class LossParams:
    """Parameters of a preference loss: β, and the share ε of pairs whose labels are taken to be flipped."""

    beta: float
    label_smoothing: float = 0.0


def sigmoid_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """−log σ(βΔ) [P] (Rafailov et al. 2023, eq. 7); with label smoothing ε, (1 − ε) · (−log σ(βΔ)) + ε · (−log σ(−βΔ))
    (conservative DPO: Mitchell 2023)."""
    beta, epsilon, delta = params.beta, params.label_smoothing, logps.delta(params.beta)
    loss = -F.logsigmoid(beta * delta)
    if epsilon:
        loss = (1 - epsilon) * loss - epsilon * F.logsigmoid(-beta * delta)
    return loss


def hinge_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """max(0, 1 − βΔ) [P] (SLiC-HF: Zhao et al. 2023; on implicit rewards: Liu et al. 2024)."""
    return F.relu(1 - params.beta * logps.delta(params.beta))


def ipo_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """(Δ̄ − 1 / (2β))² [P] (Azar et al. 2024, eq. 17). Δ̄ is the difference of log-probabilities averaged over the tokens of
    each completion, like in TRL: with sums, the square would grow with the lengths of the completions."""
    return (logps.mean_delta() - 1 / (2 * params.beta)) ** 2


PREFERENCE_LOSSES: dict[str, Callable[[PairLogps, LossParams], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
}
SMOOTHED_LOSSES = ("sigmoid",)  # the losses that label smoothing is defined for
