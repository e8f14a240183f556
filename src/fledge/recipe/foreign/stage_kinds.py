"""The kinds of stages, as configurations of other trainers name them, and what differs in the translation of each kind."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from fledge.recipe.foreign.answer import Context, boolean, integer, name_list, word
from fledge.recipe.foreign.sizes import PATHS
from fledge.recipe.schema_keys import KINDS

KIND_KEYS = name_list("stage mode training_stage train_type trainer_type rl")
POLICY_SECTIONS = {"actor_rollout_ref", "algorithm"}  # beside which `reward_model` is a part of a policy's training
DEFAULT_KIND = "sft"  # of a configuration whose keys say nothing about the kind


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """One kind of stage in configurations of other trainers."""

    stage_name: str  # name of the stage in a converted recipe
    section: re.Pattern[str]  # names of sections that describe such a stage: `TrainConfigSFT`
    methods: tuple[str, ...]  # values of KIND_KEYS that mean this kind
    keys: tuple[str, ...]  # keys that only configurations of this kind have
    example_file: str  # training file of a converted recipe where the configuration names none
    rows_per_example: int = 1  # rows of `max_seq_len` tokens that one example takes; two answers take two
    smooths_targets: bool = True  # whether `label_smoothing` spreads the target's probability over the vocabulary
    from_scratch: bool = False  # whether the model is made from sizes where the configuration names no model
    required: tuple[
        tuple[str, str], ...
    ] = ()  # keys that a stage must have and other trainers' configurations do not, with examples
    optimizer: str | None = None  # optimizer of other trainers where nothing is written and fledge has a different default


STAGE_KINDS: dict[str, StageKind] = {  # in the order in which sections and keys are tried
    "grpo": StageKind(
        stage_name="grpo",
        section=re.compile(r"grpo"),
        methods=("grpo", "dr_grpo", "dapo"),
        keys=name_list(
            "num_generations reward_funcs reward_weights epsilon_high scale_rewards steps_per_generation adv_estimator"
        ),
        example_file="prompts.jsonl",
        smooths_targets=False,
        required=(("rewards", "exact_match"),),
    ),
    "reward": StageKind(
        stage_name="reward",
        section=re.compile(r"reward_?(model|train)|^reward$|^rm$"),
        methods=("rm", "reward", "reward_model", "reward_modeling"),
        keys=name_list("center_rewards_coefficient"),
        example_file="pairs.jsonl",
        rows_per_example=2,
        smooths_targets=False,
    ),
    "preference": StageKind(
        stage_name="dpo",
        section=re.compile(r"dpo|preference"),
        methods=("dpo", "preference"),
        keys=name_list("""
            pref_beta dpo_beta beta pref_loss rpo_alpha pref_ftx precompute_ref_log_probs max_prompt_length dpo_data_path
            dpo_label_smoothing ref_model ld_alpha sync_ref_model max_completion_length loss_weights
            precompute_ref_batch_size
            """),
        example_file="pairs.jsonl",
        rows_per_example=2,
        smooths_targets=False,
    ),
    "kto": StageKind(
        stage_name="kto",
        section=re.compile(r"kto"),
        methods=("kto",),
        keys=name_list("desirable_weight undesirable_weight kto_chosen_weight kto_rejected_weight"),
        example_file="labelled.jsonl",
        rows_per_example=2,
        smooths_targets=False,
    ),
    "sft": StageKind(
        stage_name="sft",
        section=re.compile(r"sft|fine_?tun|instruct"),
        methods=("sft", "full_sft", "finetune", "fine_tune", "instruction", "chat"),
        keys=(
            *name_list("""
            sft_data_path assistant_only_loss completion_only_loss train_on_prompt train_on_inputs is_finetune sft_data
            finetuning_type
            """),
            *(name for name in PATHS if name != "model_name"),
        ),
        example_file="train.jsonl",
    ),
    "pretrain": StageKind(
        stage_name="pretrain",
        section=re.compile(r"pre_?train|^pt$"),
        methods=("pt", "pretrain", "pretraining", "cpt"),
        keys=name_list("""
            n_layer n_embd block_size n_layers dim d_model pretrain_data_path pretraining_dataset pretrain_data max_tokens
            total_tokens
            """),
        example_file="train.txt",
        from_scratch=True,
        optimizer="adamw",
    ),
}


@dataclass(frozen=True)
class Method:
    """A training method by its name in other trainers: the kind of stage, the loss of that stage, and a remark."""

    kind: str
    loss_type: str | None = None
    note: str = ""


METHODS_BY_NAME: dict[str, Method] = {
    **{name: Method(kind) for kind, stage in STAGE_KINDS.items() for name in stage.methods},
    "ipo": Method("preference", "ipo"),
    "orpo": Method("preference", "orpo"),
    "simpo": Method("preference", "simpo"),
    "ppo": Method("grpo", note="there is no PPO; a grpo stage trains on rewards without a value model"),
}


def method_named(value: Any) -> Method | None:
    """The method with this name in other trainers; None for an unknown name."""
    return METHODS_BY_NAME.get(word(value))


def loss_types(kind: str | None) -> tuple[str, ...]:
    """The values of `loss_type` in a stage of this kind; of all kinds if it is unknown. Empty: the kind has one loss."""
    if kind is None:
        return tuple(name for known in KINDS for name in loss_types(known))
    field = KINDS[kind].model_fields.get("loss_type")
    return tuple(str(name) for name in get_args(field.annotation)) if field else ()


def cross_entropy_kinds() -> str:
    """The kinds of stages that train by cross-entropy, in words: `pretrain and sft`."""
    return " and ".join(kind for kind in KINDS if STAGE_KINDS[kind].smooths_targets)


def kind_of_section(name: str, beside: Collection[str] = ()) -> str | None:
    """The kind of stage that a section describes, from its name: `sft`, `TrainConfigSFT`, `pretraining`. `beside`: the names
    of all sections; beside that of a policy a section about a reward model describes no stage, but what rewards that policy."""
    kind = next((kind for kind, stage in STAGE_KINDS.items() if stage.section.search(name.lower())), None)
    return None if kind == "reward" and POLICY_SECTIONS & set(beside) else kind


def guessed_kind(keys: Mapping[str, Any]) -> str:
    """The kind of stage that these keys and values describe."""
    context = Context(keys)
    for key in KIND_KEYS:
        if context.has((key,)) and (method := method_named(keys[key])):
            return method.kind
    if _describe_reward_model(keys):
        return "reward"
    return next((kind for kind, stage in STAGE_KINDS.items() if context.has(stage.keys)), DEFAULT_KIND)


def _describe_reward_model(keys: Mapping[str, Any]) -> bool:
    """Whether these keys are those of a model with one number for a whole text."""
    is_classifier = str(keys.get("model_type", "")).endswith("ForSequenceClassification")
    return boolean(keys.get("reward_model")) is True or integer(keys.get("num_labels")) == 1 or is_classifier
