"""Checks of the learning rate over the stage: its size, its shape, and the weight decay that it scales."""

import math
from collections.abc import Iterator
from typing import Any

from fledge.findings import Finding
from fledge.plan.critic.planned_stage import PlannedStage, counted
from fledge.plan.hyperparameters import RATES, REFERENCE_WIDTH, WIDTH_POWERS
from fledge.recipe.sections.adapter import PREFIX
from fledge.recipe.sections.engine import ADAPTER_RATE_FACTOR

MIN_REACH = 0.05  # sum of the rates × width below which outputs hardly change; SFT of 7B models on 1,000 rows has about 4
MAX_FINE_TUNING = 0.8  # of the rate for fresh weights of the same width: more unlearns what the weights know
MAX_PREFERENCE = 0.05  # of the same rate, for preferences
MAX_FRESH = 4.0  # times the rate of the reference run, carried over to this width
MAX_MUON = 20.0  # times Muon's own: an update of 0.2 × rate is then larger than the numbers that weights start with
RELATIVE_RATES = ("adafactor",)  # optimizers whose rate is a share of the size of the weights
MIN_RELATIVE_REACH = 0.02  # sum of the rates below which such an optimizer hardly changes anything: a weight moves by 2 %
ADAPTER_RATES_OF_WEIGHTS = {  # a fifth of the lowest rates that are published for adapters: the size of those for weights
    "sft": 2e-5,  # 1e-4 (Dettmers et al. 2023, 33B) to 2e-4 (7B; Hu et al. 2021)
    "preference": 1e-6,  # 5e-6 (alignment-handbook's zephyr-7b-dpo-qlora)
    "kto": 1e-6,
}
USUAL_SCALE = 2.0  # lora_alpha ÷ r
NEEDS_WARMUP = ("adamw", "adamw8bit")  # whose first updates are as large as the rate, whatever the gradient
FLAT = 0.9  # of the rate, as the minimum of a schedule that falls
MAX_DECAYED = {True: 10.0, False: 2.0}  # sum of rate × decay, for fresh weights and for others; derived ones have 0.5 to 1
UNUSUAL_DECAY, MAX_UNUSUAL = 0.3, 0.1  # the strongest decay that is derived; and that sum, for weights trained already


def _with_rate(planned: PlannedStage, rate: float) -> dict[str, Any]:
    """A patch of the learning rate, and of a minimum that would be above it."""
    patch, low = planned.patch(optimizer__learning_rate=rate), planned.written.schedule.min_lr
    if not isinstance(low, str) and low > rate:
        patch |= planned.patch(schedule__min_lr="10%")
    return patch


def _reference_rate(planned: PlannedStage) -> float:
    """The rate for fresh weights that the reference run has, carried over to this width."""
    name = planned.stage.optimizer.name
    return RATES[name] * (REFERENCE_WIDTH / planned.width) ** WIDTH_POWERS[name]


def _largest_rate(planned: PlannedStage) -> float | None:
    """The largest rate that is not told; None where no limit is known."""
    name = planned.stage.optimizer.name
    if name not in RATES:
        return None
    if name == "muon":
        return MAX_MUON * _reference_rate(planned)
    share = MAX_FRESH if planned.starts_fresh else MAX_PREFERENCE if planned.compares_answers else MAX_FINE_TUNING
    return share * _reference_rate(planned) * (ADAPTER_RATE_FACTOR if planned.stage.adapter is not None else 1)


def rate_too_small(planned: PlannedStage) -> Iterator[Finding]:
    """A rate with which weights stay where they are."""
    steps, rate, reach = planned.plan.steps, planned.plan.learning_rate, planned.summed_rates
    if planned.stage.optimizer.name in RELATIVE_RATES:
        if reach < MIN_RELATIVE_REACH:
            yield planned.finding(
                "optimizer.learning_rate",
                f"learning rate {rate:.3g} of {planned.stage.optimizer.name} is too small for "
                f"{counted(steps, 'update')}: a weight moves by about {reach:.1%} of its size, so hardly anything is learned",
                "set optimizer.learning_rate to about 0.001, or train longer",
                sure="likely",
                evidence={"learning_rate": rate, "steps": steps, "summed_rates": reach},
                patch=_with_rate(planned, float(f"{rate * 2 * MIN_RELATIVE_REACH / reach:.1g}")),
            )
    elif reach * planned.width < MIN_REACH:
        wanted = float(f"{rate * 4 * MIN_REACH / (reach * planned.width):.1g}")
        limit = _largest_rate(planned)
        more, rows = round(4 * MIN_REACH / (reach * planned.width) * steps), planned.plan.effective_batch_rows
        is_above = limit is not None and wanted > limit and planned.mixes_labels(f"{more} steps", rows)
        yield planned.finding(
            "optimizer.learning_rate",
            f"learning rate {rate:.3g} is too small for {counted(steps, 'update')}: a weight moves by "
            f"about {reach:.1g} in all, so hardly anything is learned",
            f"set optimizer.learning_rate to about {wanted:.1g}, or train longer",
            sure="likely",
            evidence={"learning_rate": rate, "steps": steps, "summed_rates": reach, "width": planned.width},
            patch=planned.of_steps(more) if is_above else _with_rate(planned, wanted),
        )


def rate_too_large(planned: PlannedStage) -> Iterator[Finding]:
    """A rate with which training diverges, or unlearns what the weights know."""
    rate, limit = planned.plan.learning_rate, _largest_rate(planned)
    if limit is None or rate <= limit:
        return
    weights = "fresh weights" if planned.starts_fresh else "weights that are trained already"
    would_suit = planned.stage.adapter is None and not planned.starts_fresh and rate <= ADAPTER_RATE_FACTOR * limit
    message = f"learning rate {rate:.3g} is large for {weights} of width {planned.width:,}: training may diverge or unlearn"
    if would_suit:
        message += "; it has the size of an adapter's rate"
    yield planned.finding(
        "optimizer.learning_rate",
        message,
        f"set optimizer.learning_rate to {limit / 4:.1g} or below",
        sure="likely",
        evidence={"learning_rate": rate, "limit": limit, "width": planned.width},
        patch=_with_rate(planned, float(f"{limit / 4:.1g}")),
    )


def adapter_rate_of_weights(planned: PlannedStage) -> Iterator[Finding]:
    """The rate of all weights, given to an adapter: it moves them ten times less (decision 048)."""
    stage, rate = planned.stage, planned.plan.learning_rate
    adapter, limit = stage.adapter, ADAPTER_RATES_OF_WEIGHTS.get(stage.kind)
    if adapter is None or adapter.peft_type == PREFIX or limit is None:
        return
    scale = adapter.lora_alpha / (adapter.r**0.5 if adapter.use_rslora else adapter.r)
    if rate * max(1.0, scale / USUAL_SCALE) <= limit:
        wanted = ADAPTER_RATE_FACTOR * max(rate, limit)
        yield planned.finding(
            "optimizer.learning_rate",
            f"learning rate {rate:.3g} has the size of a rate for all weights: an adapter learns about {ADAPTER_RATE_FACTOR} "
            "times more slowly",
            f"set optimizer.learning_rate to about {wanted:.1g}, or leave it out",
            sure="likely",
            evidence={"learning_rate": rate, "limit": limit, "scale": scale},
            patch=_with_rate(planned, float(f"{wanted:.1g}")),
        )


def no_warmup(planned: PlannedStage) -> Iterator[Finding]:
    """Fresh weights that AdamW moves at the full rate from the first step on."""
    plan, name = planned.plan, planned.stage.optimizer.name
    if not planned.starts_fresh or name not in NEEDS_WARMUP or plan.warmup_steps > 1:
        return
    reference = _reference_rate(planned)
    if plan.learning_rate >= reference:
        yield planned.finding(
            "schedule.warmup",
            f"{name} moves fresh weights by {plan.learning_rate:.3g} in the very first updates: a rate of this size is reached "
            f"by a warm-up (width {planned.width:,})",
            "set schedule.warmup to 5%",
            sure="possible",
            evidence={"warmup_steps": plan.warmup_steps, "learning_rate": plan.learning_rate, "reference": reference},
            patch=planned.patch(schedule__warmup=0.05 if plan.steps >= 40 else 2),
        )


def flat_schedule(planned: PlannedStage) -> Iterator[Finding]:
    """A schedule that falls by its name, and not by its numbers."""
    schedule, rate = planned.stage.schedule, planned.plan.learning_rate
    low = planned.plan.min_learning_rate
    if schedule.name != "constant" and low >= FLAT * rate and planned.written.schedule.final_div_factor is None:
        yield planned.finding(
            "schedule.min_lr",
            f"the schedule {schedule.name} falls only from {rate:.3g} to {low:.3g}: it is constant",
            "set schedule.min_lr to 10%, or schedule.name to constant",
            sure="certain",
            evidence={"learning_rate": rate, "min_lr": low},
            patch=planned.patch(schedule__min_lr="10%"),
        )


def strong_weight_decay(planned: PlannedStage) -> Iterator[Finding]:
    """A decay that shrinks weights faster than the stage can keep up. Without gradients they would shrink by exp(−Σ rate ×
    decay); Wang & Aitchison (2024) find the best sum of that order of 1 for a whole run from fresh weights."""
    decay, decayed = planned.plan.weight_decay, planned.summed_rates * planned.plan.weight_decay
    is_unusual = decay > UNUSUAL_DECAY and not planned.starts_fresh and decayed > MAX_UNUSUAL
    if planned.stage.adapter is not None or not (is_unusual or decayed > MAX_DECAYED[planned.starts_fresh]):
        return
    wanted = float(f"{(1.0 if planned.starts_fresh else MAX_UNUSUAL / 2) / planned.summed_rates:.1g}")
    yield planned.finding(
        "optimizer.weight_decay",
        f"weight decay {decay:.3g} at learning rate {planned.plan.learning_rate:.3g} shrinks weights to "
        f"{math.exp(-decayed):.1%} of their size in {counted(planned.plan.steps, 'update')}, but for what gradients restore",
        f"set optimizer.weight_decay to {min(UNUSUAL_DECAY, wanted):.1g} or below",
        sure="likely",
        evidence={"weight_decay": decay, "summed_rates": planned.summed_rates, "decayed": decayed},
        patch=planned.patch(optimizer__weight_decay=min(UNUSUAL_DECAY, wanted)),
    )
