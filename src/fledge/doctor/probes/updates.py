"""Probes of the trainer's own update: gradients of one batch in two ways, the offset of its loss, what an update changes,
dropout in its validation."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open

from fledge.checkpoint.checkpoint import load_optimizer_state
from fledge.data import Batch
from fledge.diagnosis.case import Figure
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import figure, left_out
from fledge.doctor.probes.rows import OFFSETS
from fledge.doctor.probes.trainer import TrainerParts, Weights
from fledge.doctor.probes.weights import named
from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.objective import CausalLMObjective
from fledge.objective import preference as preference_module
from fledge.optim.build import optimizer_tensors
from fledge.optim.ema import COUNT
from fledge.optim.ema import PREFIX as AVERAGES
from fledge.training import trainer as trainer_module
from fledge.training.hooks import evaluation as evaluation_module
from fledge.training.trainable import SOURCE

UPDATES = 3  # the first one leaves the A matrices of a new adapter as they are, whose gradient is 0
VISIBLE_RATE = 1e-4  # least rate of further updates: in a warm-up, numbers near 1 would not move in float32
EVALUATIONS = 3
OTHER_STATE = (SOURCE, AVERAGES, COUNT)  # beginnings of names in the state that belong to no optimizer
TOLERANCE = 5e-5  # relative, at which two losses in float32 are one


# -- accumulation -----------------------------------------------------------------------------------------------------------


class GradientReader(torch.optim.Optimizer):
    """An optimizer that keeps the gradients it is given, and changes nothing."""

    def __init__(self, model: LanguageModel) -> None:
        self._trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        super().__init__(list(self._trained.values()), {"lr": 0.0})
        self.gradients: Weights = {}

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Copy the gradients."""
        self.gradients = {name: each.grad.detach().clone() for name, each in self._trained.items() if each.grad is not None}


def gradient(parts: TrainerParts, model: LanguageModel, micro_batch_rows: int) -> Weights:
    """The gradient that an update of the trainer would apply, before clipping, without dropout."""
    reader = GradientReader(model)
    update = trainer_module.TrainStep(model, parts.objective, [reader], max_grad_norm=None, seed=0)
    update(parts.step_batch(parts.rows, micro_batch_rows), lr=0.0)
    if not reader.gradients:
        raise left_out("the gradient of the trainer is not finite")
    return reader.gradients


def _dot(left: Weights, right: Weights) -> float:
    return sum(float((left[name].double() * right[name].double()).sum()) for name in left.keys() & right.keys())


def accumulation(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The gradient of B micro-batches of one row beside that of one micro-batch of B rows: they have to be equal."""
    parts = context.trainer
    if parts.rows < 2:
        raise left_out("the training data has only one packed row")
    with parts.weights() as model:
        single = gradient(parts, model.eval(), 1)
        together = gradient(parts, model, parts.rows)
    squares = _dot(single, single), _dot(together, together)
    if not min(squares) > 0:
        raise left_out("the gradient of the trainer is 0")
    note = f"{parts.rows} packed rows" + ("; router losses are of each micro-batch" if model.config.moe else "")
    return {
        "probe/accumulation_ratio": figure((squares[0] / squares[1]) ** 0.5, note),
        "probe/accumulation_cosine": figure(_dot(single, together) / (squares[0] * squares[1]) ** 0.5, note),
    }


# -- the offset of the loss -------------------------------------------------------------------------------------------------


def _inner(batch: Batch) -> Batch:
    """The batch with weight only where two further tokens of the same sequence are among its inputs."""
    owner = batch.sequence_ids
    reach = torch.zeros_like(owner, dtype=torch.bool)
    last = OFFSETS - 1
    reach[:, :-last] = (owner[:, :-last] == owner[:, last:]) & (owner[:, :-last] < batch.num_sequences)
    same = torch.zeros_like(reach)
    same[:, :-last] = batch.position_ids[:, last:] == batch.position_ids[:, :-last] + last
    return replace(batch, loss_weights=batch.loss_weights * (reach & same), known_target_index=None)


@torch.no_grad()
def own_offset_losses(model: LanguageModel, batch: Batch) -> list[float]:
    """The mean cross-entropy of the tokens 0, 1 and 2 places on among the inputs, at the places with weight, each by its
    weight."""
    hidden = model(*batch.model_inputs)
    rows, places = torch.nonzero(batch.loss_weights > 0, as_tuple=True)
    weights = batch.loss_weights[rows, places].double()
    sums = [0.0] * OFFSETS
    for start in range(0, len(rows), 512):
        part = slice(start, start + 512)
        logits = model.logits(hidden[rows[part], places[part]])
        norm = logits.logsumexp(-1)
        for offset in range(OFFSETS):
            targets = batch.input_ids[rows[part], places[part] + offset]
            losses = norm - logits.gather(-1, targets[:, None])[:, 0]
            sums[offset] += float((losses.double() * weights[part]).sum())
    return [total / float(weights.sum()) for total in sums]


@torch.no_grad()
def trainer_loss(parts: TrainerParts, model: LanguageModel, batch: Batch) -> float:
    """The trainer's own mean negative log-likelihood of the targets of a batch, without label smoothing."""
    objective = parts.objective
    if isinstance(objective, CausalLMObjective):
        plain = replace(objective, label_smoothing=0.0)
        return float(plain(model, batch).loss) / plain.normalizer(batch)
    sums, lengths = preference_module.sequence_log_probabilities(model, batch)
    return -float(sums.double().sum() / lengths.double().sum())


def shift(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The offset at which the doctor's own loss is the trainer's in every packed row of an update of the loader."""
    parts = context.trainer
    rows = [row for row in map(_inner, parts.step_batch(parts.rows, 1).batches) if row.num_target_tokens]
    if not rows:
        raise left_out("no target of the batch has two tokens behind it")
    with parts.weights() as model:
        if model.score_weight is not None:
            raise left_out("a reward model has no head for tokens")
        own = [own_offset_losses(model.eval(), row) for row in rows]
        found = [trainer_loss(parts, model, row) for row in rows]
    apart = [max(abs(one[offset] - other) for one, other in zip(own, found, strict=True)) for offset in range(OFFSETS)]
    offset = apart.index(min(apart))
    is_equal = apart[offset] <= TOLERANCE * max(1.0, *map(abs, found))
    means = [sum(one[number] for one in own) / len(own) for number in range(OFFSETS)]
    at_offsets = ", ".join(f"{value:.4f}" for value in means)
    note = f"trainer {sum(found) / len(found):.4f}; at offsets 0, 1, 2: {at_offsets} nats/token; {len(rows)} packed rows"
    return {"probe/shift_gradient": figure(offset if is_equal else -1, note)}


# -- one update -------------------------------------------------------------------------------------------------------------


def update(context: ProbeContext) -> Mapping[str, Figure | None]:
    """What a few updates of the trainer change: tensors that stay as they are, frozen ones that move, parameters in no
    optimizer, and the size of the first update by role."""
    run, parts = context.run, context.trainer
    objective, expected = parts.objective, parts.to_be_trained()
    with parts.weights() as model:
        trainable = trainer_module.TrainableModel(
            model, parts.stage, run.prepared.horizon.steps, torch.device("cpu"), parts.compute.precision
        )
        note, restored = _restore(context, trainable)
        rate = _rate(context)
        later = max(rate, VISIBLE_RATE) if rate else 0.0
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        step = trainer_module.TrainStep(
            model, objective, trainable.optimizers, max_grad_norm=parts.stage.optimizer.max_grad_norm, seed=0
        )
        model.train()
        outputs = [step(parts.step_batch(parts.rows, parts.rows), lr=rate)]
        ratios = update_ratios(model, before)
        for number in range(1, UPDATES):
            rows = parts.step_batch(parts.rows, parts.rows, number)
            outputs.append(step(rows, lr=later))
        is_blind = _without_update(model, expected, [float(output.grad_norm) for output in outputs])
        changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
        held = {id(each) for one in trainable.optimizers for group in one.param_groups for each in group["params"]}
        missing = [name for name, each in model.named_parameters() if name in expected and id(each) not in held]
        saved_without = sorted(_without_saved_state(context, expected) - set(missing))
    rates = f"{UPDATES} updates, at rates of {rate:.3g} and {later:.3g}"
    note = "; ".join(part for part in (rates, note) if part)
    frozen = len(before) - len(expected)
    in_files = f"{len(saved_without)} of them have no state in the checkpoint" if saved_without else ""
    return {
        "probe/unchanged_tensors": None if is_blind else named(sorted(expected - changed), len(expected), "tensors", note),
        "probe/changed_frozen": named(sorted(changed - expected), frozen, "frozen tensors", note),
        "probe/missing_from_optimizer": named(sorted([*missing, *saved_without]), len(expected), "tensors", in_files),
        "probe/restored_state": restored,
        "probe/update_ratios": None if is_blind else figure(ratios, f"one update at the rate {rate:.3g}"),
    }


def _without_update(model: LanguageModel, expected: Set[str], norms: Sequence[float]) -> bool:
    """Whether no update was done, though tensors that are to be trained ask for a gradient: each gradient was 0 or not finite.
    Nothing is told about single tensors then."""
    asks = any(each.requires_grad for name, each in model.named_parameters() if name in expected)
    return asks and not any(0 < norm < math.inf for norm in norms)


def _restore(context: ProbeContext, trainable: Any) -> tuple[str, Figure | None]:
    """Restore the optimizers' state of the checkpoint: a note if that cannot be done, and the share of the saved tensors that
    are there afterwards (None without any)."""
    checkpoint = context.run.checkpoint
    if checkpoint is None or context.run.is_start:
        return "", None
    try:
        trainable.restore(checkpoint, context.run.state)
    except FledgeError as error:
        return f"without the saved state of the optimizers: {error.what}", None
    saved = {name: tensor for name, tensor in load_optimizer_state(checkpoint).items() if not name.startswith(OTHER_STATE)}
    restored = optimizer_tensors(trainable.model, trainable.optimizers)
    equal = sum(name in restored and torch.equal(restored[name], tensor) for name, tensor in saved.items())
    note = f"{equal} of {len(saved)} tensors of optimizers that the checkpoint holds"
    return "", figure(equal / len(saved), note) if saved else None


def _rate(context: ProbeContext) -> float:
    """The learning rate of the update after the checkpoint; behind the last one, or where it is 0, the highest one."""
    run, stage = context.run, context.trainer.stage
    total = run.prepared.horizon.steps

    def rate(step: int) -> float:
        return trainer_module.learning_rate(step, total, stage.optimizer, stage.schedule)

    now = rate(run.step) * run.state.lr_factor if run.step < total else 0.0
    return now or max(map(rate, range(0, total, max(1, total // 64))))


@torch.no_grad()
def update_ratios(model: LanguageModel, before: Weights) -> dict[str, float]:
    """RMS of the change ÷ RMS of the weights before, by the role of trained parameters; tensors of zeros are left out."""
    sums: dict[str, list[float]] = {}
    for name, parameter in model.named_parameters():
        weight = float(before[name].double().square().sum())
        if parameter.requires_grad and weight > 0:
            change = float((parameter.double() - before[name].double()).square().sum())
            total = sums.setdefault(model.parameter_role(name), [0.0, 0.0])
            total[0], total[1] = total[0] + change, total[1] + weight
    return {role: (change / weight) ** 0.5 for role, (change, weight) in sums.items()}


def _without_saved_state(context: ProbeContext, expected: set[str]) -> set[str]:
    """The parameters to be trained for which the checkpoint has no state of an optimizer; none at the start."""
    checkpoint = context.run.checkpoint
    file = None if checkpoint is None else checkpoint / "state" / "optimizer.safetensors"
    if file is None or context.run.is_start or not file.exists():
        return set()
    with safe_open(file, framework="pt") as opened:
        names = [name for name in opened.keys() if not name.startswith(OTHER_STATE)]  # noqa: SIM118
    return expected - {name.rpartition("/")[0] for name in names} if names else set()


# -- dropout in the trainer's validation --------------------------------------------------------------------------------------


def evaluation_dropout(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The largest difference of the losses of a few evaluations by the trainer, which differ in nothing but random numbers."""
    parts = context.trainer
    rows = min(parts.rows, len(parts.validation.layout))
    validation = stage_validation(parts, rows)
    losses: list[float] = []
    with parts.weights() as model:
        model.train()
        for seed in range(EVALUATIONS):
            torch.manual_seed(seed)
            losses.append(float(evaluation_module.validate(model, validation, rows)["loss"]))
    return {"probe/evaluation_dropout": figure(max(losses) - min(losses), f"{EVALUATIONS} evaluations of {rows} packed rows")}


def stage_validation(parts: TrainerParts, rows: int) -> evaluation_module.ValidationSet:
    """The trainer's validation of a few packed rows."""
    return evaluation_module.ValidationSet(parts.validation, parts.validation_objective, rows)
