"""Further cases of foreign_logs.py: other seeds, widths, rates, schedules and faults.

What must be said about each was written down before any was examined. After their first reading the rules that had been wrong
about three of them were changed (docs/doctor.md), so a later reading of the same logs is held out no more.
Some start from models of the cases of foreign_cases.py, which must stand in the same working folder.
"""

from foreign_cases import HIGH, LOW, NAMED, OPEN, SUMMED, ForeignCase, foreign_case

RATE, SEED, WIDTH = 2e-3, 7, 96
HELD_OUT: tuple[ForeignCase, ...] = (
    foreign_case("hf-constant-rate", learning_rate=RATE, max_steps=90, eval_every=30, lr_scheduler_type="constant_with_warmup",
                 seed=SEED, width=WIDTH),
    foreign_case("hf-restarts", learning_rate=RATE, max_steps=90, lr_scheduler_type="cosine_with_restarts",
                 lr_scheduler_kwargs={"num_cycles": 3}, seed=SEED, width=WIDTH),
    foreign_case("hf-not-shifted", OPEN, "the targets are the tokens that are read", ("targets not shifted",),
                 learning_rate=RATE, max_steps=90, own_loss="not shifted", seed=SEED, width=WIDTH),
    foreign_case("hf-shifted-twice", OPEN, "the targets are the tokens after the next ones", ("targets shifted twice",),
                 learning_rate=RATE, max_steps=90, own_loss="shifted twice", seed=SEED, width=WIDTH),
    foreign_case("hf-summed-16", OPEN, "loss summed over 16 accumulated micro-batches", SUMMED,
                 learning_rate=RATE, max_steps=60, batch=1, accumulation=16, own_loss="mean", seed=SEED, width=WIDTH),
    foreign_case("hf-rate-30", NAMED, "learning rate × 30", (HIGH, "no warm-up"),
                 learning_rate=30 * RATE, max_steps=90, seed=SEED, width=WIDTH),
    foreign_case("hf-warm-up-long", NAMED, "warm-up of 80 of 90 steps", ("warm-up too long",),
                 learning_rate=RATE, max_steps=90, warmup_steps=80, seed=SEED, width=WIDTH),
    foreign_case("hf-schedule-cut", NAMED, "stopped after 80 of the 400 steps of the schedule",
                 ("schedule cut before it decays",), learning_rate=RATE, max_steps=80, horizon=400, seed=SEED, width=WIDTH),
    foreign_case("trl_sft-linear", learning_rate=1e-3, max_steps=60, rows="alpaca", batch=16, lr_scheduler_type="linear",
                 seed=SEED, after="hf-fine-tune"),
    foreign_case("trl_sft-cut", OPEN, "at most 12 tokens of a row", ("context cuts answers",),
                 learning_rate=5e-4, max_steps=50, rows="alpaca", longest=12, seed=SEED, after="hf-fine-tune"),
    foreign_case("trl_sft-no-end", OPEN, "answers have no end token",
                 ("end token missing", "end token never supervised", "pad token hides the end token"),
                 learning_rate=5e-4, max_steps=50, rows="words", no_end=True, seed=SEED, after="trl_sft-start"),
    foreign_case("trl_sft-lora-constant", learning_rate=2e-3, max_steps=60, rows="alpaca", lora=16,
                 lr_scheduler_type="constant_with_warmup", seed=SEED, after="hf-fine-tune"),
    foreign_case("trl_dpo-beta-10", OPEN, "beta is 10", ("beta too large",),
                 learning_rate=2e-4, max_steps=40, beta=10.0, seed=SEED, after="trl_sft-chat"),
    foreign_case("trl_dpo-ipo", learning_rate=1e-4, max_steps=40, beta=0.1, loss_type="ipo", seed=SEED, after="trl_sft-chat"),
    foreign_case("trl_dpo-equal", OPEN, "chosen and rejected are the same", ("pairs equal or contradicting",),
                 learning_rate=2e-4, max_steps=40, beta=0.1, equal=True, seed=SEED, after="trl_sft-chat"),
    foreign_case("trl_grpo-constant-24", NAMED, "the reward is 1 for every answer, of up to 24 tokens",
                 ("reward constant", "groups without variance"),
                 learning_rate=2e-4, max_steps=30, reward="constant", longest=24, seed=SEED, after="trl_sft-start"),
    foreign_case("trl_grpo-letters", learning_rate=2e-4, max_steps=30, reward="letter", longest=8,
                 lr_scheduler_type="constant_with_warmup", seed=SEED, after="trl_sft-start"),
    foreign_case("minimind-wide", script="train_pretrain", learning_rate=1e-3, epochs=1, rows=640, batch=8, width=WIDTH,
                 log="train.log"),
    foreign_case("minimind-rate-60", NAMED, "learning rate × 60", (HIGH, "no warm-up"),
                 script="train_pretrain", learning_rate=0.06, epochs=1, rows=640, batch=8, width=WIDTH, log="train.log"),
    foreign_case("nanogpt-wide", max_iters=200, learning_rate=1e-3, batch=32, width=WIDTH, log="train.log"),
    foreign_case("nanogpt-rate-low", NAMED, "learning rate × 0.001", (LOW,),
                 max_iters=200, learning_rate=1e-6, batch=32, width=WIDTH, log="train.log"),
)  # fmt: skip
"""The held-out cases."""
