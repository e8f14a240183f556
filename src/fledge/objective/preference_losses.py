"""The losses of preference optimization, each a function of a pair's log-probabilities.

Let Δ = (log π(c) − log π_ref(c)) − (log π(r) − log π_ref(r)) for a chosen completion c and a rejected completion r, and let a
bar mean that log-probabilities are averaged over the tokens of each completion. At the first step the policy π is the reference
π_ref, so Δ = 0: the loss of a pair is ln 2 for `sigmoid`, `robust` and `sigmoid_norm`, 1 for `hinge` and (1 / (2β))² for `ipo`.
`simpo` and `orpo` have no reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
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

    @property
    def means(self) -> Tensor:
        """log π [P, 2], averaged over the tokens of each completion."""
        return self.policy / self.lengths

    def mean_delta(self) -> Tensor:
        """Δ̄ [P]."""
        averages = (self.policy - self.reference) / self.lengths
        return averages[:, 0] - averages[:, 1]

    def log_odds(self) -> Tensor:
        """log [odds(c) / odds(r)] [P] with odds(y) = p̄ / (1 − p̄), where p̄ is the geometric mean of the probabilities of the
        tokens (Hong et al. 2024, eq. 4 and 7)."""
        means = self.means
        against = log1mexp(means)
        return (means[:, 0] - means[:, 1]) - (against[:, 0] - against[:, 1])


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0, exact for x near 0 and far from it (Mächler 2012). x = 0, a certain completion, counts as the
    largest number below 0."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -0.6931471805599453
    small, large = torch.where(near, x, -1.0), torch.where(near, -1.0, x)  # so that no branch has an infinite gradient
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


@dataclass(frozen=True)
class LossParams:
    """Parameters of a loss: β, the share ε of pairs whose labels are taken to be flipped, and the target margin γ."""

    beta: float
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.0


def sigmoid_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """−log σ(βΔ) [P] (Rafailov et al. 2023, eq. 7); with label smoothing ε, (1 − ε) · (−log σ(βΔ)) + ε · (−log σ(−βΔ))
    (conservative DPO: Mitchell 2023)."""
    beta, epsilon, delta = params.beta, params.label_smoothing, logps.delta(params.beta)
    loss = -F.logsigmoid(beta * delta)
    if epsilon:
        loss = (1 - epsilon) * loss - epsilon * F.logsigmoid(-beta * delta)
    return loss


def robust_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """[(1 − ε) · (−log σ(βΔ)) − ε · (−log σ(−βΔ))] / (1 − 2ε) [P]: its mean over pairs, of which a share ε is flipped, is the
    mean of the sigmoid loss over pairs without flips (Chowdhury et al. 2024, eq. 12)."""
    beta, epsilon, delta = params.beta, params.label_smoothing, logps.delta(params.beta)
    kept, flipped = -F.logsigmoid(beta * delta), -F.logsigmoid(-beta * delta)
    return ((1 - epsilon) * kept - epsilon * flipped) / (1 - 2 * epsilon)


def sigmoid_norm_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """−log σ(βΔ̄) [P]: the sigmoid loss on log-probabilities averaged over the tokens of each completion, as in TRL."""
    return -F.logsigmoid(params.beta * logps.mean_delta())


def hinge_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """max(0, 1 − βΔ) [P] (SLiC-HF: Zhao et al. 2023; on implicit rewards: Liu et al. 2024)."""
    return F.relu(1 - params.beta * logps.delta(params.beta))


def ipo_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """(Δ̄ − 1 / (2β))² [P] (Azar et al. 2024, eq. 17). Δ̄ is the difference of log-probabilities averaged over the tokens of
    each completion, like in TRL: with sums, the square would grow with the lengths of the completions."""
    return (logps.mean_delta() - 1 / (2 * params.beta)) ** 2


def simpo_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """−log σ(β · (mean log π(c) − mean log π(r)) − γ) [P] (Meng et al. 2024, eq. 6)."""
    means = logps.means
    return -F.logsigmoid(params.beta * (means[:, 0] - means[:, 1]) - params.simpo_gamma)


def orpo_loss(logps: PairLogps, params: LossParams) -> Tensor:
    """−mean log π(c) + λ · (−log σ(log [odds(c) / odds(r)])) [P], where λ is β (Hong et al. 2024, eq. 6-7). The first term is
    the SFT loss of the completion alone; TRL's includes the prompt."""
    return -logps.means[:, 0] - params.beta * F.logsigmoid(logps.log_odds())


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs. `has_reference`: whether it reads the log-probabilities of the reference."""

    function: Callable[[PairLogps, LossParams], Tensor]
    has_reference: bool = True
    smoothed: bool = False  # whether it reads label_smoothing

    def __call__(self, logps: PairLogps, params: LossParams) -> Tensor:
        """The loss of each pair [P]."""
        return self.function(logps, params)

    def at_reference(self, params: LossParams) -> float:
        """The loss of a pair where the policy is the reference, for a loss with one."""
        equal = torch.zeros(1, 2, dtype=torch.float64)
        return float(self.function(PairLogps(equal, equal, torch.ones_like(equal)), params))


PREFERENCE_LOSSES: dict[str, PairLoss] = {
    "sigmoid": PairLoss(sigmoid_loss, smoothed=True),
    "robust": PairLoss(robust_loss, smoothed=True),
    "sigmoid_norm": PairLoss(sigmoid_norm_loss),
    "hinge": PairLoss(hinge_loss),
    "ipo": PairLoss(ipo_loss),
    "simpo": PairLoss(simpo_loss, has_reference=False),
    "orpo": PairLoss(orpo_loss, has_reference=False),
}
SMOOTHED_LOSSES = tuple(name for name, loss in PREFERENCE_LOSSES.items() if loss.smoothed)


def kto_loss(log_ratios: Tensor, desirable: Tensor, kl: Tensor | float, beta: float) -> Tensor:
    """1 − σ(β · (log_ratio − z)) for a desirable answer and 1 − σ(β · (z − log_ratio)) for an undesirable one [E]
    (Ethayarajh et al. 2024, eq. 8), before the weights λ.

    `log_ratios` [E]: log π − log π_ref, summed over the tokens of each answer. `desirable` bool [E]. `kl`: the reference point
    z ≥ 0, an estimate of KL(π ‖ π_ref) from answers to other prompts, without a gradient.
    """
    sign = torch.where(desirable, 1.0, -1.0).to(log_ratios.dtype)
    return torch.sigmoid(-sign * beta * (log_ratios - kl))
