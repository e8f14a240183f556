"""What published trainers do with their settings, where that is not what the names of the settings say.

Read in the code that their authors published; a changed copy may behave otherwise, so a statement names its source and is told
as such. A trainer is recognised by words of its log or configuration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fledge.diagnosis import Diagnosis, Sign
from fledge.findings import Finding
from fledge.plan.hyperparameters import RunSize, fine_tuning_rate
from fledge.training_log import TrainingSettings

MOST_READ = 1 << 20  # bytes of a text in which the words are looked for
ADAFACTOR_STEP = 1e-2  # of `relative_step`: the largest update as a share of the RMS of a weight (Shazeer & Stern 2018)
ADAFACTOR_FINE_TUNING = 1e-3  # at which T5 was fine-tuned with Adafactor (Raffel et al. 2020, section 3.1.2)

FROZEN_ENCODER = "with --is_finetune the embedding and the whole encoder are frozen: only the decoder is trained"

Sentences = Callable[[TrainingSettings], list[str]]
WITHOUT_EFFECT = "settings without effect"
Changes = dict[str, tuple[tuple[tuple[str, ...], str], ...]]
"""Letter of a scheme (A, B, C) → its steps: what to change, in words; and what to look at before the next one."""


@dataclass(frozen=True, kw_only=True)
class KnownTrainer:
    """A published trainer. `words`: all of them stand in its logs or configurations. `facts`: settings of the model that it
    trains, by field of `TrainingSettings`, used where nothing else says them. `without_effect`: field → why the published
    code does not use it. `told`: sentences about what the settings at hand become. `found`: what is wrong with it. `schemes`:
    changes of the code that give the settings an effect, with numbers for the settings at hand. `source`: the code that was
    read."""

    name: str
    words: tuple[str, ...]
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    told: Sentences = lambda settings: []
    schemes: Callable[[TrainingSettings], Changes] = lambda settings: {}
    found: Callable[[TrainingSettings], Sign] | None = None

    def diagnosis(self, settings: TrainingSettings) -> Diagnosis | None:
        """What is wrong with any run of the published code; None if nothing is known."""
        if self.found is None:
            return None
        return Diagnosis(cause=WITHOUT_EFFECT, category="learning rate", sign=self.found(settings))

    def completes(self, settings: TrainingSettings) -> TrainingSettings:
        """The settings with the facts of the trainer where they say nothing."""
        known = settings.known()
        missing = {name: value for name, value in self.facts.items() if name not in known}
        origin = dict.fromkeys(missing, f"the published model of {self.name}")
        return settings.updated(TrainingSettings(**missing, origin=origin)) if missing else settings


def _chatlm(settings: TrainingSettings) -> list[str]:
    """The peak of its one-cycle schedule, and what its BLEU is a mean of."""
    lines = []
    rate, factor = settings.learning_rate, settings.other.get("div_factor")
    if rate is not None and isinstance(factor, int | float):
        lines.append(
            f"its scheduler is given learn_rate × div_factor = {rate * factor:.3g} as the peak, and {rate:.3g} is where it "
            "begins"
        )
    lines.append(
        "its BLEU-4 is the mean over the last batch of the validation rows alone: a list is overwritten for each batch"
    )
    return lines


def _chatlm_found(settings: TrainingSettings) -> Sign:
    """The step of its optimizer, which no setting changes."""
    times = ADAFACTOR_STEP / ADAFACTOR_FINE_TUNING
    return Sign(
        finding=Finding(
            check=WITHOUT_EFFECT,
            severity="warning",
            message="learn_rate, div_factor and warmup_steps do not reach the weights: the Adafactor of the published code has "
            f"relative_step on, so that an update moves a weight by up to {ADAFACTOR_STEP:.0%} of its RMS from the first step "
            f"on, without a warm-up; T5 was fine-tuned at {ADAFACTOR_FINE_TUNING:.1%}, {times:.0f} times less",
            hint="give the optimizer relative_step=False, or take AdamW; only then is a learning rate worth tuning",
            evidence={
                "step_of_rms": ADAFACTOR_STEP,
                "step_of_t5_fine_tuning": ADAFACTOR_FINE_TUNING,
                "learn_rate": settings.learning_rate,
                "div_factor": settings.other.get("div_factor"),
                "warmup_steps": settings.warmup_steps,
            },
            confidence="likely",
        ),
        strength=0.7,
        alternatives={
            "the start model is at fault": "the loss of the validation rows before the first update",
            "the copy of the code was changed": "`relative_step` where the optimizer is made",
        },
        proof="log the loss before the first update and after each of the next 50: it rises where updates are too large",
    )


def _chatlm_schemes(settings: TrainingSettings) -> Changes:
    """AdamW at the rate of fledge's trials; the same Adafactor at the step with which T5 was fine-tuned; or one at a time."""
    rate = _adamw_rate(settings)
    fixed = f"in model/trainer.py: Adafactor(..., lr={ADAFACTOR_FINE_TUNING:g}, relative_step=False)"
    peak = "OneCycleLR(max_lr={:g}, pct_start=0.1, ...) in place of div_factor × learn_rate"
    first = "the loss of the validation rows before the first update, and then at every update"
    return {
        "A": (
            (
                (
                    f"in model/trainer.py: torch.optim.AdamW(trained parameters, lr={rate:g}) in place of Adafactor",
                    peak.format(rate),
                    "layers_to_freeze = [] so that the encoder is trained too",
                ),
                "",
            ),
        ),
        "B": (((fixed, peak.format(ADAFACTOR_FINE_TUNING)), ""),),
        "C": (
            (
                (f"change nothing, and log {first}",),
                "high before any update: the start model is at fault; low, and rising within some updates: these are too large",
            ),
            ((fixed, peak.format(ADAFACTOR_FINE_TUNING)), "the loss must not rise within the first 50 updates"),
            (("layers_to_freeze = []",), "the loss at the same update must be lower than with a frozen encoder"),
        ),
    }


def _adamw_rate(settings: TrainingSettings) -> float:
    """The learning rate that fledge's trials give for fine-tuning with AdamW, for the width, batch and length of these
    settings."""
    batch = (settings.batch_rows or 64.0) * (settings.context or 256.0)
    steps = settings.steps or 1000.0
    size = RunSize(round(settings.hidden_size or 768), round(batch), round(steps), round(batch * steps))
    return float(f"{fine_tuning_rate('sft', 'adamw', size, has_adapter=False)[0]:.1g}")


CHATLM = KnownTrainer(
    name="ChatLM-mini-Chinese",
    words=("learn_rate", "batch_size_per_gpu", "chat_small_t5"),
    source="model/trainer.py and config.py of charent/ChatLM-mini-Chinese, adafactor.py of torch_optimizer 0.3.0",
    facts={
        "method": "full", "vocab_size": 29298.0, "hidden_size": 768.0, "parameters": 0.21e9, "optimizer": "adafactor",
        "schedule": "onecycle", "max_grad_norm": 1.0,
    },
    without_effect={
        "learning_rate": "the Adafactor of the published code computes its step from the weights (relative_step) and ignores "
        "it",
        "warmup_steps": "the published model/trainer.py never reads warmup_steps",
    },
    told=_chatlm,
    schemes=_chatlm_schemes,
    found=_chatlm_found,
)  # fmt: skip
KNOWN_TRAINERS: tuple[KnownTrainer, ...] = (
    replace(
        CHATLM,
        words=(*CHATLM.words, "is_finetune=True"),
        facts={**CHATLM.facts, "kind": "sft", "initial": "trained"},
        told=lambda settings: [*_chatlm(settings), FROZEN_ENCODER],
    ),
    CHATLM,
)
"""The first one whose words are all there is taken."""


def known_trainer(*files: Path | None) -> KnownTrainer | None:
    """The published trainer whose words all stand in these files, or in the names of the settings; None for any other."""
    text = "\n".join(_text_of(file) for file in files if file is not None and file.is_file())
    return next((one for one in KNOWN_TRAINERS if all(word in text for word in one.words)), None)


def _text_of(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(MOST_READ).decode("utf-8", errors="replace")
