"""The clipped objective on fixed rollouts: by its formula, as in TRL, however the answers are packed and split."""

import importlib.util
from collections import defaultdict
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.decoder import Decoder
from fledge.objective import PolicyObjective
from fledge.objective.policy import NORMALIZATIONS
from tests.support.decoders import assert_same_gradients, gradients, make_decoder
from tests.support.rollouts import ANSWERS, fixed_rollout, packed, padded

LONGEST = 16
CASES: dict[str, dict[str, Any]] = {
    "on-policy": {},
    "off-policy": {"off_policy": True},
    "off-policy, clipped higher, with KL": {"off_policy": True, "epsilon": 0.1, "epsilon_high": 0.3, "beta": 0.07},
    "temperature": {"off_policy": True, "temperature": 0.7},
}
# Losses of TRL 1.16 (`GRPOTrainer._compute_loss`) for these rollouts and weights, by case and loss type.
TRL_LOSSES: dict[tuple[str, str], float] = {
    ("on-policy", "grpo"): -0.016667,
    ("on-policy", "dr_grpo"): -0.059375,
    ("on-policy", "dapo"): -0.142500,
    ("off-policy", "grpo"): 0.989040,
    ("off-policy", "dr_grpo"): 0.446111,
    ("off-policy", "dapo"): 1.070667,
    ("off-policy, clipped higher, with KL", "grpo"): 1.385661,
    ("off-policy, clipped higher, with KL", "dr_grpo"): 0.566562,
    ("off-policy, clipped higher, with KL", "dapo"): 1.359750,
    ("temperature", "grpo"): 1.211862,
    ("temperature", "dr_grpo"): 0.561432,
    ("temperature", "dapo"): 1.347438,
}


def objective_of(loss_type: str, off_policy: bool = False, **changes: Any) -> PolicyObjective:
    """The objective; the reference has other weights than the policy."""
    assert off_policy in (False, True)
    return PolicyObjective(loss_type=loss_type, max_new_tokens=LONGEST, reference=make_decoder(4), **changes)


def loss_of(objective: PolicyObjective, model: Decoder, rows: int = 9, **rollout: Any) -> tuple[float, dict[str, float]]:
    """The loss of all answers, with gradients, and the metrics; `rows` packed rows are computed together."""
    model.zero_grad()
    batches = packed(fixed_rollout(**rollout), rows)
    divisor = sum(objective.normalizer(batch) for batch in batches)
    outputs = [objective(model, batch) for batch in batches]
    loss = torch.stack([output.loss for output in outputs]).sum() / divisor
    loss.backward()
    names = outputs[0].metrics
    totals = {name: sum((output.metrics[name] for output in outputs[1:]), outputs[0].metrics[name]) for name in names}
    return loss.item(), {name: float(ratio.value) for name, ratio in totals.items()}


def plain_loss(loss_type: str, model: Decoder, objective: PolicyObjective, off_policy: bool) -> Tensor:
    """The loss by its formula, an answer and a token at a time, without packing."""
    rollout, total, divisor = fixed_rollout(off_policy), torch.zeros(()), 0.0
    for number, length in enumerate(ANSWERS):
        tokens = torch.from_numpy(rollout.tokens[rollout.offsets[number] : rollout.offsets[number + 1]]).long()
        logps, ref = (
            (net.logits(net(tokens[None])) / objective.temperature).log_softmax(-1)[0, :-1].gather(-1, tokens[1:,
            None])[-length:, 0] for net in (model, objective.reference)
        )  # fmt: skip
        begin = int(rollout.target_offsets[number])
        old = logps.detach() if rollout.old_logps is None else torch.from_numpy(rollout.old_logps[begin : begin + length])
        own = torch.zeros(())
        for new, before, kept in zip(logps, old, ref.detach(), strict=True):
            ratio, advantage = (new - before).exp(), float(rollout.advantages[number])
            high = objective.epsilon if objective.epsilon_high is None else objective.epsilon_high
            own = own - torch.min(ratio * advantage, ratio.clamp(1 - objective.epsilon, 1 + high) * advantage)
            own = own + objective.beta * ((kept - new).exp() - (kept - new) - 1)
        total = total + (own / length if loss_type == "grpo" else own)
        divisor += {"grpo": 1, "dr_grpo": LONGEST, "dapo": length}[loss_type]
    return total / divisor


@pytest.mark.parametrize("loss_type", NORMALIZATIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradient_follow_the_formula(case: str, loss_type: str) -> None:
    model, changes = make_decoder(1), CASES[case]
    objective = objective_of(loss_type, **changes)
    loss, _ = loss_of(objective, model, off_policy=changes.get("off_policy", False))
    actual = gradients(model)
    expected = plain_loss(loss_type, model, objective, changes.get("off_policy", False))
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(actual, gradients(model), 1e-5, 1e-5)


class _TrlModel(nn.Module):
    """A decoder with the inputs and outputs of the models that TRL has given its own head."""

    def __init__(self, decoder: Decoder, temperature: float) -> None:
        super().__init__()
        self.decoder, self.temperature = decoder, temperature

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.decoder.logits(self.decoder(input_ids, positions, attention_mask)) / self.temperature
        every = logits[:, :-1].log_softmax(-1)
        log_probs = F.pad(every.gather(-1, input_ids[:, 1:, None])[..., 0], (1, 0))
        return SimpleNamespace(log_probs=log_probs, entropy=F.pad(-(every.exp() * every).sum(-1), (1, 0)))


def trl_loss(loss_type: str, model: Decoder, reference: Decoder, case: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    """TRL's own loss and metrics of the fixed rollout."""
    from trl import GRPOTrainer

    temperature = case.get("temperature", 1.0)
    accelerator = SimpleNamespace(
        num_processes=1, is_main_process=True, autocast=nullcontext, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    trainer = SimpleNamespace(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", loss_type=loss_type,
        beta=case.get("beta", 0.0), epsilon_low=case.get("epsilon", 0.2), epsilon_high=case.get("epsilon_high", 0.2),
        use_vllm=False, _entropy_bonus_enabled=False, aux_loss_enabled=False, current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST, temperature=temperature, model=model.train(), accelerator=accelerator,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _metrics={"train": defaultdict(list)}, model_kwarg_keys=set(), is_fsdp_enabled=False,
    )  # fmt: skip
    score = partial(GRPOTrainer._get_per_token_logps_and_entropies, trainer)
    trainer._get_per_token_logps_and_entropies = score
    inputs: dict[str, Any] = padded(fixed_rollout(case.get("off_policy", False)))
    if not case.get("off_policy"):
        inputs["old_per_token_logps"] = None
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    ids, mask = (torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    with torch.no_grad():
        inputs["ref_per_token_logps"] = score(_TrlModel(reference, temperature), ids, mask, max(ANSWERS))[0]
    loss = GRPOTrainer._compute_loss(trainer, _TrlModel(model, temperature), inputs)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("loss_type", NORMALIZATIONS)
@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_metrics_are_those_of_trl(case: str, loss_type: str) -> None:
    changes = CASES[case]
    objective = objective_of(loss_type, **changes)
    ours, theirs = make_decoder(1), make_decoder(1)
    loss, metrics = loss_of(objective, ours, off_policy=changes.get("off_policy", False))
    assert isinstance(objective.reference, Decoder)
    expected, trl_metrics = trl_loss(loss_type, theirs, objective.reference, changes)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert TRL_LOSSES[case, loss_type] == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(gradients(ours), gradients(theirs), 1e-5)
    for name in ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        assert metrics.get(name) == pytest.approx(trl_metrics.get(name), abs=1e-5), name


@pytest.mark.parametrize(("case", "loss_type"), TRL_LOSSES)
def test_losses_are_those_that_trl_has_computed(case: str, loss_type: str) -> None:
    changes = CASES[case]
    loss, _ = loss_of(objective_of(loss_type, **changes), make_decoder(1), off_policy=changes.get("off_policy", False))
    assert loss == pytest.approx(TRL_LOSSES[case, loss_type], abs=1e-5)


@pytest.mark.parametrize("loss_type", NORMALIZATIONS)
def test_rows_computed_together_or_alone_give_one_loss_and_gradient(loss_type: str) -> None:
    together, alone, objective = make_decoder(1), make_decoder(1), objective_of(loss_type, epsilon=0.1, beta=0.07)
    losses = [loss_of(objective, model, rows, off_policy=True) for model, rows in ((together, 9), (alone, 1))]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    assert losses[0][1] == pytest.approx(losses[1][1], abs=1e-5)
    assert_same_gradients(gradients(together), gradients(alone), 1e-6)


def test_an_answer_of_no_weight_changes_only_the_divisor() -> None:
    """`mask_truncated`: the divisor of grpo counts the answer, as in TRL; its tokens teach nothing."""
    rollout = fixed_rollout()
    rollout.weights[rollout.offsets[2] : rollout.offsets[3]] = 0
    objective, model = objective_of("grpo"), make_decoder(1)
    (batch,) = packed(rollout)
    assert objective.normalizer(batch) == 6 and batch.num_target_tokens == sum(ANSWERS) - ANSWERS[2]
    objective(model, batch).loss.backward()
    masked = gradients(model)
    rollout = fixed_rollout()
    rollout.advantages[2] = 0
    objective(model, packed(rollout)[0]).loss.backward()
    assert_same_gradients(masked, gradients(model), 1e-5)


def test_entropy_is_minus_the_mean_log_probability_of_what_was_drawn() -> None:
    model = make_decoder(1)
    batch = packed(fixed_rollout())[0]
    logps = model.logits(model(*batch.model_inputs)).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    expected = -(logps * batch.loss_weights).sum() / batch.loss_weights.sum()
    assert float(objective_of("dapo")(model, batch).metrics["entropy"].value) == pytest.approx(expected.item(), abs=1e-5)


def test_the_reference_gets_no_gradient_and_no_dropout() -> None:
    reference = make_decoder(4, dropout=0.5).train()
    objective = PolicyObjective(beta=0.5, reference=reference)
    values = []
    for _ in range(2):
        model = deepcopy(make_decoder(1))
        output = objective(model, packed(fixed_rollout())[0])
        output.loss.backward()
        values.append(float(output.metrics["kl"].value))
    assert values[0] == values[1] > 0
    assert all(parameter.grad is None for parameter in reference.parameters()) and reference.training


def test_no_answers_make_no_batches() -> None:
    assert fixed_rollout().batches(np.zeros(0, np.int64), (9, 24), 0) == []
