"""An unknown key is answered with a key of fledge, if it is an earlier name or a key of another trainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fledge.errors import FledgeError
from fledge.recipe import load_recipe, recipe_from_dict
from fledge.recipe.foreign.answer import Answer, Context
from fledge.recipe.foreign.renamed import RENAMED, RENAMED_VALUES
from fledge.recipe.foreign.stage_kinds import KIND_KEYS, STAGE_KINDS, guessed_kind, kind_of_section, loss_types
from fledge.recipe.foreign.synonyms import SYNONYMS, TABLES, answer_for, minimal_recipe
from fledge.recipe.foreign.wording import inline_yaml
from fledge.recipe.schema import Recipe, Source
from fledge.recipe.schema_keys import KINDS, kind_of, models_in
from fledge.recipe.yaml_dialect import RecipeLoader

DATA = {"train": "a.jsonl"}
SFT = "stages:\n  sft:\n    data: {train: a.jsonl}\n"


def load_error(folder: Path, text: str, *overrides: tuple[str, str]) -> str:
    """The error message for a recipe with this text."""
    file = folder / "r.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FledgeError) as caught:
        load_recipe([str(file)], overrides)
    return str(caught.value).replace(f"{folder}/", "")


def section_paths(model: type[BaseModel], section: type[BaseModel], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of a kind of section in a recipe; stages are named after their kind."""
    if issubclass(model, section):
        yield path
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            inner_path = (*path, name, *([kind for kind, stage in KINDS.items() if stage is inner] or []))
            yield from section_paths(inner, section, (*inner_path, 0) if inner is Source else inner_path)


def with_value(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The recipe with a value at a path; 0 in a path is the first element of a list."""
    if not path:
        return value
    if path[0] == 0:
        return [with_value({"path": "a.jsonl"} if not isinstance(tree, list) else tree[0], path[1:], value)]
    tree = dict(tree) if isinstance(tree, dict) else {}
    return {**tree, path[0]: with_value(tree.get(path[0], {}), path[1:], value)}


OLD = [(model, old, new) for model, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("model", "old", "new"), OLD, ids=[f"{model.__name__}.{old}" for model, old, _ in OLD])
def test_every_renamed_key_is_reported_with_its_new_name_and_line(
    tmp_path: Path, model: type[BaseModel], old: str, new: str
) -> None:
    path = next(section_paths(Recipe, model))
    assert new in model.model_fields
    assert old not in model.model_fields
    tree = with_value({"stages": {"sft": {"data": DATA}}}, (*path, old), 3)
    text = load_error(tmp_path, yaml.safe_dump(tree, default_flow_style=False, sort_keys=False))
    was, now = ".".join(map(str, (*path, old))), ".".join(map(str, (*path, new)))
    lines = [line for line in text.splitlines() if f"'{was}' is now '{now}'" in line]
    assert len(lines) == 1
    assert lines[0].split(". ", 1)[1].startswith("r.yaml:")
    assert f"unknown key '{was}'" not in text
    assert f"the key '{now}' is missing" not in text


@pytest.mark.parametrize(("owner", "values"), RENAMED_VALUES.items(), ids=[f"{m.__name__}.{n}" for m, n in RENAMED_VALUES])
def test_every_renamed_value_is_reported_with_its_new_name(tmp_path: Path, owner: Any, values: dict[Any, Any]) -> None:
    model, name = owner
    path = next(section_paths(Recipe, model))
    for old, new in values.items():
        tree = with_value({"stages": {"sft": {"data": DATA}}}, (*path, name), old)
        text = load_error(tmp_path, yaml.safe_dump(tree))
        dotted = ".".join(map(str, (*path, name)))
        assert f"'{dotted}: {old}' is now '{dotted}: {inline_yaml(new)}'" in text


def test_renamed_section_is_reported_with_its_keys(tmp_path: Path) -> None:
    text = load_error(tmp_path, "machine:\n  device: cpu\n  probe: again\n  checkpointing: full\n" + SFT)
    assert "r.yaml:1: 'machine' is now 'runtime'" in text
    assert "r.yaml:3: 'machine.probe: again' is now 'runtime.autotune: refresh'" in text
    assert "r.yaml:4: 'machine.checkpointing' is now 'runtime.activation_checkpointing'" in text
    assert text.startswith("3 problems")


def test_old_key_with_an_old_value_is_reported_once(tmp_path: Path) -> None:
    text = load_error(tmp_path, "stages:\n  dpo:\n    data: {train: a, long_conversations: recent}\n    reference: live\n")
    assert "r.yaml:3: 'stages.dpo.data.long_conversations: recent' is now 'stages.dpo.data.truncation: keep_recent'" in text
    assert "r.yaml:4: 'stages.dpo.reference: live' is now 'stages.dpo.precompute_ref_log_probs: false'" in text
    assert text.startswith("2 problems")


def test_old_key_given_as_a_flag_is_reported_at_the_flag(tmp_path: Path) -> None:
    text = load_error(tmp_path, SFT, ("stages.sft.optimizer.lr", "1e-4"), ("machine.device", "cpu"))
    assert "--stages.sft.optimizer.lr: 'stages.sft.optimizer.lr' is now 'stages.sft.optimizer.learning_rate'" in text
    assert "--machine.device: 'machine' is now 'runtime'" in text


def test_foreign_key_given_as_a_flag_is_answered_as_a_flag(tmp_path: Path) -> None:
    text = load_error(tmp_path, SFT, ("learning_rate", "1e-4"), ("stages.sft.num_train_epochs", "3"), ("bf16", "true"))
    assert "--learning_rate: learning_rate: 0.0001 → write --stages.sft.optimizer.learning_rate 0.0001" in text
    assert "→ write --stages.sft.duration '3 epochs'" in text
    assert "→ write --runtime.precision bf16" in text


# what is written in a stage of a recipe -> the answer
ANSWERS = [
    ("per_device_train_batch_size: 4", "write batch: {micro_batch_size: 4}"),
    ("num_train_epochs: 3.0", "write duration: 3 epochs"),
    ("epochs: 0.5", "write duration: 0.5 epochs"),
    ("max_steps: 500", "write duration: 500 steps"),
    ("max_iters: 500", "write duration: 500 steps"),
    ("total_tokens: 1000000", "write duration: 1000000 tokens"),
    ("cutoff_len: 256", "write data: {max_seq_len: 256}"),
    ("max_length: 1024", "write data: {max_seq_len: 1024} and model: {max_position_embeddings: 1024} at the top level"),
    ("block_size: 128", "write data: {max_seq_len: 128}"),
    ("max_seq_len: 128", "write data: {max_seq_len: 128}"),
    ("lr: 1e-4", "write optimizer: {learning_rate: 0.0001}"),
    ("learning_rate: 2e-5", "write optimizer: {learning_rate: 2e-05}"),
    ("lr_scheduler_type: cosine", "write schedule: {name: cosine}"),
    ("lr_scheduler_type: cosine_with_min_lr\n    lr_scheduler_kwargs: {min_lr_rate: 0.1}", "write schedule: {min_lr: 10%}"),
    ("lr_scheduler_type: rainbow", "the schedules are linear, cosine, wsd, constant and onecycle"),
    ("warmup_ratio: 0.1", "write schedule: {warmup: 10%}"),
    ("warmup_steps: 100", "write schedule: {warmup: 100}"),
    ("min_learning_rate: 1e-6", "write schedule: {min_lr: 1e-06}"),
    ("div_factor: 25", "write schedule: {name: onecycle, div_factor: 25}"),
    ("bf16: true", "write runtime: {precision: bf16} at the top level"),
    ("bf16: false", "write runtime: {precision: fp32} at the top level"),
    ("fp16: true", "write runtime: {precision: fp16} at the top level"),
    ("dtype: bfloat16", "write runtime: {precision: bf16} at the top level"),
    ("gradient_checkpointing: true", "write runtime: {activation_checkpointing: full} at the top level"),
    ("load_best_model_at_end: true", "write select_checkpoint: best"),
    ("save_steps: 500", "write checkpoint: {every_steps: 500}"),
    ("save_total_limit: 3", "write checkpoint: {keep_last: 3}"),
    ("eval_steps: 50", "write evaluation: {every_steps: 50}"),
    ("eval_steps: 0.1", "leave it out; the default is ten evaluations per stage, which is this share"),
    ("logging_steps: 10", "write logging: {every_steps: 10} at the top level"),
    ("report_to: tensorboard", "write logging: {tensorboard: true} at the top level"),
    ("report_to: [wandb]", "write logging: {wandb: {mode: offline}} at the top level"),
    ("report_to: [wandb, trackio]", "mode: online sends the figures to W&B"),
    ("report_to: [swanlab]", "swanlab is not supported"),
    ("eval_strategy: no", "write data: {validation: 0}"),
    ("output_dir: saves/a/b", "write output: saves/a and name: b at the top level"),
    ("overwrite_output_dir: true", "a run is never overwritten: choose another name"),
    ("optim: adamw_torch", "write optimizer: {name: adamw}"),
    ("optim: adamw_8bit", "write optimizer: {name: adamw8bit}"),
    ("optim: lion_32bit", "the optimizers are adamw, adamw8bit and muon"),
    ("adam_epsilon: 1e-6", "write optimizer: {eps: 1e-06}"),
    ("weight_decay: 0.1", "write optimizer: {weight_decay: 0.1}"),
    ("grad_clip: 0.0", "write optimizer: {max_grad_norm: null}"),
    ("label_smoothing_factor: 0.1", "write label_smoothing: 0.1"),
    ("neftune_noise_alpha: 5", "there is no noise on embeddings"),
    ("early_stopping_patience: 3", "write early_stopping: {patience: 3}; counted in evaluations"),
    ("val_size: 0.1", "write data: {validation: 10%}"),
    ("val_size: 500", "write a share of the training rows, or a file of its own"),
    ("validation_file: v.jsonl", "write data: {validation: v.jsonl}"),
    ("dataset: a.jsonl", "write data: {train: a.jsonl}"),
    ("dataset_name: org/name", "write data: {train: {hub: org/name}}"),
    ("packing: true", "leave it out; rows are always packed, and attention never crosses"),
    ("mask_history: true", "write data: {train_on_turns: last}"),
    ("train_on_prompt: false", "leave it out; an sft stage never trains on the prompt"),
    ("truncation_mode: keep_end", "write data: {truncation: keep_recent}"),
    ("preprocessing_num_workers: 16", "write runtime: {data_workers: 16} at the top level"),
    ("plot_loss: true", "leave it out; report.html always shows the curves"),
    ("lora_rank: 8", "write adapter: {r: 8, lora_alpha: 16}"),
    ("lora_rank_of_something: 8", "an adapter is LoRA, rsLoRA, DoRA or a prefix; its keys are peft_type"),
    ("deepspeed: ds_z3.json", "write runtime: {parallelism: fsdp} at the top level"),
    ("deepspeed: null", "leave it out; it is empty"),
    ("resume_from_checkpoint: true", "the same command continues an interrupted run"),
    ("model_name_or_path: Qwen/Qwen3-0.6B", "write init_from: Qwen/Qwen3-0.6B; a directory on this machine"),
    ("n_layer: 6", "write model: {num_hidden_layers: 6} at the top level"),
    ("n_embd: 384", "write model: {hidden_size: 384, intermediate_size: 1024} at the top level"),
    ("n_head: 8", "write model: {num_attention_heads: 8, num_key_value_heads: 8} at the top level"),
    ("use_moe: true", "write model: {qk_norm: true, moe: {num_experts: 4, num_experts_per_tok: 2}} at the top level"),
    ("dropout: 0.1", "write model: {dropout: 0.1} at the top level"),
    ("seed: 3", "write seed: 3 at the top level"),
    ("loss_type: nll", "leave it out; pretrain and sft stages train by cross-entropy"),
    ("loss_type: ipo", "pretrain and sft stages train by cross-entropy only"),
    ("fsdp: full_shard", "write runtime: {parallelism: fsdp} at the top level"),
    ("fsdp: ''\n    fsdp_config: {min_num_params: 0}", "leave it out; runtime: {parallelism: fsdp} is the only setting"),
    ("fsdp_config: {fsdp_version: 2}", "write runtime: {parallelism: fsdp} at the top level"),
    ("accelerator_config: {split_batches: false}", "leave it out; fledge train --processes N starts the processes"),
    ("distributed_type: MULTI_GPU", "leave it out; fledge train --processes N starts the processes"),
    ("distributed_type: FSDP", "write runtime: {parallelism: fsdp} at the top level"),
    ("distributed_type: TPU", "leave it out; fledge train --processes N starts the processes"),
    ("strategy: deepspeed_stage_2", "write runtime: {parallelism: fsdp} at the top level"),
    ("strategy: ddp", "leave it out; fledge train --processes N starts the processes"),
    ("tensor_parallel_size: 1", "leave it out; it is off"),
    ("tensor_parallel_size: 2", "write runtime: {parallelism: fsdp} at the top level"),
    ("eval_on_start: true", "leave it out; a stage is evaluated before its first step"),
    ("use_logits_to_keep: false", "leave it out; the loss is computed in chunks"),
    ("warmdown_ratio: 0.4", "write schedule: {name: wsd, decay_fraction: 40%}"),
    ("final_lr_frac: 0.1", "write schedule: {min_lr: 10%}"),
    ("matrix_lr: 0.02", "optimizer.learning_rate is the rate of all parameters"),
    ("loss_watchdog_threshold: 5.0", "guards: {divergence: {action: stop, min_increase: 1.0}}"),
    ("target_flops: -1", "leave it out; it is off"),
    ("target_param_data_ratio: 20", "write the number of tokens or steps"),
    ("temperature: 0.7", "sampling is set by options of fledge generate"),
    ("num_beams: 4", "there is no beam search"),
    ("profiler_schedule: 3", "compute.json and report.html of a run"),
    ("precompute_ref_log_probs: true", "precompute_ref_log_probs belongs to a stage of kind preference"),
    ("per_device_train_batch_size: -4", "batch.micro_batch_size replaces it: Input should be greater than 0 (it is -4)"),
    ("per_device_train_batchsize: 4", "did you mean 'per_device_train_batch_size'? Then write batch: {micro_batch_size: 4}"),
    ("--per-device-train-batch-size: 4", "write batch: {micro_batch_size: 4}"),
]


@pytest.mark.parametrize(("written", "message"), ANSWERS, ids=[written for written, _ in ANSWERS])
def test_foreign_key_in_a_stage_is_answered_with_fledges_key(tmp_path: Path, written: str, message: str) -> None:
    text = load_error(tmp_path, SFT + f"    {written}\n")
    line = next(line for line in text.splitlines() if message in line)
    assert ". r.yaml:" in line
    assert "unknown key" not in text


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("pref_beta: 0.2", "write beta: 0.2"),
        ("dpo_beta: 0.5", "write beta: 0.5; fledge sums log-probabilities over an answer"),
        ("pref_loss: sigmoid", "write loss_type: sigmoid"),
        ("pref_loss: hinge", "write loss_type: hinge"),
        ("pref_loss: ipo", "write loss_type: ipo"),
        ("loss_type: [ipo]", "write loss_type: ipo"),
        ("dpo_loss_type: [hinge]", "write loss_type: hinge"),
        ("loss_type: [ipo, sft]\n    loss_weights: [1.0, 0.5]", "write loss_type: ipo and sft_loss_weight: 0.5"),
        ("pref_loss: orpo", "write loss_type: orpo"),
        ("pref_loss: apo_zero", "the losses of a preference stage are sigmoid, robust, sigmoid_norm, hinge, ipo, simpo, orpo"),
        ("pref_loss: [sigmoid, hinge]", "the losses of a preference stage are sigmoid, robust, sigmoid_norm, hinge, ipo"),
        ("pref_loss: nll", "the losses of a preference stage are sigmoid, robust, sigmoid_norm, hinge, ipo"),
        ("pref_loss: kto_pair", "KTO is a kind of stage"),
        ("simpo_gamma: 0.5", "simpo_gamma belongs to loss_type simpo"),
        ("ld_alpha: 0.5", "a preference stage has the losses sigmoid, robust, sigmoid_norm, hinge, ipo, simpo, orpo"),
        ("rl: ipo", "write kind: preference and loss_type: ipo"),
        ("rpo_alpha: 1.0", "write sft_loss_weight: 1.0"),
        ("pref_ftx: 0.5", "write sft_loss_weight: 0.5"),
        ("loss_type: [sigmoid, sft]\n    loss_weights: [2.0, 0.5]", "write loss_type: sigmoid and sft_loss_weight: 0.25"),
        ("max_prompt_length: 128\n    max_completion_length: 128", "write data: {max_seq_len: 256}"),
        ("label_smoothing_factor: 0.1", "targets are smoothed in pretrain and sft stages only"),
        (
            "global_batch_size: 4",
            "write batch: {micro_batch_size: auto, gradient_accumulation_steps: 1, tokens_per_step: 4096}",
        ),
    ],
)
def test_foreign_preference_key_is_answered_in_a_preference_stage(tmp_path: Path, written: str, message: str) -> None:
    assert message in load_error(tmp_path, f"stages:\n  dpo:\n    data: {{train: a.jsonl}}\n    {written}\n")


def test_high_beta_is_not_questioned_for_a_loss_on_mean_log_probabilities(tmp_path: Path) -> None:
    stage = "stages:\n  dpo:\n    data: {train: a.jsonl}\n    dpo_beta: 0.5\n"
    assert "fledge sums log-probabilities" in load_error(tmp_path, stage + "    pref_loss: hinge\n")
    assert "fledge sums log-probabilities" not in load_error(tmp_path, stage + "    pref_loss: ipo\n")
    assert "fledge sums log-probabilities" not in load_error(tmp_path, stage + "    rl: ipo\n")


def test_every_kind_of_stage_has_an_entry_for_configurations_of_other_trainers() -> None:
    assert sorted(STAGE_KINDS) == sorted(KINDS)
    for kind, stage in STAGE_KINDS.items():
        assert kind_of(stage.stage_name, {}) == kind
        assert kind_of_section(stage.stage_name) == kind
        assert all(guessed_kind({key: method}) == kind for key in KIND_KEYS for method in stage.methods)
        assert guessed_kind({stage.keys[0]: 1}) == kind


def test_every_loss_of_the_schema_is_known_by_its_name_in_other_trainers() -> None:
    assert loss_types("preference") == ("sigmoid", "robust", "sigmoid_norm", "hinge", "ipo", "simpo", "orpo")
    assert loss_types("pretrain") == loss_types("sft") == ()
    for name in loss_types("preference"):
        answer = answer_for("pref_loss", name, Context({"pref_loss": name}, "preference"))
        assert answer == Answer((("loss_type", name),))


def test_foreign_keys_that_form_one_key_are_answered_together(tmp_path: Path) -> None:
    text = load_error(tmp_path, SFT + "    adam_beta1: 0.8\n    adam_beta2: 0.98\n    max_steps: -1\n    num_train_epochs: 2\n")
    assert (
        "r.yaml:4, r.yaml:5: stages.sft.adam_beta1: 0.8, stages.sft.adam_beta2: 0.98 → write optimizer: {betas: [0.8, 0.98]}"
        in text
    )
    assert "r.yaml:6, r.yaml:7: stages.sft.max_steps: -1, stages.sft.num_train_epochs: 2 → write duration: 2 epochs" in text
    assert text.startswith("2 problems")


def test_fraction_of_steps_is_converted_if_the_steps_are_known(tmp_path: Path) -> None:
    assert "write evaluation: {every_steps: 50}; 0.1 of 500 steps" in load_error(
        tmp_path, SFT + "    eval_steps: 0.1\n    max_steps: 500\n"
    )


def test_batch_size_per_device_is_converted_to_the_total(tmp_path: Path) -> None:
    text = load_error(tmp_path, SFT + "    batch_size: 24\n    accumulation_steps: 4\n    world_size: 2\n")
    assert "write batch: {gradient_accumulation_steps: 8}; 4 on each of 2 devices" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1e-4\n" + SFT, "r.yaml:1: learning_rate: 0.0001 → write optimizer: {learning_rate: 0.0001} in "),
        ("data: {train: b.jsonl}\n" + SFT, "r.yaml:1: 'data' belongs in stages.sft, as 'data'"),
        (SFT + "    runtime: {device: cpu}\n", "r.yaml:4: 'stages.sft.runtime' belongs at the top level, as 'runtime'"),
        (SFT + "    optimizer: {max_seq_len: 64}\n", "write data: {max_seq_len: 64} in stages.sft"),
        (SFT + "    optimizer: {name: adamw_torch}\n", "write optimizer: {name: adamw} in stages.sft"),
        (SFT + "    optimizer: AdamW\n", "write optimizer: {name: adamw}"),
        ("model: models/base\n" + SFT, "r.yaml:1: model: models/base → write model: {path: models/base}"),
        ("training: {learning_rate: 1e-4}\n" + SFT, "training.learning_rate: 0.0001 → write optimizer: {learning_rate: "),
        ("lr: 1\nstages:\n  sft: {data: a}\n  dpo: {data: b}\n", "{learning_rate: 1} in the stage that it is for"),
        ("stages:\n  tune:\n    batch: {micro: 4}\n", "'stages.tune.batch.micro' is now 'stages.tune.batch.micro_batch_size'"),
        ("stages:\n  sft:\n    dataset: a.jsonl\n", "write data: {train: a.jsonl}"),
    ],
)  # fmt: skip
def test_misplaced_key_is_answered_with_its_right_section(tmp_path: Path, text: str, message: str) -> None:
    assert message in load_error(tmp_path, text)


def test_missing_key_is_not_reported_if_an_answer_provides_it(tmp_path: Path) -> None:
    assert load_error(tmp_path, "stages:\n  sft:\n    dataset: a.jsonl\n").startswith("1 problem in the recipe")
    assert load_error(tmp_path, "model: {qk_norm: true, moe: {experts: 4, top_k: 2}}\n" + SFT).startswith("2 problems")


def test_unknown_key_gets_the_nearest_spelling_or_no_suggestion(tmp_path: Path) -> None:
    text = load_error(tmp_path, SFT + "    optimiser: {learning: 1}\n    qqqq: 3\n")
    assert "r.yaml:4: unknown key 'stages.sft.optimiser'; did you mean 'optimizer'?" in text
    assert "r.yaml:5: unknown key 'stages.sft.qqqq'" in text
    assert "→" not in text


def test_each_foreign_key_is_in_one_table() -> None:
    assert sum(map(len, TABLES)) == len(SYNONYMS)


CANDIDATES: list[Any] = [
    8,
    128,
    2048,
    1,
    3.0,
    0.1,
    1e-5,
    True,
    False,
    "cosine",
    "adamw_torch",
    "bf16",
    "data/a.jsonl",
    "org/name",
    "sft",
    "sigmoid",
    "tensorboard",
    "full",
    "cuda",
    "26m",
    "chatml",
    "keep_end",
    "sdpa",
    "text",
    ["a.jsonl"],
    [{"path": "org/name"}],
    {"min_lr": 1e-7},
    [0.9, 0.95],
]


def loads(answer: Answer, kind: str) -> bool:
    """Whether a recipe with nothing but this answer loads."""
    try:
        recipe_from_dict(minimal_recipe(answer.settings, kind))
    except FledgeError:
        return False
    return True


@pytest.mark.parametrize("name", SYNONYMS)
def test_answer_to_each_foreign_key_is_a_loadable_recipe(name: str) -> None:
    context = {"dataset_name": "org/name"} if name.startswith("dataset_") else {}
    answers = [
        (kind, answer)
        for kind in KINDS
        for value in CANDIDATES
        if (answer := answer_for(name, value, Context({**context, name: value}, kind, max_positions=512))) is not None
    ]
    assert all(answer.settings or answer.note for _, answer in answers)
    written = [(kind, answer) for kind, answer in answers if answer.settings]
    assert not written or any(loads(answer, kind) for kind, answer in written)
    for _, answer in written:
        assert {path: yaml.load(inline_yaml(value), RecipeLoader) for path, value in answer.settings} == dict(answer.settings)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(CANDIDATES)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.one_of(
    st.sampled_from([*SYNONYMS, *RENAMED[Recipe], "model", "data", "optimizer", "stages", "sft", "dpo", "training"]),
    st.text(max_size=8),
)
MAPPINGS = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=6),
    lambda inner: st.dictionaries(NAMES, st.one_of(inner, VALUES), max_size=5),
    max_leaves=8,
)


@given(root=MAPPINGS, stage=MAPPINGS, kind=st.sampled_from([*KINDS, "dpo", "tune"]))
def test_random_keys_and_values_never_break_the_answers(root: dict[str, Any], stage: dict[str, Any], kind: str) -> None:
    for tree in (root, {**root, "stages": {kind: {"data": DATA, **stage}}}, {**root, "stages": {kind: stage}}):
        try:
            recipe_from_dict(tree)
        except FledgeError as error:
            assert str(error)
