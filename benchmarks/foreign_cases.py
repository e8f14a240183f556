"""The cases of foreign_logs.py: which trainer, what is wrong with the run, and which causes name it rightly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMED, HEALTHY, OPEN = "named", "healthy", "open"


@dataclass(frozen=True, kw_only=True)
class ForeignCase:
    """A run of another trainer.

    `wrong`: what is wrong with it; empty: nothing. `right`: causes that name it. `must`: `named`: a right cause must stand
    first; `healthy`: nothing may be said; `open`: curves alone cannot tell this fault for sure, so that a right cause or an
    abstention will do. `also`: other causes that are true of this run. `how`: settings of the trainer. `log`: the file of the
    run's folder that is examined; `.`: the folder itself. `after`: the case whose model it starts from.
    """

    name: str
    trainer: str
    wrong: str = ""
    right: tuple[str, ...] = ()
    must: str = HEALTHY
    also: tuple[str, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict)
    log: str = "."
    after: str | None = None
    quick: bool = False


HIGH, LOW = "learning rate too high", "learning rate too low"
MEMORISED = ("too many epochs", "repeated data learned by heart", "too little data for the model")
SUMMED = ("logged loss summed over accumulation", "accumulation normalised wrongly")


def foreign_case(name: str, must: str = HEALTHY, wrong: str = "", right: tuple[str, ...] = (), **more: Any) -> ForeignCase:
    """A case whose trainer is the first word of its name."""
    options = {key: more.pop(key) for key in ("log", "after", "quick", "also") if key in more}
    trainer = more.pop("trainer", name.split("-")[0])
    return ForeignCase(name=name, trainer=trainer, must=must, wrong=wrong, right=right, how=more, **options)


RATE = 4e-3  # about what fledge derives for fresh weights of width 64 and 384 tokens a batch
TRANSFORMERS = (
    foreign_case("hf-pretrain", learning_rate=RATE, max_steps=100, eval_every=25, quick=True),
    foreign_case("hf-rate-high", NAMED, "learning rate × 100", (HIGH, "no warm-up"), learning_rate=100 * RATE, max_steps=100),
    foreign_case("hf-rate-zero", NAMED, "learning rate 0", ("learning rate zero",), learning_rate=0.0, max_steps=60,
                 quick=True),
    foreign_case("hf-rate-low", NAMED, "learning rate × 0.01", (LOW,), learning_rate=RATE / 100, max_steps=100),
    foreign_case(
        "hf-overfit", NAMED, "32 rows, 40 epochs", MEMORISED,
        learning_rate=RATE, max_steps=160, rows=32, eval_every=10, also=("batch too small",),
    ),
    foreign_case("hf-loss-summed", OPEN, "loss summed over 8 accumulated micro-batches", SUMMED,
          learning_rate=RATE, max_steps=60, batch=2, accumulation=8, own_loss="mean"),
    foreign_case("hf-no-warm-up", OPEN, "no warm-up at 25 times the rate", (HIGH, "no warm-up"),
          learning_rate=0.1, max_steps=100, warmup_steps=0),
    foreign_case("hf-not-in-optimizer", OPEN, "the optimizer has the weights of a copy", ("tensors that do not learn",),
          learning_rate=RATE, max_steps=100, optimizer_of_copy=True),
    foreign_case("hf-short-horizon", NAMED, "the schedule ends after 20 of 100 steps", ("schedule ends too early",),
          learning_rate=RATE, max_steps=100, horizon=20),
    foreign_case("hf-stable-then-decay", learning_rate=RATE, max_steps=100, lr_scheduler_type="warmup_stable_decay",
          lr_scheduler_kwargs={"num_decay_steps": 20}, log="train.log"),
    foreign_case("hf-fine-tune", learning_rate=3e-4, max_steps=120, texts="alpaca", after="hf-pretrain"),
    foreign_case("hf-tiny-batch", learning_rate=RATE / 2, max_steps=120, batch=4, log="events", report="tensorboard"),
)  # fmt: skip
SFT = (
    foreign_case("trl_sft-start", learning_rate=RATE, max_steps=120, rows="words", batch=32),
    foreign_case("trl_sft-chat", learning_rate=5e-4, max_steps=60, rows="alpaca", after="hf-fine-tune"),
    foreign_case("trl_sft-masked", OPEN, "no token is supervised", ("everything masked",),
          learning_rate=5e-4, max_steps=40, rows="alpaca", masked=True, after="hf-fine-tune"),
    foreign_case("trl_sft-rate-high", NAMED, "learning rate × 200", (HIGH, "no warm-up"),
          learning_rate=0.1, max_steps=60, rows="alpaca", after="hf-fine-tune"),
    foreign_case("trl_sft-overfit", NAMED, "32 rows, 30 epochs", MEMORISED,
          learning_rate=4e-3, max_steps=160, rows="alpaca", count=32, eval_every=16, after="hf-fine-tune"),
    foreign_case("trl_sft-lora", learning_rate=5e-3, max_steps=60, rows="alpaca", lora=8, after="hf-fine-tune"),
    foreign_case("trl_sft-lora-2e-2", learning_rate=2e-2, max_steps=60, rows="alpaca", lora=8, after="hf-fine-tune"),
    foreign_case("trl_sft-lora-rate-low", OPEN, "rate of an adapter × 0.001", (LOW,),
          learning_rate=5e-6, max_steps=60, rows="alpaca", lora=8, after="hf-fine-tune"),
)  # fmt: skip
DPO = (
    foreign_case("trl_dpo-pairs", learning_rate=2e-4, max_steps=40, beta=0.1, after="trl_sft-chat"),
    foreign_case("trl_dpo-beta-zero", OPEN, "beta is 0", ("beta is zero", "beta too small"),
          learning_rate=2e-4, max_steps=40, beta=0.0, after="trl_sft-chat"),
    foreign_case("trl_dpo-rate-high", NAMED, "learning rate × 200", (HIGH, "preferences over-optimised", "no warm-up"),
          learning_rate=4e-2, max_steps=40, beta=0.1, after="trl_sft-chat"),
    foreign_case("trl_dpo-rate-low", OPEN, "learning rate × 0.001", (LOW,),
          learning_rate=2e-7, max_steps=40, beta=0.1, after="trl_sft-chat"),
    foreign_case("trl_dpo-swapped", OPEN, "chosen and rejected are swapped", ("chosen and rejected swapped",),
          learning_rate=2e-4, max_steps=40, beta=0.1, swapped=True, after="trl_sft-chat"),
    foreign_case("trl_dpo-overfit", OPEN, "16 pairs, 10 epochs", (*MEMORISED, "preferences over-optimised"),
          learning_rate=1e-3, max_steps=40, beta=0.1, count=16, after="trl_sft-chat"),
)  # fmt: skip
GRPO = (
    foreign_case("trl_grpo-words", learning_rate=5e-4, max_steps=30, reward="word", after="trl_sft-start"),
    foreign_case("trl_grpo-reward-constant", NAMED, "the reward is 1 for every answer",
                 ("reward constant", "groups without variance"),
          learning_rate=5e-4, max_steps=30, reward="constant", after="trl_sft-start"),
    foreign_case("trl_grpo-rate-high", OPEN, "learning rate × 200", (HIGH, "KL blow-up", "entropy collapse", "no warm-up"),
          learning_rate=0.1, max_steps=30, reward="word", kl=0.04, after="trl_sft-start"),
    foreign_case("trl_grpo-cut", OPEN, "at most 1 token an answer", ("completions truncated",),
          learning_rate=5e-4, max_steps=30, reward="word", longest=1, after="trl_sft-start"),
)  # fmt: skip
MINIMIND = (
    foreign_case("minimind-pretrain", script="train_pretrain", learning_rate=2e-3, epochs=1, rows=800, log="train.log"),
    foreign_case("minimind-rate-high", NAMED, "learning rate × 200", (HIGH, "no warm-up"),
          script="train_pretrain", learning_rate=0.4, epochs=1, rows=800, log="train.log"),
    foreign_case("minimind-chat", script="train_full_sft", learning_rate=5e-4, epochs=2, rows=480, log="train.log",
          after="minimind-pretrain"),
    foreign_case("minimind-chat-rate-zero", NAMED, "learning rate 0", ("learning rate zero",),
          script="train_full_sft", learning_rate=0.0, epochs=1, rows=480, log="train.log", after="minimind-pretrain"),
)  # fmt: skip
NANOGPT = (
    foreign_case("nanogpt-characters", max_iters=250, learning_rate=3e-3, log="train.log"),
    foreign_case("nanogpt-overfit", NAMED, "3,000 characters", MEMORISED,
          max_iters=400, learning_rate=3e-3, characters=3000, log="train.log", also=("batch too small",)),
    foreign_case("nanogpt-rate-high", NAMED, "learning rate × 300", (HIGH, "no warm-up"),
          max_iters=200, learning_rate=1.0, log="train.log", warmup_iters=0),
)  # fmt: skip
LITGPT = (
    foreign_case("litgpt-pretrain", learning_rate=2e-3, steps=120, log="train.log"),
    foreign_case("litgpt-rate-low", OPEN, "learning rate × 0.002", (LOW,), learning_rate=4e-6, steps=120, log="metrics.csv"),
)
LLAMAFACTORY = (
    foreign_case("llamafactory-sft", learning_rate=5e-4, max_steps=80, stage="sft", after="hf-fine-tune"),
    foreign_case("llamafactory-rate-high", OPEN, "learning rate × 200", (HIGH, "no warm-up"),
          learning_rate=0.1, max_steps=80, stage="sft", after="hf-fine-tune"),
    foreign_case("llamafactory-dpo", learning_rate=2e-4, max_steps=40, stage="dpo", after="hf-fine-tune"),
)  # fmt: skip
CASES: tuple[ForeignCase, ...] = (*TRANSFORMERS, *SFT, *DPO, *GRPO, *MINIMIND, *NANOGPT, *LITGPT, *LLAMAFACTORY)
"""All cases; one whose model another starts from stands before it."""
