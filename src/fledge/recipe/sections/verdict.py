"""The thresholds of the verdict on a stage."""

from typing import Annotated, Literal

from pydantic import Field

from fledge.recipe.sections.base import ConfigModel

Rate = Annotated[float, Field(ge=0, le=1)]
AboveZero = Annotated[float, Field(gt=0)]


class VerdictConfig(ConfigModel):
    """What a stage must reach to be released, and what makes it roll back. null: this figure decides nothing."""

    max_loss: AboveZero | Literal["auto"] | None = Field(
        default="auto",
        description="validation loss in nats per token, at most; auto: 2.5 of a pretrain stage, 1.5 of an sft stage, none else",
    )
    min_bleu: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=15.0, description="BLEU-4 of answers, where measured"
    )
    min_pass_rate: Rate | None = Field(default=0.5, description="share of prompts whose answers keep all rules")
    min_ended: Rate | None = Field(default=0.8, description="share of answers that the model ends by itself")
    max_repetition: Rate | None = Field(default=0.3, description="mean share of repeated n-grams in answers")
    max_prompt_copy: Rate | None = Field(default=0.5, description="mean share of an answer that is copied from its prompt")
    max_refusal: Rate | None = Field(default=0.2, description="share of answers that refuse")
    max_off_topic: Rate | None = Field(default=0.2, description="share of answers that have nothing to do with their prompt")
    max_identity_template: Rate | None = Field(
        default=0.1, description="share of answers that say who the assistant is, to prompts that do not ask"
    )
    max_wrong_language: Rate | None = Field(default=0.2, description="share of answers in another language than expected")
    max_prompt_targets: Rate | None = Field(
        default=0.02, description="share of the training targets that stand in prompts, of stages that train on answers"
    )
    min_trained_ends: Rate | None = Field(default=0.9, description="share of training answers whose end is a target")
    max_identity_targets: Rate | None = Field(
        default=0.15, description="share of training answers that say who the assistant is"
    )
    max_misfits: Rate | None = Field(
        default=0.15, description="share of training answers that are likelier after another row's prompt than after their own"
    )
    max_drop: Rate | None = Field(
        default=0.1, description="drop of a set's accuracy, exact match or pass rate that rolls back, if it is no chance"
    )
    max_forgetting: AboveZero | None = Field(
        default=None, description="increase of the bits per byte of a set of texts that rolls back, as a share"
    )
    roll_back: Literal["auto"] | bool = Field(
        default="auto",
        description="whether a stage that is rolled back puts the last good model back as what goes on; auto: unless "
        "select_checkpoint is set to last",
    )

    def thresholds(self, kind: str) -> dict[str, float | None]:
        """The thresholds of a stage of a kind by their keys; None decides nothing. Those of answers decide nothing in stages
        that do not teach to answer, unless they are other values than the defaults."""
        found = {
            "max_loss": LOSS_TARGETS.get(kind) if self.max_loss == "auto" else self.max_loss,
            "min_bleu": self.min_bleu,
            "min_pass_rate": self.min_pass_rate,
            "min_ended": self.min_ended,
            "max_repetition": self.max_repetition,
            "max_prompt_copy": self.max_prompt_copy,
            "max_refusal": self.max_refusal,
            "max_off_topic": self.max_off_topic,
            "max_identity_template": self.max_identity_template,
            "max_wrong_language": self.max_wrong_language,
            "max_prompt_targets": self.max_prompt_targets,
            "min_trained_ends": self.min_trained_ends,
            "max_identity_targets": self.max_identity_targets,
            "max_misfits": self.max_misfits,
            "max_drop": self.max_drop,
            "max_forgetting": self.max_forgetting,
        }
        return found if kind not in WITHOUT_ANSWERS else {key: self._set(key, value) for key, value in found.items()}

    def _set(self, key: str, value: float | None) -> float | None:
        """The value of a key, None for a threshold of answers that is left at its default."""
        return None if key in OF_ANSWERS and value == type(self).model_fields[key].default else value


ORIGINS = {
    "max_loss": "the targets that MiniMind (pretrain, 2.5) and ChatLM-mini-Chinese (sft, 1.5) were trained for; losses depend "
    "on tokenizer and language",
    "min_bleu": "the target that ChatLM-mini-Chinese was trained for (BLEU-4 0.15)",
    "min_pass_rate": "the guard pass_rate",
    "max_repetition": "the guard repetition",
}
"""Where defaults come from. Those that are not named are fledge's own, from the trials in docs/evaluation.md."""

LOSS_TARGETS = {"pretrain": 2.5, "sft": 1.5}
"""`max_loss: auto` by kind of stage, in nats per token."""
NEXT_TOKEN_KINDS = frozenset({"pretrain", "sft"})
"""Kinds of stages whose loss is that of next tokens, so that bits per byte say the same."""

WITHOUT_ANSWERS = frozenset({"pretrain"})
"""Kinds of stages that do not teach to answer."""

OF_ANSWERS = frozenset(
    {
        "min_bleu",
        "min_pass_rate",
        "min_ended",
        "max_repetition",
        "max_prompt_copy",
        "max_refusal",
        "max_off_topic",
        "max_identity_template",
        "max_wrong_language",
    }
)
"""Thresholds of answers."""
