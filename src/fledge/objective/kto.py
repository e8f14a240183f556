"""Kahneman–Tversky optimization (Ethayarajh et al. 2024) of answers that are labelled desirable or undesirable.

An example has two sequences: the answer, and an unrelated answer behind the same prompt. The unrelated ones estimate how far
the model has moved from the reference (`kl`), the point that rewards are compared with. It is one number for all answers of an
update, whatever its micro-batches and ranks, so a first pass without gradients over the unrelated answers comes before them.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.device_copy import to_device
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
from fledge.objective.language import target_metrics
from fledge.objective.preference import (
    PAIR,
    Reference,
    reference_model,
    sequence_log_probabilities,
    sequence_logps_with_router_stats,
)
from fledge.objective.preference_losses import kto_loss

ANSWER, UNRELATED = range(PAIR)  # places of the sequences of an example


def sequences_at(batch: Batch, place: int) -> Batch:
    """The batch of the sequences at one place of their examples alone, in packed rows of half the length.

    The two places of a packed row hold at most half of its positions each (`ExampleFormat.halves_rows`)."""
    owners = batch.sequence_ids
    kept = (owners % PAIR == place) & (owners < batch.num_sequences)
    order = torch.argsort(~kept, dim=1, stable=True)[:, : owners.shape[1] // PAIR]
    kept = kept.gather(1, order)
    num_sequences = batch.num_sequences // PAIR

    def at(tensor: Tensor, padding: int = 0) -> Tensor:
        return torch.where(kept, tensor.gather(1, order), padding)

    return Batch(
        input_ids=at(batch.input_ids),
        targets=at(batch.targets),
        loss_weights=at(batch.loss_weights),
        position_ids=at(batch.position_ids),
        documents=at(batch.documents),
        sequence_ids=at(owners // PAIR, num_sequences),
        num_sequences=num_sequences,
        examples=batch.examples,
    )


@dataclass(frozen=True)
class Window:
    """What the answers of an update have in common: the estimate of KL(π ‖ π_ref) in nats, at least 0, and the numbers of
    desirable and of undesirable answers, over all ranks."""

    kl: float
    desirable: float
    undesirable: float


@dataclass(frozen=True, kw_only=True)
class KTOObjective:
    """The KTO loss of the labelled answers of a batch, summed over them.

    `labels` bool [examples]: whether each example's answer is desirable; `desirable_weight` and `undesirable_weight` are the
    paper's λ. `reference`: as in `DPOObjective`, where the table [examples, 2] is of (answer, unrelated answer). `window`: of
    the update that the batch belongs to (`in_window`); None, while time is measured, stands for a model that has not moved.
    """

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    labels: Tensor
    reference: Reference | None
    token_bytes: Tensor | None = None
    window: Window | None = None

    has_reference = True

    @property
    def loss_at_reference(self) -> float:
        """The mean loss of the window's answers where the model is the reference: half the mean weight of their labels."""
        window = self.window or Window(0.0, 1.0, 1.0)
        weights = self.desirable_weight * window.desirable + self.undesirable_weight * window.undesirable
        return weights / (window.desirable + window.undesirable) / 2

    def normalizer(self, batch: Batch) -> float:
        """The number of answers of the batch."""
        return float(len(batch.examples))

    def desirable(self, batch: Batch) -> Tensor:
        """Whether each answer of the batch is desirable, bool [answers]."""
        return self.labels[to_device(batch.examples, self.labels.device)].to(batch.input_ids.device)

    def _reference_logps(self, batch: Batch, place: int, part: Batch) -> Tensor:
        """Summed log-probabilities [answers] of the sequences at a place, which `part` holds, under the reference."""
        if self.reference is None:
            return torch.zeros(len(batch.examples), device=batch.input_ids.device)
        if isinstance(self.reference, Tensor):
            return self.reference[to_device(batch.examples, self.reference.device), place].to(batch.input_ids.device)
        with torch.no_grad(), reference_model(self.reference) as model, eval_mode(model):
            return sequence_log_probabilities(model, part.to(model.device))[0].to(batch.input_ids.device)

    @torch.no_grad()
    def in_window(self, model: LanguageModel, batches: WindowBatches, sum_over_ranks: SumOverRanks) -> Self:
        """The objective with the estimate of KL(π ‖ π_ref), the mean of log π − log π_ref over the unrelated answers, at least
        0 (Ethayarajh et al. 2024, §4.1), and with the numbers of answers."""
        total, desirable, count = 0.0, 0.0, 0.0
        for batch, counts in batches():
            part = sequences_at(batch, UNRELATED)
            with eval_mode(model):
                logps = sequence_log_probabilities(model, part)[0]
            if counts:
                total += float((logps - self._reference_logps(batch, UNRELATED, part)).sum(dtype=torch.float64))
                desirable += float(self.desirable(batch).sum())
                count += len(batch.examples)
        total, desirable, count = sum_over_ranks((total, desirable, count))
        return replace(self, window=Window(max(0.0, total / max(1.0, count)), desirable, count - desirable))

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        """The summed loss of the answers, and their rewards and log-probabilities by label."""
        part = sequences_at(batch, ANSWER)
        sums, lengths, routing = sequence_logps_with_router_stats(model, part)
        desirable, reference = self.desirable(batch), self._reference_logps(batch, ANSWER, part)
        kl = 0.0 if self.window is None else self.window.kl
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        loss = (weights * kto_loss(sums - reference, desirable, kl, self.beta)).sum()
        output = LossOutput(loss, self._metrics(sums, reference, lengths, desirable))
        return output.with_router_loss(model, routing, self.normalizer(batch))

    @torch.no_grad()
    def _metrics(self, sums: Tensor, reference: Tensor, lengths: Tensor, desirable: Tensor) -> dict[str, Ratio]:
        """Means over the answers of one label have the names that DPO has for chosen and rejected ones. An answer counts as
        right where its reward is above the reference point β · kl if it is desirable, and below if it is not."""
        answers = float(len(desirable))
        window = self.window or Window(0.0, float(desirable.sum()), float((~desirable).sum()))
        moved = sums - reference
        rewards, point = self.beta * moved, self.beta * window.kl
        metrics = {"kl": Ratio(torch.full_like(sums.sum(), window.kl) * answers, answers)}
        margins = torch.zeros_like(sums.sum())
        for name, chosen, count, sign in (
            ("chosen", desirable, window.desirable, 1.0),
            ("rejected", ~desirable, window.undesirable, -1.0),
        ):
            number = chosen.sum()
            metrics |= {
                f"rewards/{name}": Ratio((rewards * chosen).sum(), number),
                f"logps/{name}": Ratio((sums * chosen).sum(), number),
                f"drift/{name}": Ratio((moved * chosen).sum(), (lengths * chosen).sum()),
                f"lengths/{name}": Ratio((lengths * chosen).sum(), number),
            }
            margins = margins + (sign / count if count else 0.0) * (rewards * chosen).sum()
        right = torch.where(desirable, rewards > point, rewards < point)
        all_answers = window.desirable + window.undesirable
        has_both = float(bool(window.desirable and window.undesirable))  # else there is no margin
        return {
            **metrics,
            "rewards/margins": Ratio(margins * has_both, has_both * answers / max(1.0, all_answers)),
            "rewards/accuracies": Ratio(right.float().sum(), answers),
            **correlation_terms(rewards, lengths, answers),
        }

    @torch.no_grad()
    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """`loss` and the metrics of training; perplexity, token accuracy, tokens and bits per byte of the desirable answers;
        and `answers`, their number."""
        with eval_mode(model):
            output = self(model, batch)
        return {
            **target_metrics(model, self._desirable_only(batch), self.token_bytes),
            "loss": Ratio(as_number(output.loss), self.normalizer(batch)),
            "answers": Ratio(self.normalizer(batch), 1.0, integer_total),
            **output.metric_numbers(),
        }

    def _desirable_only(self, batch: Batch) -> Batch:
        """The answers of the batch, with weight on the desirable ones alone."""
        part = sequences_at(batch, ANSWER)
        of_sequence = torch.cat((self.desirable(batch), torch.zeros(1, dtype=torch.bool, device=part.input_ids.device)))
        return replace(part, loss_weights=part.loss_weights * of_sequence[part.sequence_ids])
