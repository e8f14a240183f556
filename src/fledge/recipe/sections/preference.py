"""The settings of stages that learn from preferences, and which of them each loss reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fledge.recipe.sections.base import ConfigModel

PositiveFloat = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class PairLossKeys:
    """The keys that a loss of pairs reads.

    `beta`: its default. `unit`: of the loss. `has_reference`: whether it compares the model with a reference. `smoothing`:
    whether it reads `label_smoothing`, and whether it needs it. `simpo_gamma`: its default; None: the loss does not read it.
    `has_sft_loss`: whether the SFT loss of the chosen answer is a part of the loss already.
    """

    beta: float
    unit: str = "nats/pair"
    has_reference: bool = True
    smoothing: Literal["none", "optional", "required"] = "none"
    simpo_gamma: float | None = None
    has_sft_loss: bool = False


PAIR_LOSSES: Mapping[str, PairLossKeys] = {
    "sigmoid": PairLossKeys(beta=0.1, smoothing="optional"),
    "robust": PairLossKeys(beta=0.1, smoothing="required"),
    "sigmoid_norm": PairLossKeys(beta=2.0),
    "hinge": PairLossKeys(beta=0.1, unit="per pair"),
    "ipo": PairLossKeys(beta=0.1, unit="per pair"),
    "simpo": PairLossKeys(beta=2.0, has_reference=False, simpo_gamma=1.0),
    "orpo": PairLossKeys(beta=0.1, has_reference=False, has_sft_loss=True),
}


def _losses_where(has: str) -> str:
    """The losses with this kind of label smoothing, in words."""
    return " or ".join(name for name, keys in PAIR_LOSSES.items() if keys.smoothing == has)


PATIENCE = 2  # evaluations with a rising loss of preferences: they overfit sooner than the loss of tokens


class KeptReferenceSettings(ConfigModel):
    """The settings of a reference that stays in memory as a second model."""

    reference_precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        default=None,
        description="what a second model computes in, and keeps its matrices in if it is half; null: as the model in training",
    )
    reference_device: Literal["cpu", "cuda"] | None = Field(
        default=None, description="where a second model is; null: where the model in training is"
    )

    @property
    def reference_placement(self) -> tuple[str | None, str | None]:
        """Precision and device of the second model; None: those of the model in training."""
        return self.reference_precision, self.reference_device

    @model_validator(mode="after")
    def _check_there_is_a_second_model(self) -> "KeptReferenceSettings":
        chosen = [name for name in ("reference_precision", "reference_device") if getattr(self, name) is not None]
        if chosen and not getattr(self, "keeps_reference_model", False):
            raise ValueError(
                f"{chosen[0]}: no second model is in memory here: the reference's log-probabilities are computed before by the "
                "model itself, or are not needed; leave it out, or keep one (precompute_ref_log_probs: false; in grpo a beta)"
            )
        if chosen and getattr(self, "adapter", None) is not None:
            raise ValueError(
                f"{chosen[0]}: with an adapter the reference is the model in training with the adapter of the start, no second "
                "model: leave it out"
            )
        return self


class AnswerSettings(ConfigModel):
    """The settings of stages that compare answers: prompts and answers may have limits of their own."""

    @model_validator(mode="before")
    @classmethod
    def _take_patience_of_preferences(cls, values: Any) -> Any:
        """The section with the patience of `guards.validation_increase` for preferences, where none is written."""
        if not isinstance(values, dict) or not isinstance(values.get("guards", {}), dict):
            return values
        guards = values.get("guards", {})
        guard = guards.get("validation_increase", {})
        guard = {"action": guard} if isinstance(guard, str) else guard
        if not isinstance(guard, dict):
            return values
        return {**values, "guards": {**guards, "validation_increase": {"patience": PATIENCE, **guard}}}


class PairSettings(AnswerSettings):
    """The settings of stages whose examples are two answers to one prompt."""

    share_prompts: Literal["auto"] | bool = Field(
        default="auto",
        description="compute the prompt of a pair once for both answers; auto: where the model can and it saves at least a "
        "hundredth of the tokens",
    )

    @property
    def prompt_sharing(self) -> Literal["auto"] | bool:
        """Whether the two answers are to share their prompt."""
        return self.share_prompts


class ReferenceSettings(KeptReferenceSettings, AnswerSettings):
    """The settings of the reference, the model as it was when the stage began."""

    precompute_ref_log_probs: bool = Field(
        default=True,
        description="compute the reference model's log-probabilities once and store them; false: keep a second model in memory",
    )


class PreferenceSettings(ReferenceSettings, PairSettings):
    """The settings of a stage on pairs of answers."""

    loss_type: Literal["sigmoid", "robust", "sigmoid_norm", "hinge", "ipo", "simpo", "orpo"] = Field(
        default="sigmoid",
        description="sigmoid: DPO; robust: DPO for labels of which a known share is flipped; sigmoid_norm: DPO on "
        "log-probabilities averaged over tokens; hinge: SLiC-HF; ipo: IPO, on averages too; simpo, orpo: without a reference",
    )
    beta: PositiveFloat = Field(
        default=0.1, description="scale of the rewards; in orpo the weight of the odds ratio. Default of sigmoid_norm, simpo: 2"
    )
    simpo_gamma: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="simpo only: the margin of rewards to reach; null: 1"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="assumed fraction of flipped labels: cDPO with sigmoid, needed for robust"
    )
    sft_loss_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="weight of the SFT loss of the chosen answers"
    )
    disentanglement: bool = Field(
        default=False, description="measure at evaluations whether updates can move chosen and rejected answers apart"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_loss(cls, values: Any) -> Any:
        """The section with the defaults that depend on `loss_type`."""
        keys = PAIR_LOSSES.get(str(values.get("loss_type", "sigmoid"))) if isinstance(values, dict) else None
        if keys is None:  # told by the check of loss_type
            return values
        defaults = {"beta": keys.beta} if keys.simpo_gamma is None else {"beta": keys.beta, "simpo_gamma": keys.simpo_gamma}
        taken = {name: value for name, value in defaults.items() if values.get(name) is None}
        reference = {} if keys.has_reference else {"precompute_ref_log_probs": False}
        if "precompute_ref_log_probs" in values and values["precompute_ref_log_probs"] is not False and reference:
            raise ValueError(f"loss_type {values['loss_type']} has no reference model: leave precompute_ref_log_probs out")
        return {**values, **taken, **reference}

    @property
    def loss_keys(self) -> PairLossKeys:
        """What the loss of the stage reads."""
        return PAIR_LOSSES[self.loss_type]

    @property
    def loss_unit(self) -> str:
        """nats/pair for losses that are negative log-likelihoods; hinge and ipo losses have no unit."""
        return self.loss_keys.unit

    @property
    def keeps_reference_model(self) -> bool:
        """Whether a second model computes the reference log-probabilities of each batch."""
        return self.loss_keys.has_reference and not self.precompute_ref_log_probs

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference log-probabilities are computed once, before the first step."""
        return self.loss_keys.has_reference and self.precompute_ref_log_probs

    @property
    def measures_disentanglement(self) -> bool:
        """Whether evaluations compare the gradients of chosen and rejected answers."""
        return self.disentanglement

    @model_validator(mode="after")
    def _check_keys_of_loss(self) -> "PreferenceSettings":
        keys, name = self.loss_keys, self.loss_type
        if self.label_smoothing and keys.smoothing == "none":
            raise ValueError(
                f"label_smoothing {self.label_smoothing} is defined for loss_type {_losses_where('optional')} or "
                f"{_losses_where('required')} only, not for {name}: set label_smoothing to 0, or loss_type to sigmoid"
            )
        if not self.label_smoothing and keys.smoothing == "required":
            raise ValueError(
                f"loss_type {name} needs the fraction of labels that are flipped, such as label_smoothing: 0.1; without "
                "flipped labels it is loss_type sigmoid"
            )
        if self.simpo_gamma is not None and keys.simpo_gamma is None:
            raise ValueError(f"simpo_gamma belongs to loss_type simpo; this loss_type is {name}")
        if self.sft_loss_weight and keys.has_sft_loss:
            raise ValueError(
                f"the SFT loss of the chosen answer is a part of loss_type {name}, with weight 1: set sft_loss_weight to 0, "
                "and beta to weigh the odds ratio against it"
            )
        return self


class KtoSettings(ReferenceSettings):
    """The settings of a stage on single answers that are labelled desirable or undesirable (KTO: Ethayarajh et al. 2024)."""

    beta: PositiveFloat = Field(default=0.1, description="scale of the rewards: how risk-averse the value function is")
    desirable_weight: PositiveFloat = Field(default=1.0, description="weight λ_D of the loss of a desirable answer")
    undesirable_weight: PositiveFloat = Field(default=1.0, description="weight λ_U of the loss of an undesirable answer")

    @property
    def loss_unit(self) -> str:
        """The loss is a value between 0 and the weight of the answer's label."""
        return "per answer"

    @property
    def keeps_reference_model(self) -> bool:
        """Whether a second model computes the reference log-probabilities of each batch."""
        return not self.precompute_ref_log_probs

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference log-probabilities are computed once, before the first step."""
        return self.precompute_ref_log_probs


class RewardSettings(PairSettings):
    """The settings of a stage that trains a reward model on pairs of answers."""

    center_rewards_coefficient: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="weight of (reward of chosen + reward of rejected)², which keeps rewards around 0; 0: none"
    )

    @property
    def loss_unit(self) -> str:
        """The loss is a negative log-likelihood of the preference."""
        return "nats/pair"

    @property
    def trains_reward_model(self) -> bool:
        """The result of the stage gives rewards."""
        return True
