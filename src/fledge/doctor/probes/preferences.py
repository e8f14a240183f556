"""Probes of a stage on preferences: the policy against itself, the reference, and what the trainer's loss does when chosen
answers gain on rejected ones.

The last one moves the weights of a copy along the gradient of the margin, computed by the doctor's own code from the rows of
the data, and looks at the trainer's loss as a black box: a loss that has the wrong sign, ignores margins or has no scale shows
there, wherever its mistake is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fledge.data import Batch
from fledge.data.storage import Examples
from fledge.diagnosis.case import Figure
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import figure, left_out
from fledge.doctor.probes.rows import Row, RowMaker, hidden_states, padded
from fledge.doctor.probes.trainer import TrainerParts
from fledge.model.adapter_reference import reference_model
from fledge.model.protocol import LanguageModel
from fledge.objective import DPOObjective, KTOObjective, Objective, RewardObjective
from fledge.objective import preference as preference_module

STEPS = (0.25, 1.0, 2.0)  # nats by which chosen answers gain, to first order
NOISE = 0.1  # of the weights' RMS, added to a policy that equals its reference, so that it is another model
SATURATED = 1e-5  # relative change of a loss without reference that is taken for none
ROWS_AT_ONCE = 16
AT_REFERENCE: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda beta: math.log(2),
    "robust": lambda beta: math.log(2),
    "sigmoid_norm": lambda beta: math.log(2),
    "hinge": lambda beta: 1.0,
    "ipo": lambda beta: (1 / (2 * beta)) ** 2,
}
"""What the loss of a pair is, as a function of β, where policy and reference are one (each paper's definition at Δ = 0)."""


# -- the doctor's own log-probabilities ---------------------------------------------------------------------------------------


def rows_of(context: ProbeContext, examples: Examples, place: int) -> list[Row]:
    """The rows of the sequences at a place of all examples, whole: the last token of one that was cut is a target, and no
    position of the model."""
    count = examples.sequences_per_example
    sequences = [examples.sequence(number * count + place) for number in range(examples.count)]
    longest = max(len(tokens) for tokens, _ in sequences)
    maker = RowMaker(context.material.tokenizer, longest, has_answers=context.maker.has_answers)
    return [maker.row(tokens, weights, number) for number, (tokens, weights) in enumerate(sequences)]


def log_probabilities(model: LanguageModel, rows: Sequence[Row], pad: int) -> Tensor:
    """Σ weight · log p of the targets of each row [R], with gradients if they are on."""
    sums: list[Tensor] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        hidden, _ = hidden_states(model, [row.tokens[:-1] for row in part], pad)
        tokens, _ = padded([row.tokens for row in part], pad)
        weights = torch.zeros(tokens.shape)
        for place, row in enumerate(part):
            weights[place, : len(row.tokens)] = torch.from_numpy(row.weights * row.supervised)
        owner, targets = torch.nonzero(weights, as_tuple=True)
        logps = model.logits(hidden[owner, targets - 1]).log_softmax(-1)
        chosen = logps.gather(-1, tokens[owner, targets][:, None])[:, 0] * weights[owner, targets]
        sums.append(torch.zeros(len(part)).index_add(0, owner, chosen))
    return torch.cat(sums)


def rewards(model: LanguageModel, rows: Sequence[Row], pad: int) -> Tensor:
    """The reward of each row [R], read where the trainer reads it: at the last token but the one that ends the row."""
    found: list[Tensor] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        hidden, _ = hidden_states(model, [row.tokens[:-1] for row in part], pad)
        found += [model.rewards(hidden[place, len(row.tokens) - 2]) for place, row in enumerate(part)]
    return torch.stack(found)


@dataclass(frozen=True)
class Sides:
    """The rows that are to gain and those that are to lose."""

    chosen: list[Row]
    rejected: list[Row]
    pad: int

    def margin(self, model: LanguageModel) -> Tensor:
        """Mean score of the chosen rows − that of the rejected ones: log-probabilities, or rewards of a reward model."""
        score = log_probabilities if model.score_weight is None else rewards
        return score(model, self.chosen, self.pad).mean() - score(model, self.rejected, self.pad).mean()


def sides_of(context: ProbeContext) -> Sides:
    """Both sides of the examples that the trainer's parts hold: of pairs each answer, of labelled answers by their labels."""
    examples, pad = context.trainer.train.examples, context.material.tokenizer.pad
    first = rows_of(context, examples, 0)
    if examples.labels is None:
        return Sides(first, rows_of(context, examples, 1), pad)
    good, bad = ([row for row in first if bool(examples.labels[row.example]) is wanted] for wanted in (True, False))
    if not good or not bad:
        raise left_out("the sample holds answers of one label only")
    return Sides(good, bad, pad)


# -- the trainer's loss -------------------------------------------------------------------------------------------------------


def all_examples(parts: TrainerParts) -> Batch:
    """All examples of the trainer's parts in one micro-batch of its loader."""
    parts.check_size()
    rows = len(parts.train)
    return parts.step_batch(rows, rows).batches[0]


@torch.no_grad()
def preference_loss(objective: Objective, model: LanguageModel, batch: Batch) -> float:
    """The trainer's mean loss of a batch in evaluation mode, without the SFT loss that a recipe may add to it."""
    window = objective.in_window(model, lambda: [(batch, True)], list)
    metrics = {name: ratio.value for name, ratio in window.evaluate(model, batch).items() if ratio.count}
    loss = float(metrics["loss"])
    return loss - objective.sft_loss_weight * float(metrics["sft_loss"]) if isinstance(objective, DPOObjective) else loss


# -- the policy against itself ------------------------------------------------------------------------------------------------


def at_reference(context: ProbeContext) -> Mapping[str, Figure | None]:
    """Loss and margins of the policy with the start weights, which are those of the reference."""
    parts = context.trainer
    expected = _expected(parts)
    objective, batch = parts.objective, all_examples(parts)
    with parts.weights("start") as model:
        loss = preference_loss(objective, model.eval(), batch)
        margin = _largest_margin(objective, model, batch)
    note = f"{len(batch.examples)} examples, before the first update"
    return {
        "probe/reference_loss": figure(loss, note),
        "probe/reference_loss_expected": figure(expected),
        "probe/reference_margin": None if margin is None else figure(margin, note),
    }


def _expected(parts: TrainerParts) -> float:
    """The loss where policy and reference are one. Raises FledgeError for a loss without reference."""
    stage = parts.stage
    if not (stage.precomputes_reference or stage.keeps_reference_model):
        raise left_out("the loss of this stage has no reference")
    labels = parts.train.examples.labels
    if labels is not None:
        desirable, other = (float(getattr(stage, name)) for name in ("desirable_weight", "undesirable_weight"))
        return float(np.where(labels, desirable, other).mean()) / 2
    loss_type = getattr(stage, "loss_type", None)
    if loss_type not in AT_REFERENCE:
        raise left_out("what the loss has to be at the reference is not known")
    return AT_REFERENCE[loss_type](float(getattr(stage, "beta")))  # noqa: B009


@torch.no_grad()
def _largest_margin(objective: Objective, model: LanguageModel, batch: Batch) -> float | None:
    """The largest |reward of chosen − reward of rejected|; for labelled answers the largest |reward|. None for another loss."""
    if isinstance(objective, DPOObjective):
        logps = objective.with_logps(model, batch)[1]
        values = logps.rewards(objective.beta)
        return float((values[:, 0] - values[:, 1]).abs().max())
    if not isinstance(objective, KTOObjective):
        return None
    window = objective.in_window(model, lambda: [(batch, True)], list)
    metrics = {name: ratio.value for name, ratio in window.evaluate(model, batch).items() if ratio.count}
    return max((abs(float(metrics[name])) for name in ("rewards/chosen", "rewards/rejected") if name in metrics), default=None)


# -- the reference ------------------------------------------------------------------------------------------------------------


def reference_moved(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The reference's log-probabilities beside those of the start model by the doctor's own code, while the policy has other
    weights."""
    parts = context.trainer
    _expected(parts)
    objective, batch = parts.objective, all_examples(parts)
    if not isinstance(objective, DPOObjective | KTOObjective):
        raise left_out("the trainer's objective has no reference")
    pad, examples = context.material.tokenizer.pad, parts.train.examples
    places = [rows_of(context, examples, place) for place in range(examples.sequences_per_example)]
    with parts.weights("start") as model, torch.no_grad():
        own = torch.stack([log_probabilities(model.eval(), rows, pad) for rows in places], dim=1)
    lengths = torch.tensor([[max(1.0, float(row.weights[row.supervised].sum())) for row in rows] for rows in places]).T
    with parts.weights() as model, torch.no_grad():
        how = _moved_policy(context, model)
        found = _reference_log_probabilities(objective, model.eval(), batch)
    chosen = torch.tensor(batch.examples)
    value = _largest_difference(found, own[chosen], lengths[chosen])
    note = f"{len(chosen)} examples, nats/token; the policy {how}"
    stored = _stored_table(context)
    if stored is not None:
        of_table = _largest_difference(stored, own, lengths)
        value, note = max(value, of_table), f"{note}; the table that the stage has stored differs by up to {of_table:.3g}"
    return {"probe/reference_moved": figure(value, note)}


def _largest_difference(found: Tensor, own: Tensor, lengths: Tensor) -> float:
    """The largest difference of log-probabilities [examples, places] per token; infinity where one is not finite."""
    places = found.shape[1]
    difference = ((found - own[:, :places]) / lengths[:, :places]).abs()
    return float(difference.max()) if bool(torch.isfinite(difference).all()) else math.inf


def _stored_table(context: ProbeContext) -> Tensor | None:
    """The stage's own table of the reference's log-probabilities, of the examples that the probes look at; None without one
    that is complete."""
    file = context.run.directory.root / "reference.training.safetensors"
    if not file.exists():
        return None
    table = load_file(file).get("log_probabilities")
    numbers = context.trainer.train_numbers
    if table is None or len(table) != context.run.train.examples.count or bool(table.isnan().any()):
        return None
    return table[numbers].float()


@torch.no_grad()
def _moved_policy(context: ProbeContext, model: LanguageModel) -> str:
    """Give the policy weights that are not those of the start, and say how."""
    if not context.run.is_start:
        return f"has the weights of {context.run.step:,} updates"
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            scale = NOISE * max(float(parameter.square().mean().sqrt()), 1e-3)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return "has some noise in its weights"


def _reference_log_probabilities(objective: DPOObjective | KTOObjective, model: LanguageModel, batch: Batch) -> Tensor:
    """The log-probabilities [examples, places] of the reference, in the order of the batch."""
    if isinstance(objective, DPOObjective):
        return objective.reference_log_probabilities(batch)
    reference = objective.reference
    if reference is None:
        return torch.zeros(len(batch.examples), preference_module.PAIR)
    if isinstance(reference, Tensor):
        return reference[torch.tensor(batch.examples)]
    with reference_model(reference) as other:
        sums = preference_module.sequence_log_probabilities(other.eval(), batch)[0]
    return sums.view(len(batch.examples), -1)


# -- the loss as a function of the margin -------------------------------------------------------------------------------------


def gains(context: ProbeContext) -> Mapping[str, Figure | None]:
    """How the trainer's loss changes when chosen answers gain on rejected ones: per nat, and when what they have gained
    doubles."""
    parts, sides = context.trainer, sides_of(context)
    objective, batch = parts.objective, all_examples(parts)
    with parts.weights("start") as model:
        model.eval()
        trained = [each for each in model.parameters() if each.requires_grad]
        directions = torch.autograd.grad(sides.margin(model), trained, allow_unused=True)
        square = sum(float(each.double().square().sum()) for each in directions if each is not None)
        if not square > 0:
            raise left_out("no change of the weights makes chosen answers gain")
        points = [_point(objective, model, batch, sides)]
        done = 0.0
        for step in STEPS:
            _move(trained, directions, (step - done) / square)
            points.append(_point(objective, model, batch, sides))
            done = step
    (margin, loss), (near_margin, near_loss), (once, once_loss), (twice, twice_loss) = points
    if not near_margin > margin:
        raise left_out("a small step of the weights did not make chosen answers gain")
    unit = "nats" if not isinstance(objective, RewardObjective) else "of reward"
    note = f"margins of {margin:.3f}, {near_margin:.3f}, {once:.3f} and {twice:.3f} {unit}: loss " + ", ".join(
        f"{value:.4f}" for _, value in points
    )
    slope = figure((near_loss - loss) / (near_margin - margin), note)
    has_reference = parts.stage.precomputes_reference or parts.stage.keeps_reference_model
    if not has_reference and abs(near_loss - loss) < SATURATED * max(1.0, abs(loss)):
        raise left_out("the loss of these rows is so small or large that it hardly depends on margins")
    return {
        "probe/preference_loss_slope": slope,
        "probe/beta_effect": figure(twice_loss - once_loss, note) if has_reference else None,
    }


def _point(objective: Objective, model: LanguageModel, batch: Batch, sides: Sides) -> tuple[float, float]:
    """The margin and the trainer's loss at the weights as they are."""
    with torch.no_grad():
        return float(sides.margin(model)), preference_loss(objective, model, batch)


@torch.no_grad()
def _move(parameters: Sequence[Tensor], directions: Sequence[Tensor | None], by: float) -> None:
    for parameter, direction in zip(parameters, directions, strict=True):
        if direction is not None:
            parameter.add_(direction, alpha=by)
