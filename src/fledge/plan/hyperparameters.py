"""Learning rate, betas and weight decay for settings that are `auto`.

A reference run, whose settings were found by trial, and rules that transfer them to another width, batch size and length.
Constants that do not come from the cited sources are marked as chosen by fledge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log, sqrt

from fledge.errors import FledgeError
from fledge.plan.lr_schedule import min_lr
from fledge.recipe.schema import OptimizerConfig, Stage
from fledge.recipe.sections.engine import ADAPTER_RATE_FACTOR, USUAL_RATES

REFERENCE_WIDTH = 320
REFERENCE_BATCH = 8192  # tokens
REFERENCE_TOKENS = 4_000_000
RATES = {"adamw": 4e-3, "adamw8bit": 4e-3, "muon": 6e-3}  # learning rates of the reference run
WIDTH_POWERS = {"adamw": 1.0, "adamw8bit": 1.0, "muon": 0.5}
HORIZON_POWER = 0.32
MAX_RATE = 0.02  # chosen by fledge
FINE_TUNING_SHARES = {"sft": 0.6, "preference": 0.05, "kto": 0.05}  # of the rate for fresh weights: by trial, decision 064
TRIED_WIDTH = 768  # of models that were fine-tuned in these trials, at most
TRIED_ADAPTERS = ("sft",)  # kinds of stages in which adapters were
BETA1 = 0.9
HALF_LIFE = 6_760_000  # tokens: β₂ = 0.95 at batches of half a million (Brown et al. 2020, appendix B)
MAX_HALF_LIFE_FRACTION = 0.05  # of the run's tokens: chosen by fledge
BETA2_RANGE = (0.9, 0.999)  # chosen by fledge
DECAY_TIME_FRACTION = 1.0  # time scale of weight decay as a fraction of the run, chosen by fledge
MAX_DECAY = 0.3  # chosen by fledge


@dataclass(frozen=True)
class RunSize:
    """The size of a run: model width, tokens per full batch, steps and tokens of the stage."""

    width: int
    batch_tokens: int
    steps: int
    tokens: int


def derived_rate(name: str, run: RunSize) -> tuple[float, str]:
    """The base learning rate of an optimizer, and a sentence with the derivation.

    - Width: an AdamW update changes a hidden state by lr · width (Yang et al. 2022: 1/width). A Muon update with the RMS of
      AdamW has the spectral norm lr · 0.2 · √width, which must not grow (Yang, Simon & Bernstein 2023: 1/√width). Depth has no
      influence: projections into the residual stream are initialised with a factor 1/√(2 · layers).
    - Batch size: √tokens (Malladi et al. 2022).
    - Length: tokens^−0.32 (Bjorck et al. 2024), never above the rate of the reference run (chosen by fledge).
    """
    power = WIDTH_POWERS[name]
    width, batch = (REFERENCE_WIDTH / run.width) ** power, sqrt(run.batch_tokens / REFERENCE_BATCH)
    horizon = min(1.0, (REFERENCE_TOKENS / run.tokens) ** HORIZON_POWER)
    scaled = RATES[name] * width * batch * horizon
    rate = min(MAX_RATE, scaled)
    root = "" if power == 1 else "√"
    source = "Yang et al. 2022" if power == 1 else "Yang, Simon & Bernstein 2023"
    why = (
        f"lr {rate:.3g} = {RATES[name]:g} (reference run) × {width:.3g} for width {run.width}, as 1/{root}width ({source}) "
        f"× {batch:.3g} for {run.batch_tokens:,} tokens a batch, as √batch (Malladi et al. 2022) "
        f"× {horizon:.3g} for {run.tokens:,} tokens in all, as tokens^−{HORIZON_POWER} (Bjorck et al. 2024)"
    )
    return rate, why + (f", limited to {MAX_RATE:g}" if scaled > MAX_RATE else "")


def derived_betas(run: RunSize) -> tuple[tuple[float, float], str]:
    """(β₁, β₂) and a sentence with the derivation.

    β₂ = ½^(batch tokens / half-life), so that its half-life in tokens does not depend on the batch size (Marek et al. 2025).
    The half-life is at most a fraction of the run (chosen by fledge).
    """
    half_life = min(HALF_LIFE, MAX_HALF_LIFE_FRACTION * run.tokens)
    low, high = BETA2_RANGE
    second = min(high, max(low, 0.5 ** (run.batch_tokens / half_life)))
    actual = run.batch_tokens * log(0.5) / log(second)
    target = f"{HALF_LIFE:,}" if half_life == HALF_LIFE else f"{half_life:,.0f}, {MAX_HALF_LIFE_FRACTION:.0%} of the run"
    limited = "" if low < second < high else f"; β₂ is limited to {low:g} … {high:g}, which makes that {actual:,.0f}"
    return (BETA1, second), (
        f"betas {BETA1:g}, {second:.4g}: the second moment halves in {target} tokens, independent of the batch size "
        f"(Marek et al. 2025){limited}"
    )


def derived_decay(rate: float, run: RunSize) -> tuple[float, str]:
    """The weight decay whose time scale 1 / (lr · decay), over which weights average their updates, is a fixed fraction of
    the run (Wang & Aitchison 2024); and a sentence with the derivation."""
    derived = 1 / (rate * run.steps * DECAY_TIME_FRACTION)
    decay = min(MAX_DECAY, derived)
    why = (
        f"weight_decay {decay:.3g} = 1 / (lr × {run.steps:,} steps × {DECAY_TIME_FRACTION:g}): weights average their "
        f"updates over {DECAY_TIME_FRACTION:.0%} of the run (Wang & Aitchison 2024)"
    )
    return decay, why + (f", limited to {MAX_DECAY:g}" if derived > MAX_DECAY else "")


def fine_tuning_rate(kind: str, name: str, run: RunSize, has_adapter: bool) -> tuple[float, str]:
    """The learning rate of a stage of a kind in `FINE_TUNING_SHARES`, and a sentence with the derivation: a share of that of
    fresh weights, ten times as much for an adapter (decision 064). For what was not tried, the usual rate."""
    factor = ADAPTER_RATE_FACTOR if has_adapter else 1
    is_wide = run.width > TRIED_WIDTH
    if is_wide or (has_adapter and kind not in TRIED_ADAPTERS):
        rate = USUAL_RATES[kind] * factor
        wide = f"no model wider than {TRIED_WIDTH} was tried, and this one has {run.width:,}"
        return rate, f"lr {rate:g}, the usual one: {wide if is_wide else f'no adapter was tried in {kind} stages'}"
    fresh, why = derived_rate(name, run)
    share = FINE_TUNING_SHARES[kind]
    rate = min(MAX_RATE, fresh * share * factor)
    adapter = f" × {factor} for an adapter" if has_adapter else ""
    return rate, f"lr {rate:.3g} = {share:g} (found by trial for {kind}){adapter} × that of fresh weights: {why}"


def resolve(
    config: OptimizerConfig, run: RunSize, rate_for: Callable[[str, RunSize], tuple[float, str]] = derived_rate
) -> tuple[OptimizerConfig, list[str]]:
    """The optimizer settings with numbers in place of `auto`, and a sentence for each derived number. `rate_for`: the learning
    rate of an optimizer and a run."""
    values: dict[str, object] = {}
    notes = []
    rate = config.learning_rate
    if rate == "auto":
        rate, why = rate_for(config.name, run)
        values["learning_rate"] = rate
        notes.append(why)
    if config.betas == "auto":
        values["betas"], why = derived_betas(run)
        notes.append(why)
    if config.weight_decay == "auto":
        values["weight_decay"], why = derived_decay(rate, run)
        notes.append(why)
    return config.model_copy(update=values), notes


def resolve_stage(stage: Stage, run: RunSize) -> tuple[Stage, list[str]]:
    """The stage with numbers for learning rate, betas, weight decay and minimum learning rate, and the sentences of `resolve`.

    Raises FledgeError if the minimum learning rate is above the learning rate.
    """
    rate_for = derived_rate
    if stage.kind in FINE_TUNING_SHARES:
        rate_for = partial(fine_tuning_rate, stage.kind, has_adapter=stage.adapter is not None)
    optimizer, notes = resolve(stage.optimizer, run, rate_for)
    rate, _, _ = optimizer.numbers()
    low = min_lr(stage.schedule, rate)
    if low > rate:
        raise FledgeError(
            f"schedule.min_lr {low:g} is above optimizer.learning_rate, which auto sets to {rate:.3g}", where="schedule.min_lr",
            hint="write a fraction, such as 10%, or set optimizer.learning_rate",
        )  # fmt: skip
    schedule = stage.schedule.model_copy(update={"min_lr": low, "final_div_factor": None})
    return stage.model_copy(update={"optimizer": optimizer, "schedule": schedule}), notes
