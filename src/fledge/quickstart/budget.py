"""The time budget of the quickstart: steps of each stage and rows of generated data."""

from dataclasses import dataclass

from fledge.world import Sizes

MICRO_BATCH_SIZE = 8
TIME_FRACTION = {"pretrain": 0.15, "sft": 0.785, "dpo": 0.065}  # of the training time
ROW_COST = {  # in rows of pretraining: in SFT the head reads only answers; a pair has two, and the reference's pass
    "pretrain": 1.0, "sft": 0.92, "dpo": 2.4,
}  # fmt: skip
ROWS_PER_TEXT = {"pretrain": 0.26, "sft": 0.21}  # packed rows that one generated text or conversation fills
MIN_TEXTS, MAX_TEXTS = 4000, 120_000  # generated for one stage
MIN_STEPS = 20


@dataclass(frozen=True)
class Budget:
    """The packed rows that can be trained in `minutes` at a measured speed of `rows_per_second`."""

    minutes: float
    rows_per_second: float

    def rows(self, stage: str) -> float:
        """Packed rows that a stage can read."""
        return self.minutes * 60 * self.rows_per_second * TIME_FRACTION[stage] / ROW_COST[stage]

    def steps(self, stage: str) -> int:
        """Optimizer steps of a stage."""
        return max(MIN_STEPS, round(self.rows(stage) / MICRO_BATCH_SIZE))

    def sizes(self) -> Sizes:
        """Numbers of texts and conversations that training reads once: new rows teach more than repeated ones."""
        texts, conversations = (
            min(MAX_TEXTS, max(MIN_TEXTS, round(self.rows(stage) / ROWS_PER_TEXT[stage]))) for stage in ("pretrain", "sft")
        )
        return Sizes(pretrain=texts, sft=conversations)
