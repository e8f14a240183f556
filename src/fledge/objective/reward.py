"""A reward model from pairs of answers (Bradley & Terry 1952; Stiennon et al. 2020; Ouyang et al. 2022)."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.data import Batch
from fledge.model.device_copy import to_device
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective.base import (
    LossOutput,
    Ratio,
    SumOverRanks,
    WindowBatches,
    as_number,
    correlation_terms,
    integer_total,
    spread_terms,
)
from fledge.objective.preference import by_pair, completion_lengths


def last_positions(batch: Batch, pad: int) -> Tensor:
    """The flat position b · T + t [S] of the last token of each sequence that is no padding token, where transformers'
    sequence classifiers read, too."""
    tokens, owner = batch.input_ids.flatten(), batch.sequence_ids.flatten()
    places = torch.arange(len(tokens), device=tokens.device).masked_fill(tokens == pad, 0)
    last = torch.zeros(batch.num_sequences + 1, dtype=torch.long, device=tokens.device)
    return last.scatter_reduce(0, owner, places, "amax")[: batch.num_sequences]


def sequence_rewards(model: LanguageModel, batch: Batch, pad: int) -> tuple[Tensor, RouterStats | None]:
    """The reward [S] of each sequence of a batch, and the router statistics of a mixture of experts (None: a dense model)."""
    states, routing = model.forward_with_router_stats(*batch.model_inputs)
    return model.rewards(states.flatten(0, 1)[last_positions(batch, pad)]), routing


def reward_loss(rewards: Tensor, margins: Tensor, center_rewards_coefficient: float = 0.0) -> Tensor:
    """−log σ(r_c − r_r − m) + γ · (r_c + r_r)² [P] for rewards [P, 2] of (chosen, rejected) and margins m [P] (Ouyang et al.
    2022, eq. 1). Margins as in Touvron et al. 2023, eq. 2; the second term (Eisenstein et al. 2023, eq. 2) keeps rewards around
    0."""
    loss = -F.logsigmoid(rewards[:, 0] - rewards[:, 1] - margins)
    if center_rewards_coefficient:
        loss = loss + center_rewards_coefficient * rewards.sum(dim=1) ** 2
    return loss


def _better_than_half(total: Tensor | float, count: Tensor | float) -> Tensor | float:
    """The accuracy of the better of a rule and its opposite, where right ÷ all − ½ = total ÷ count."""
    return 0.5 + abs(total / count)


@dataclass(frozen=True, kw_only=True)
class RewardObjective:
    """The loss of a reward model on the pairs of a batch, summed over them.

    `margins` float32 [examples]: by how much each chosen answer is to be rewarded more. `pad`: the padding token.
    `center_rewards_coefficient` γ as in `reward_loss`.
    """

    margins: Tensor
    pad: int
    center_rewards_coefficient: float = 0.0

    def normalizer(self, batch: Batch) -> float:
        """The number of pairs of the batch."""
        return float(len(batch.examples))

    def in_window(self, model: LanguageModel, batches: WindowBatches, sum_over_ranks: SumOverRanks) -> Self:
        """Itself: the loss of a pair depends on nothing else."""
        return self

    def pair_losses(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, RouterStats | None]:
        """The loss [P] and the rewards [P, 2] of each pair of the batch, and the router statistics."""
        flat, routing = sequence_rewards(model, batch, self.pad)
        rewards = by_pair(flat, batch)
        margins = self.margins[to_device(batch.examples, self.margins.device)].to(rewards.device)
        return reward_loss(rewards, margins, self.center_rewards_coefficient), rewards, routing

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        """The summed loss of the pairs, and their rewards."""
        losses, rewards, routing = self.pair_losses(model, batch)
        output = LossOutput(losses.sum(), self._metrics(rewards.detach(), by_pair(completion_lengths(batch), batch)))
        return output.with_router_loss(model, routing, self.normalizer(batch))

    @torch.no_grad()
    def _metrics(self, rewards: Tensor, lengths: Tensor) -> dict[str, Ratio]:
        """Names are those of a preference stage. A pair counts as right only where the chosen answer has strictly the larger
        reward. `length_baseline`: the accuracy of the length alone, of whichever answer is right more often, the longer or the
        shorter one; of equal lengths half are right.
        `pairs`: their number."""
        pairs, (chosen, rejected) = float(len(rewards)), rewards.unbind(1)
        margins, longer = chosen - rejected, lengths[:, 0] - lengths[:, 1]
        right = (margins > 0).float()
        is_shorter, is_longer = (longer < 0).float(), (longer > 0).float()
        return {
            **spread_terms("rewards/chosen", "rewards/chosen_std", chosen, pairs),
            **spread_terms("rewards/rejected", "rewards/rejected_std", rejected, pairs),
            "pairs": Ratio(pairs, 1.0, integer_total),
            "rewards/margins": Ratio(margins.sum(), pairs),
            "rewards/accuracies": Ratio(right.sum(), pairs),
            "rewards/accuracies_shorter": Ratio((right * is_shorter).sum(), is_shorter.sum()),
            "rewards/accuracies_longer": Ratio((right * is_longer).sum(), is_longer.sum()),
            "lengths/chosen": Ratio(lengths[:, 0].sum(), pairs),
            "lengths/rejected": Ratio(lengths[:, 1].sum(), pairs),
            "length_baseline": Ratio(longer.sign().sum() / 2, pairs, _better_than_half),
            **correlation_terms(margins, longer, pairs),
        }

    @torch.no_grad()
    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """`loss`, and the metrics of training."""
        with eval_mode(model):
            output = self(model, batch)
        return {"loss": Ratio(as_number(output.loss), self.normalizer(batch)), **output.metric_numbers()}
