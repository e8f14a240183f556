"""Settings derived from what is trained: learning rate, betas and weight decay of `auto`.

A reference run, for which the settings were found by trial, and rules that carry them to another width, batch and length.
What is not from the sources named is marked as chosen here.
"""

from dataclasses import dataclass
from math import log, sqrt

from fledge.errors import FledgeError
from fledge.plan.lr_schedule import min_lr
from fledge.recipe.schema import OptimizerConfig, PreferenceStage, PretrainStage, SftStage

REFERENCE_WIDTH = 320
REFERENCE_BATCH = 8192  # tokens
REFERENCE_TOKENS = 4_000_000
RATES = {"adamw": 4e-3, "adamw8bit": 4e-3, "muon": 6e-3}  # of the reference run
WIDTH_POWERS = {"adamw": 1.0, "adamw8bit": 1.0, "muon": 0.5}
HORIZON_POWER = 0.32
HIGHEST_RATE = 0.02  # chosen here
FIRST_BETA = 0.9
HALF_LIFE = 6_760_000  # tokens: β₂ = 0.95 at batches of half a million (Brown et al. 2020, appendix B)
HALF_LIFE_SHARE = 0.05  # of the run, at most: chosen here
SECOND_BETAS = (0.9, 0.999)  # bounds, chosen here
TIME_SCALE = 1.0  # of the run, chosen here
HIGHEST_DECAY = 0.3  # chosen here

AnyStage = PretrainStage | SftStage | PreferenceStage


@dataclass(frozen=True)
class RunSize:
    """What is trained: width of the model, tokens of a full batch, steps and tokens of the stage."""

    width: int
    batch_tokens: int
    steps: int
    tokens: int


def derived_rate(name: str, run: RunSize) -> tuple[float, str]:
    """The base rate of an optimizer, and why.

    - Width: an update of AdamW moves a hidden state by lr · width (Yang et al. 2022: 1/width); one of Muon, its
      RMS set to AdamW's, has the spectral norm lr · 0.2 · √width, which must not grow (Yang, Simon & Bernstein 2023: 1/√width).
      Depth changes nothing: what writes to the residual begins scaled by 1/√(2 · layers).
    - Batch: √ of its tokens (Malladi et al. 2022).
    - Length: tokens^−0.32 (Bjorck et al. 2024), never above the reference run's (chosen here).
    """
    power = WIDTH_POWERS[name]
    width, batch = (REFERENCE_WIDTH / run.width) ** power, sqrt(run.batch_tokens / REFERENCE_BATCH)
    horizon = min(1.0, (REFERENCE_TOKENS / run.tokens) ** HORIZON_POWER)
    wanted = RATES[name] * width * batch * horizon
    rate = min(HIGHEST_RATE, wanted)
    root = "" if power == 1 else "√"
    source = "Yang et al. 2022" if power == 1 else "Yang, Simon & Bernstein 2023"
    why = (
        f"lr {rate:.3g} = {RATES[name]:g} (reference run) × {width:.3g} for width {run.width}, as 1/{root}width ({source}) "
        f"× {batch:.3g} for {run.batch_tokens:,} tokens a batch, as √batch (Malladi et al. 2022) "
        f"× {horizon:.3g} for {run.tokens:,} tokens in all, as tokens^−{HORIZON_POWER} (Bjorck et al. 2024)"
    )
    return rate, why + (f", held at {HIGHEST_RATE:g}" if wanted > HIGHEST_RATE else "")


def derived_betas(run: RunSize) -> tuple[tuple[float, float], str]:
    """β₁, and the β₂ whose half-life in tokens does not depend on the batch: β₂ = ½^(batch / half-life) (Marek et al.
    2025), the half-life at most a share of the run (chosen here)."""
    half_life = min(HALF_LIFE, HALF_LIFE_SHARE * run.tokens)
    low, high = SECOND_BETAS
    second = min(high, max(low, 0.5 ** (run.batch_tokens / half_life)))
    kept = run.batch_tokens * log(0.5) / log(second)
    aim = f"{HALF_LIFE:,}" if half_life == HALF_LIFE else f"{half_life:,.0f}, {HALF_LIFE_SHARE:.0%} of the run"
    held = "" if low < second < high else f"; β₂ is held within {low:g} … {high:g}, which makes that {kept:,.0f}"
    return (FIRST_BETA, second), (
        f"betas {FIRST_BETA:g}, {second:.4g}: the second moment is to halve in {aim} tokens, whatever the batch (Marek et al. "
        f"2025){held}"
    )


def derived_decay(rate: float, run: RunSize) -> tuple[float, str]:
    """The decay whose time scale 1 / (lr · decay), over which weights average their updates, is a fixed share of the run
    (Wang & Aitchison 2024)."""
    wanted = 1 / (rate * run.steps * TIME_SCALE)
    decay = min(HIGHEST_DECAY, wanted)
    why = (
        f"weight_decay {decay:.3g} = 1 / (lr × {run.steps:,} steps × {TIME_SCALE:g}): weights average their updates over "
        f"{TIME_SCALE:.0%} of the run (Wang & Aitchison 2024)"
    )
    return decay, why + (f", held at {HIGHEST_DECAY:g}" if wanted > HIGHEST_DECAY else "")


def resolve(config: OptimizerConfig, run: RunSize) -> tuple[OptimizerConfig, list[str]]:
    """The optimizer with plain numbers, and a sentence for each that was derived. Numbers that are given stay."""
    values: dict[str, object] = {}
    notes = []
    rate = config.learning_rate
    if rate == "auto":
        rate, why = derived_rate(config.name, run)
        values["learning_rate"] = rate
        notes.append(why)
    if config.betas == "auto":
        values["betas"], why = derived_betas(run)
        notes.append(why)
    if config.weight_decay == "auto":
        values["weight_decay"], why = derived_decay(rate, run)
        notes.append(why)
    return config.model_copy(update=values), notes


def resolve_stage(stage: AnyStage, run: RunSize) -> tuple[AnyStage, list[str]]:
    """The stage with plain numbers for learning rate, betas, decay and lowest rate, and the sentences of `resolve`.
    FledgeError where the lowest rate is above the rate."""
    optimizer, notes = resolve(stage.optimizer, run)
    rate, _, _ = optimizer.numbers()
    low = min_lr(stage.schedule, rate)
    if low > rate:
        raise FledgeError(
            f"schedule.min_lr {low:g} is above optimizer.learning_rate, which auto makes {rate:.3g}", where="schedule.min_lr",
            hint="write a share, such as 10%, or set optimizer.learning_rate",
        )  # fmt: skip
    schedule = stage.schedule.model_copy(update={"min_lr": low, "final_div_factor": None})
    return stage.model_copy(update={"optimizer": optimizer, "schedule": schedule}), notes
