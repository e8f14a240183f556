"""Direct preference optimization (Rafailov et al. 2023) and its relatives on packed pairs: with a reference or without one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.errors import FledgeError
from fledge.model.adapter_reference import AdapterReference, reference_model
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
)
from fledge.objective.language import target_log_probabilities, target_metrics
from fledge.objective.preference_losses import PREFERENCE_LOSSES, SMOOTHED_LOSSES, LossParams, PairLogps, PairLoss

PAIR = 2  # sequences of an example, side by side in a batch: the chosen one, then the rejected one

Reference = LanguageModel | AdapterReference | Tensor


def sequence_log_probabilities(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """For each of the S sequences of a batch, the weighted sum of its targets' log-probabilities and the sum of their weights,
    [S] each."""
    return sequence_logps_with_router_stats(model, batch)[:2]


def sequence_logps_with_router_stats(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, RouterStats | None]:
    """The results of `sequence_log_probabilities`, and the router statistics of a mixture of experts (None: a dense model)."""
    logps, routing = target_log_probabilities(model, batch)
    weights, ends = _targets_by_sequence(batch)
    return _segment_sums(logps * weights, ends), _segment_sums(weights, ends), routing


def _segment_sums(values: Tensor, ends: Tensor) -> Tensor:
    """The sum [S] of each of the S sequences, whose values lie one after another in `values` [n]: sequence s begins at
    `ends`[s]. Each sum has one order, on a GPU too, where `index_add` adds in the order in which threads arrive."""
    return torch.segment_reduce(values, "sum", offsets=ends, initial=0, unsafe=True)  # unsafe: checks would wait for a GPU


def by_pair(values: Tensor, batch: Batch) -> Tensor:
    """Values [S] of the sequences of a batch of pairs, as [pairs, 2]: chosen, rejected."""
    return values.view(len(batch.examples), PAIR)


def completion_lengths(batch: Batch) -> Tensor:
    """The summed weight [S] of the targets of each sequence."""
    return _segment_sums(*_targets_by_sequence(batch))


def _targets_by_sequence(batch: Batch) -> tuple[Tensor, Tensor]:
    """The weights [n] of all targets that have one, and the places [S + 1] at which each sequence begins among them."""
    index = batch.target_index
    owner = batch.sequence_ids.flatten()[index]
    ends = torch.searchsorted(owner, torch.arange(batch.num_sequences + 1, device=owner.device))
    return batch.loss_weights.flatten()[index], ends


def chosen_only(batch: Batch) -> Batch:
    """The batch of pairs with weight on the chosen completions alone."""
    chosen = (batch.sequence_ids % PAIR == 0) & (batch.sequence_ids < batch.num_sequences)
    # On a GPU the targets of all completions are computed, because the host would wait for those of the chosen ones.
    index = batch.known_target_index if batch.loss_weights.is_cuda else None
    return replace(batch, loss_weights=batch.loss_weights * chosen, known_target_index=index)


@dataclass(frozen=True, kw_only=True)
class DPOObjective:
    """A preference loss of the pairs of a batch, against a reference where the loss has one, summed over the pairs.

    `loss_type` is a key of `PREFERENCE_LOSSES`. `sft_loss_weight` α adds α × the mean negative log-likelihood of the chosen
    completion's tokens (compare Pang et al. 2024). `reference` is a frozen model, the model with an earlier adapter, or the
    table [examples, 2] of its log-probabilities; None stands for log-probabilities of 0, which is right for a loss without
    reference, and for others enough to measure how long a step takes. `token_bytes` [V] are the UTF-8 lengths of the tokens'
    texts, for bits per byte in evaluations. Raises FledgeError for label smoothing of a loss that has none.
    """

    loss_type: str
    beta: float
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.0
    sft_loss_weight: float = 0.0
    reference: Reference | None
    token_bytes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.label_smoothing and self.loss_type not in SMOOTHED_LOSSES:
            raise FledgeError(f"label smoothing is not defined for the {self.loss_type} loss", where="label_smoothing")

    @property
    def pair_loss(self) -> PairLoss:
        """The loss of a pair."""
        return PREFERENCE_LOSSES[self.loss_type]

    @property
    def params(self) -> LossParams:
        """The parameters of the loss."""
        return LossParams(self.beta, self.label_smoothing, self.simpo_gamma)

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the model with a reference."""
        return self.pair_loss.has_reference

    @property
    def loss_at_reference(self) -> float:
        """The loss of a pair where the model is the reference, without the SFT loss."""
        return self.pair_loss.at_reference(self.params)

    def normalizer(self, batch: Batch) -> float:
        """The number of pairs of the batch."""
        return float(len(batch.examples))

    def in_window(self, model: LanguageModel, batches: WindowBatches, sum_over_ranks: SumOverRanks) -> Self:
        """Itself: the loss of a pair depends on nothing else."""
        return self

    def reference_log_probabilities(self, batch: Batch) -> Tensor:
        """Summed log-probabilities [pairs, 2] of (chosen, rejected) under the reference."""
        if self.reference is None:
            return torch.zeros(len(batch.examples), PAIR, device=batch.input_ids.device)
        if isinstance(self.reference, Tensor):
            return self.reference[to_device(batch.examples, self.reference.device)].to(batch.input_ids.device)
        with torch.no_grad(), reference_model(self.reference) as model, eval_mode(model):
            sums = sequence_log_probabilities(model, batch.to(model.device))[0]
        return by_pair(sums, batch).to(batch.input_ids.device)

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        """The summed loss of the pairs, and their rewards and log-probabilities per pair."""
        return self.with_logps(model, batch)[0]

    def with_logps(self, model: LanguageModel, batch: Batch) -> tuple[LossOutput, PairLogps]:
        """The output for a batch, and the log-probabilities that it is made of."""
        sums, lengths, routing = sequence_logps_with_router_stats(model, batch)
        logps = PairLogps(by_pair(sums, batch), self.reference_log_probabilities(batch), by_pair(lengths, batch))
        loss = self.pair_loss(logps, self.params).sum()
        if self.sft_loss_weight:
            loss = loss - self.sft_loss_weight * logps.means[:, 0].sum()
        output = LossOutput(loss, self._metrics(logps, self.normalizer(batch)))
        return output.with_router_loss(model, routing, self.normalizer(batch)), logps

    @torch.no_grad()
    def _metrics(self, logps: PairLogps, pairs: float) -> dict[str, Ratio]:
        """Names are those of TRL where it has the metric; a pair counts as right only where the chosen reward is strictly
        larger. Rewards of a loss without reference are β times the mean log-probabilities, as in TRL."""
        rewards = logps.rewards(self.beta) if self.has_reference else self.beta * logps.means
        margins, lengths = rewards[:, 0] - rewards[:, 1], logps.lengths
        totals = {
            "rewards/chosen": rewards[:, 0].sum(),
            "rewards/rejected": rewards[:, 1].sum(),
            "rewards/margins": margins.sum(),
            "rewards/accuracies": (margins > 0).float().sum(),
            "logps/chosen": logps.policy[:, 0].sum(),
            "logps/rejected": logps.policy[:, 1].sum(),
            "log_odds": logps.log_odds().sum(),
            "sft_loss": -logps.means[:, 0].sum(),
            "lengths/chosen": lengths[:, 0].sum(),
            "lengths/rejected": lengths[:, 1].sum(),
        }
        shorter = lengths[:, 0] < lengths[:, 1]
        drift = {}
        if self.has_reference:
            moved = logps.policy - logps.reference
            drift = {
                "drift/chosen": Ratio(moved[:, 0].sum(), lengths[:, 0].sum()),
                "drift/rejected": Ratio(moved[:, 1].sum(), lengths[:, 1].sum()),
            }
        return {
            **{name: Ratio(total, pairs) for name, total in totals.items()},
            **drift,
            "rewards/accuracies_shorter": Ratio(((margins > 0) & shorter).float().sum(), shorter.float().sum()),
            **correlation_terms(margins, lengths[:, 0] - lengths[:, 1], pairs),
        }

    @torch.no_grad()
    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """`loss`, rewards and log-probabilities per pair; the share of pairs whose chosen completion is the more likely one
        (`logps/accuracies`); perplexity, token accuracy, tokens and bits per byte of the chosen completions; and `pairs`."""
        with eval_mode(model):
            output, logps = self.with_logps(model, batch)
        pairs = self.normalizer(batch)
        likelier = as_number((logps.policy[:, 0] > logps.policy[:, 1]).sum())
        return {
            **target_metrics(model, chosen_only(batch), self.token_bytes),
            "loss": Ratio(as_number(output.loss), pairs),
            "pairs": Ratio(pairs, 1.0, integer_total),
            "logps/accuracies": Ratio(likelier, pairs),
            **output.metric_numbers(),
        }


@torch.no_grad()
def compute_ref_log_probs(
    model: LanguageModel,
    batches: Iterable[Batch],
    num_pairs: int,
    device: torch.device,
    *,
    begun: Tensor | None = None,
    after_batch: Callable[[Tensor], None] = lambda table: None,
) -> Tensor:
    """The table [num_pairs, 2] of summed log-probabilities of all pairs under the reference, on the CPU.

    `begun`: a table in which NaN stands for pairs that are not scored yet; batches without such a pair are passed over.
    `after_batch` is called with the table after each scored batch."""
    table = torch.full((num_pairs, PAIR), float("nan")) if begun is None else begun
    for batch in batches:
        examples = torch.tensor(batch.examples, dtype=torch.long)
        if not table[examples].isnan().any():
            continue
        with eval_mode(model):
            sums, _ = sequence_log_probabilities(model, batch.to(device))
        table[examples] = by_pair(sums, batch).cpu()
        after_batch(table)
    if table.isnan().any():
        raise AssertionError("a pair was not scored by the reference")
    return table
