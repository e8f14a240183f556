"""The kind of a stage, from the figures that only such stages have."""

from fledge.training_log.records import TrainingLog

SIGNS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("grpo", (("train/reward", "train/reward_std"), ("train/completions/mean_length",))),
    ("grpo", (("train/frac_reward_zero_std",),)),
    ("kto", (("train/rewards/chosen",), ("train/rewards/rejected",), ("train/kl",))),
    ("preference", (("train/rewards/margins",), ("train/logps/chosen", "train/rewards/chosen"))),
    ("preference", (("train/rewards/chosen",), ("train/rewards/rejected",))),
    ("reward", (("train/rewards/margins",),)),
)
"""Kind → groups of figures: a log with one figure of every group is of this kind. The first that fits counts."""


def guess_kind(log: TrainingLog) -> str | None:
    """The kind of stage that the figures of a log tell; None where they do not: a loss alone is that of any stage."""
    for kind, groups in SIGNS:
        if all(any(name in log.series for name in group) for group in groups):
            return kind
    return None
