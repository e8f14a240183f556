"""Whole configurations of other trainers: each key is answered, and the suggested recipe loads."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.recipe import KtoStage, PreferenceStage, Recipe, SftStage, load_recipe, recipe_from_dict
from fledge.recipe.foreign.renamed import RENAMED
from fledge.recipe.foreign.synonyms import SYNONYMS
from fledge.recipe.schema import AdapterConfig, GrpoStage, QuantizationConfig
from fledge.recipe.schema import Recipe as Schema

END = "ready to copy; all other keys keep fledge's defaults:\n\n"

FOLDER = Path(__file__).parent / "configurations"
TRAINERS = {
    "llama-factory-sft.yaml": "LLaMA-Factory",
    "llama-factory-dpo.yaml": "LLaMA-Factory",
    "trl-sft.yaml": "TRL",
    "training-arguments.json": "Hugging Face TrainingArguments",
    "three-stages.yaml": "minimind",
    "one-cycle.yaml": "ChatLM-mini",
    "nanogpt.yaml": "nanoGPT",
    "axolotl.yaml": "axolotl",
    "litgpt.yaml": "LitGPT",
    "adapter.yaml": "Hugging Face TrainingArguments",
    "minimind.yaml": "minimind",
    "llama-factory-lora.yaml": "LLaMA-Factory",
    "trl-dpo.yaml": "TRL",
    "training-arguments.yaml": "Hugging Face TrainingArguments",
    "axolotl-ipo.yaml": "axolotl",
    "minimind-dpo.yaml": "minimind",
}


def sample(name: str) -> str:
    """The text of a configuration in the format of its trainer."""
    return (FOLDER / name).read_text(encoding="utf-8")


def answered(folder: Path, text: str) -> tuple[str, Recipe]:
    """The error message for a configuration, and the suggested recipe in it, loaded from a file."""
    file = folder / ("c.json" if text.startswith("{") else "c.yaml")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FledgeError) as caught:
        load_recipe([str(file)])
    message = str(caught.value).replace(f"{folder}/", "")
    (folder / "suggested.yaml").write_text(message.split(END)[1], encoding="utf-8")
    return message, load_recipe([str(folder / "suggested.yaml")])


def keys_of(tree: dict[str, Any]) -> list[str]:
    """All keys of a configuration, by dotted path."""
    answered_as_one = {
        "lora", "lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "fsdp_config", "accelerator_config", "special_tokens",
    }  # fmt: skip
    return [
        f"{name}.{key}" if isinstance(value, dict) and name not in answered_as_one else name
        for name, value in tree.items()
        for key in (keys_of(value) if isinstance(value, dict) and name not in answered_as_one else [""])
    ]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_key_is_answered_with_its_line_and_the_converted_recipe_loads(tmp_path: Path, name: str) -> None:
    text = sample(name)
    message, recipe = answered(tmp_path, text)
    assert message.startswith(f"this looks like a configuration of {TRAINERS[name]}, not a recipe of fledge.")
    answers = message.split(END)[0]
    for key in keys_of(yaml.safe_load(text.replace("\t", " "))):
        line = next((line for line in answers.splitlines() if f" {key}: " in line), "")
        assert ". c." in line, key
        assert " → " in line, key
    assert "unknown key" not in answers
    assert "left out of the recipe" not in answers
    assert recipe.stages


def test_llama_factory_configuration_becomes_an_equivalent_recipe(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("llama-factory-sft.yaml"))
    stage = recipe.stages["sft"]
    assert (recipe.output, recipe.name, recipe.model.path) == ("saves/qwen3-4b/full", "sft", "Qwen/Qwen3-4B-Instruct-2507")
    assert [(one.registry, one.name, one.max_samples) for one in stage.data.train] == [
        ("data/dataset_info.json", "identity", 1000),
        ("data/dataset_info.json", "alpaca_en_demo", 1000),
    ]
    assert (stage.data.max_seq_len, stage.data.validation, stage.duration) == (2048, 0.1, "3 epochs")
    assert (stage.batch.micro_batch_size, stage.batch.gradient_accumulation_steps) == (1, 2)
    assert (stage.optimizer.learning_rate, stage.schedule.name, stage.schedule.warmup) == (1e-5, "cosine", 0.1)
    assert (stage.evaluation.every_steps, stage.checkpoint.every_steps, recipe.logging.every_steps) == (500, 500, 10)
    assert (recipe.runtime.precision, recipe.runtime.parallelism, recipe.runtime.data_workers) == ("bf16", "fsdp", 16)
    assert "c.yaml:10, c.yaml:13: dataset: identity,alpaca_en_demo, max_samples: 1000 → write data: {train:" in message


def test_dpo_configuration_becomes_a_preference_stage_with_its_adapter(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("llama-factory-dpo.yaml"))
    stage = recipe.stages["dpo"]
    assert isinstance(stage, PreferenceStage)
    assert (stage.beta, stage.loss_type, stage.sft_loss_weight) == (0.1, "sigmoid", 0.2)
    assert (stage.data.train[0].registry, stage.batch.gradient_accumulation_steps) == ("../data/dataset_info.json", 8)
    assert stage.adapter == AdapterConfig(r=8, lora_alpha=16)
    assert "lora_rank: 8 → write adapter: {r: 8}" in message and "lora_alpha: LLaMA-Factory's default" in message
    assert "full training takes about a tenth" not in message


def test_preference_losses_of_other_trainers_become_loss_types(tmp_path: Path) -> None:
    hinge = sample("llama-factory-dpo.yaml").replace("pref_loss: sigmoid", "pref_loss: hinge")
    for text, loss_type, beta in [
        (hinge, "hinge", 0.1),
        (sample("trl-dpo.yaml"), "ipo", 0.1),
        (sample("axolotl-ipo.yaml"), "ipo", 0.2),
    ]:
        stage = answered(tmp_path, text)[1].stages["dpo"]
        assert isinstance(stage, PreferenceStage)
        assert (stage.loss_type, stage.beta) == (loss_type, beta)


def test_methods_without_a_reference_and_on_labelled_answers_become_stages(tmp_path: Path) -> None:
    stage = answered(tmp_path, "stage: dpo\npref_loss: simpo\nsimpo_gamma: 0.7\npref_beta: 2.5\n")[1].stages["dpo"]
    assert isinstance(stage, PreferenceStage)
    assert (stage.loss_type, stage.simpo_gamma, stage.beta) == ("simpo", 0.7, 2.5)
    stage = answered(tmp_path, "stage: kto\npref_beta: 0.2\nkto_rejected_weight: 1.5\n")[1].stages["kto"]
    assert isinstance(stage, KtoStage) and (stage.beta, stage.undesirable_weight) == (0.2, 1.5)


def test_method_of_another_trainer_sets_the_loss_together_with_its_own_keys(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, "rl: ipo\ndpo_label_smoothing: 0.1\nlearning_rate: 1e-6\nnum_epochs: 1\n")
    stage = recipe.stages["dpo"]
    assert isinstance(stage, PreferenceStage)
    assert (stage.loss_type, stage.label_smoothing) == ("ipo", 0)
    assert "dpo_label_smoothing: 0.1 → left out of the recipe below: stages.dpo: label_smoothing 0.1 is defined for" in message


def test_values_of_a_large_lora_configuration_are_converted(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("llama-factory-lora.yaml"))
    stage = recipe.stages["sft"]
    assert (stage.data.max_seq_len, stage.data.train_on_turns, stage.duration) == (2048, "last", "3 epochs")
    assert isinstance(stage.data.validation, list)
    assert [source.name for source in stage.data.validation] == ["alpaca_zh_demo"]
    assert (stage.batch.micro_batch_size, stage.batch.gradient_accumulation_steps) == (1, 8)
    assert (stage.optimizer.name, stage.optimizer.learning_rate, stage.optimizer.weight_decay) == ("adamw", 1e-4, 0)
    assert (recipe.runtime.precision, recipe.runtime.data_workers, recipe.name) == ("bf16", 16, "sft")
    assert stage.adapter == AdapterConfig(r=8, lora_alpha=16, lora_dropout=0.05, use_rslora=True)
    assert stage.quantization == QuantizationConfig()
    assert "quant_type and use_double_quant: LLaMA-Factory's defaults" in message
    assert "quantization_method: bnb → leave it out; it is bitsandbytes" in message


QUANTIZED: dict[str, tuple[str, dict[str, Any] | None, str]] = {
    "LLaMA-Factory": (
        "stage: sft\nfinetuning_type: lora\nquantization_bit: 4\ndouble_quantization: false\n",
        {"quant_type": "nf4", "use_double_quant": False},
        "quant_type: LLaMA-Factory's default",
    ),
    "LLaMA-Factory in 8 bits": (
        "stage: sft\nfinetuning_type: lora\nquantization_bit: 8\n",
        None,
        "frozen weights are kept in 4 bits by bitsandbytes",
    ),
    "axolotl": (
        "base_model: x\nsequence_len: 512\nadapter: qlora\nload_in_4bit: true\nlora_r: 8\n",
        {"quant_type": "nf4", "use_double_quant": True},
        "quant_type and use_double_quant: axolotl's defaults",
    ),
    "TRL": (
        "use_peft: true\ndataset_name: a/b\nload_in_4bit: true\n",
        {"quant_type": "nf4", "use_double_quant": False},
        "quant_type and use_double_quant: TRL's defaults",
    ),
    "transformers": (
        "lora_config: {r: 8}\nquantization_config: {load_in_4bit: true, bnb_4bit_use_double_quant: true}\n",
        {"quant_type": "fp4", "use_double_quant": True},
        "quant_type: PEFT's default",
    ),
    "transformers, as keys": (
        "lora_config: {r: 8}\nload_in_4bit: true\nbnb_4bit_quant_type: nf4\nbnb_4bit_compute_dtype: bfloat16\n",
        {"quant_type": "nf4", "use_double_quant": False},
        "use_double_quant: PEFT's default",
    ),
    "LitGPT": (
        "checkpoint_dir: x\nlora_r: 8\nquantize: bnb.nf4-dq\nout_dir: y\n",
        {"quant_type": "nf4", "use_double_quant": True},
        "quantize",
    ),
    "the word alone": (
        "qlora: true\nlora_r: 8\nlearning_rate: 1e-4\n",
        {"quant_type": "nf4", "use_double_quant": True},
        "adapter",
    ),
    "off": ("stage: sft\nfinetuning_type: lora\nload_in_4bit: false\n", None, "leave it out; it is off"),
    "the whole model": ("stage: sft\nfinetuning_type: full\nquantization_bit: 4\n", None, "they need an adapter"),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_weights_in_4_bits_are_the_same_in_fledge(name: str, tmp_path: Path) -> None:
    text, expected, note = QUANTIZED[name]
    message, recipe = answered(tmp_path, text)
    (stage,) = recipe.stages.values()
    assert stage.quantization == (None if expected is None else QuantizationConfig(**expected))
    assert note in message


def test_llama_factory_trains_lora_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nstage: sft\ncutoff_len: 512\ntemplate: qwen\n"
    message, recipe = answered(tmp_path, text)
    assert recipe.stages["sft"].adapter == AdapterConfig(r=8, lora_alpha=16)
    assert "LLaMA-Factory trains this unless it is told otherwise" in message
    assert answered(tmp_path, text + "finetuning_type: full\n")[1].stages["sft"].adapter is None


ADAPTERS: dict[str, tuple[str, dict[str, Any] | None, str]] = {
    "LLaMA-Factory's alpha is twice its rank": (
        "stage: sft\nfinetuning_type: lora\nlora_rank: 32\nadditional_target: embed_tokens,lm_head\n",
        {"r": 32, "lora_alpha": 64, "modules_to_save": ["embed_tokens", "lm_head"]},
        "lora_alpha: LLaMA-Factory's default",
    ),
    "LLaMA-Factory's rank": (
        "stage: sft\nfinetuning_type: lora\ncutoff_len: 512\nuse_dora: true\n",
        {"r": 8, "lora_alpha": 16, "use_dora": True},
        "r and lora_alpha: LLaMA-Factory's defaults",
    ),
    "TRL's modules and dropout": (
        "use_peft: true\nlora_r: 8\ndataset_name: a/b\n",
        {"r": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "lora_dropout and target_modules: TRL's defaults",
    ),
    "axolotl": (
        "base_model: m\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\nsequence_len: 512\n"
        "lora_modules_to_save: [embed_tokens]\npeft_use_rslora: true\n",
        {"r": 8, "lora_alpha": 16, "use_rslora": True, "modules_to_save": ["embed_tokens"]},
        "it becomes the section adapter",
    ),
    "axolotl without an adapter": (
        "base_model: m\nadapter:\nlora_r: 8\nsequence_len: 512\n", None, "lora_r: 8 → leave it out; no adapter is trained",
    ),
    "LitGPT says which layers": (
        "checkpoint_dir: m\nlora_r: 4\nlora_key: true\nlora_mlp: true\nlora_value: false\nout_dir: x\n",
        {"r": 4, "lora_alpha": 16, "lora_dropout": 0.05,
         "target_modules": ["q_proj", "k_proj", "gate_proj", "up_proj", "down_proj"]},
        "lora_alpha and lora_dropout: LitGPT's defaults",
    ),
    "a section of PEFT's keys": (
        "base_model: m\npeft_config: {peft_type: LORA, r: 4, use_dora: true, layers_to_transform: [1]}\nnum_train_epochs: 1\n",
        {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "v_proj"]},
        "without layers_to_transform",
    ),
    "full training": (
        "model_name_or_path: m\nfinetuning_type: full\nlora_rank: 8\n", None, "lora_rank: 8 → leave it out; no adapter is",
    ),
    "another kind": (
        "model_name_or_path: m\nfinetuning_type: oft\nlora_rank: 8\nlearning_rate: 1e-4\n", None, "tenth of an adapter's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_keys_of_an_adapter_become_the_section_of_the_stage_with_the_defaults_of_their_trainer(
    name: str, tmp_path: Path
) -> None:
    text, expected, words = ADAPTERS[name]
    message, recipe = answered(tmp_path, text)
    (stage,) = recipe.stages.values()
    assert stage.adapter == (None if expected is None else AdapterConfig(**expected))
    assert words in message


def test_values_of_many_training_arguments_are_converted(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("training-arguments.yaml"))
    stage = recipe.stages["sft"]
    assert (recipe.output, recipe.name, recipe.runtime.precision, recipe.runtime.parallelism) == ("out", "run1", "fp16", "fsdp")
    assert (recipe.runtime.compile, recipe.runtime.activation_checkpointing, recipe.logging.tensorboard) == (True, "full", True)
    assert (stage.optimizer.betas, stage.optimizer.max_grad_norm) == ((0.9, 0.98), 0.5)
    assert (stage.schedule.name, stage.schedule.warmup, stage.evaluation.every_steps) == ("linear", 0.03, 200)
    assert (stage.checkpoint.keep_last, stage.select_checkpoint) == (2, "best")
    assert "optim: adafactor → the optimizers are adamw, adamw8bit and muon; and adafactor" in message


def test_options_of_a_parallelism_that_is_off_do_not_switch_it_on(tmp_path: Path) -> None:
    text = "output_dir: a\nnum_train_epochs: 1\nfsdp: []\nfsdp_config: {xla: false}\naccelerator_config: {even_batches: true}\n"
    assert answered(tmp_path, text)[1].runtime.parallelism == "ddp"


def test_training_arguments_in_json_become_an_equivalent_recipe(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("training-arguments.json"))
    stage = recipe.stages["sft"]
    assert isinstance(stage, SftStage)
    assert (stage.optimizer.name, stage.optimizer.betas, stage.optimizer.eps) == ("adamw8bit", (0.9, 0.999), 1e-8)
    assert (stage.schedule.name, stage.schedule.min_lr, stage.schedule.warmup) == ("cosine", "10%", 0)
    assert (stage.select_checkpoint, stage.checkpoint.keep_last, stage.label_smoothing) == ("best", 3, 0.1)
    assert (stage.duration, recipe.runtime.precision) == ("3 epochs", "fp32")
    assert "c.json:25: neftune_noise_alpha: null → leave it out; it is empty" in message
    assert "c.json:26: seed: 42 → the key is the same in fledge" in message


def test_sections_named_after_stages_become_these_stages(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("three-stages.yaml"))
    first, sft, dpo = recipe.stages.values()
    assert list(recipe.stages) == ["pretrain", "sft", "dpo"]
    assert (recipe.model.hidden_size, recipe.model.intermediate_size, recipe.model.path) == (512, 1408, None)
    assert (first.optimizer.learning_rate, first.optimizer.betas, first.schedule.warmup) == (5e-4, (0.9, 0.95), 1000)
    assert (first.optimizer.name, first.schedule.min_lr, first.batch.micro_batch_size) == ("adamw", 1e-5, 64)
    assert isinstance(sft, SftStage)
    assert (sft.label_smoothing, sft.early_stopping.patience, sft.early_stopping.threshold) == (0.1, 3, 1e-4)
    assert (sft.schedule.min_lr, sft.select_checkpoint) == (2e-6, "best")
    assert isinstance(sft.data.validation, list)
    assert [source.path for source in sft.data.validation] == ["data/sft_val_data.jsonl"]
    assert isinstance(dpo, PreferenceStage)
    assert (dpo.beta, dpo.duration, dpo.data.max_seq_len) == (0.5, "2 epochs", 512)
    assert "write 0.1 if this beta was chosen for the mean" in message
    assert (
        "sft.model_path: path/to/pretrained_model.pt → leave it out; a stage starts from the model of the previous stage"
        in message
    )


def test_one_cycle_configuration_reports_its_maximum_learning_rate(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("one-cycle.yaml"))
    stage = recipe.stages["sft"]
    assert (stage.schedule.name, stage.schedule.div_factor, stage.schedule.warmup) == ("onecycle", 25, 300)
    assert (stage.optimizer.learning_rate, stage.data.max_seq_len, stage.checkpoint.keep_last) == (5e-5, 256, 5)
    assert "if your max_lr was div_factor × learning rate, write learning_rate: 0.00125" in message
    assert "a model is a directory with config.json and model.safetensors, not a .bin file" in message
    assert [source.path for source in stage.data.clean.decontaminate_against] == ["data/sft_test_dataset.parquet"]


def test_model_sizes_of_another_trainer_are_converted(tmp_path: Path) -> None:
    model = answered(tmp_path, sample("nanogpt.yaml"))[1].model
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads, model.num_key_value_heads) == (384, 6, 6, 6)
    stage = answered(tmp_path, sample("nanogpt.yaml").replace("256", "2048"))[1].stages["pretrain"]
    assert (stage.schedule.name, stage.optimizer.name, stage.duration) == ("cosine", "adamw", "5000 steps")
    assert stage.data.max_seq_len == 2048


def test_recipe_without_stages_is_shown_where_its_keys_belong(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, "data: {train: a.jsonl}\nduration: 2 epochs\nmodel: {qk_norm: true}\n")
    assert message.startswith("this recipe has no stages.")
    assert (recipe.stages["sft"].duration, recipe.model.qk_norm) == ("2 epochs", True)


def test_unknown_key_gets_the_nearest_spelling(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("llama-factory-sft.yaml") + "num_train_epoch: 3\nqqqq: 1\nseed: 1\nseed: 2\n")
    assert "c.yaml:39: num_train_epoch: 3 → unknown key; did you mean 'num_train_epochs'?" in message
    assert "c.yaml:40: qqqq: 1 → unknown key\n" in message
    assert "1. c.yaml:42: the key 'seed' is written twice" in message
    assert recipe.seed == 2


def test_contradicting_keys_are_reported_and_the_first_one_counts(tmp_path: Path) -> None:
    message, recipe = answered(
        tmp_path, "num_train_epochs: 1\nmax_length: 256\ncutoff_len: 128\nmin_lr: 1\nlearning_rate: 1e-4\n"
    )
    assert "c.yaml:3: cutoff_len: 128 → leave it out; 'max_length' already sets data.max_seq_len" in message
    assert (
        "c.yaml:4: min_lr: 1 → left out of the recipe below: stages.sft: schedule.min_lr 1.0 is above optimizer.learning_rate"
        in message
    )
    assert recipe.stages["sft"].data.max_seq_len == 256


def test_unsupported_method_is_reported(tmp_path: Path) -> None:
    for method, kind, remark in [
        ("rm", "reward", "kind: reward"),
        ("ppo", "grpo", "there is no PPO"),
    ]:
        message, recipe = answered(tmp_path, f"stage: {method}\nlearning_rate: 1e-4\n")
        assert remark in message
        assert list(recipe.stages) == [kind]


def test_recipe_without_stages_and_without_foreign_keys_lacks_the_key_stages() -> None:
    with pytest.raises(FledgeError, match="the key 'stages' is missing"):
        recipe_from_dict({"name": "a", "model": {"hidden_size": 64}, "tokenizer": {"path": "t"}})
    with pytest.raises(FledgeError, match="'machine' is now 'runtime'"):
        recipe_from_dict({"machine": {"device": "cpu"}})


WORDS = st.sampled_from(["cosine", "a.jsonl", "x/y", "bf16", "dpo", "26m"])
LISTS = st.lists(st.sampled_from(["a.jsonl", "b/c"]), max_size=2)
NUMBERS = st.one_of(st.integers(-5, 5000), st.floats(0, 10))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=6), LISTS)
NAMES = st.sampled_from(
    [*SYNONYMS, *Schema.model_fields, *RENAMED[Schema], "data", "optimizer", "training", "beta", "path"]
).filter(lambda name: name != "stages")
FLAT = st.dictionaries(NAMES, SCALARS, max_size=12)


@given(
    common=FLAT,
    sections=st.dictionaries(st.sampled_from(["sft", "dpo", "pretrain", "training", "model", "data"]), FLAT, max_size=3),
)
def test_every_converted_recipe_loads(
    tmp_path_factory: pytest.TempPathFactory, common: dict[str, Any], sections: dict[str, Any]
) -> None:
    try:
        recipe_from_dict({**common, **sections})
    except FledgeError as error:
        if END in str(error):
            file = tmp_path_factory.getbasetemp() / "suggested.yaml"
            file.write_text(str(error).split(END)[1], encoding="utf-8")
            assert load_recipe([str(file)]).stages


def test_an_adapter_has_a_model_to_adapt_where_the_named_one_cannot_be_read(tmp_path: Path) -> None:
    nothing = {name: None for name in ("per_device_train_batch_size", "micro_batch_size", "pref_ftx")}
    with pytest.raises(FledgeError) as caught:
        recipe_from_dict({"n_embd": False, "sft": nothing, "dpo": {"per_device_eval_batch_size": None}})
    (tmp_path / "suggested.yaml").write_text(str(caught.value).split(END)[1], encoding="utf-8")
    recipe = load_recipe([str(tmp_path / "suggested.yaml")])
    assert recipe.stages["sft"].adapter is not None and recipe.model.path is not None


def test_keys_of_grpo_keep_their_meaning(tmp_path: Path) -> None:
    message, recipe = answered(tmp_path, sample("trl-grpo.yaml"))
    (stage,) = recipe.stages.values()
    assert isinstance(stage, GrpoStage)
    assert (stage.epsilon, stage.epsilon_high, stage.mask_truncated, stage.scale_rewards) == (0.2, 0.28, True, "group")
    assert (stage.optimizer.eps, stage.optimizer.learning_rate, stage.duration, stage.beta) == (1e-8, 1e-6, "1 epochs", 0.04)
    rollout = stage.rollout
    assert (rollout.num_generations, rollout.max_new_tokens, rollout.temperature, rollout.top_p) == (8, 256, 0.9, 0.95)
    assert (stage.batch.micro_batch_size, stage.batch.gradient_accumulation_steps, stage.data.max_seq_len) == (2, 2, 512)
    assert "num_iterations: 2 → rollout.updates_per_rollout" in message


def test_4_bits_beside_the_lora_that_llama_factory_trains_by_default(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nstage: sft\ncutoff_len: 512\ntemplate: qwen\nquantization_bit: 4\n"
    stage = answered(tmp_path, text)[1].stages["sft"]
    assert stage.adapter == AdapterConfig(r=8, lora_alpha=16) and stage.quantization == QuantizationConfig()


def test_an_explicit_no_beats_the_word_qlora(tmp_path: Path) -> None:
    stage = answered(tmp_path, "base_model: x\nsequence_len: 512\nadapter: qlora\nload_in_4bit: false\nlora_r: 8\n")[1].stages[
        "sft"
    ]
    assert stage.adapter is not None and stage.quantization is None


def test_the_dtype_of_the_products_is_that_of_the_run(tmp_path: Path) -> None:
    config = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: float16, bnb_4bit_quant_storage: uint8}"
    message, recipe = answered(tmp_path, f"lora_config: {{r: 8}}\nquantization_config: {config}\n")
    assert recipe.runtime.precision == "fp16" and "without bnb_4bit_quant_storage" in message


def test_configurations_of_reward_models_become_reward_stages_and_those_of_policies_beside_one_do_not(tmp_path: Path) -> None:
    axolotl = (
        "base_model: a\nnum_labels: 1\nreward_model: true\nsequence_len: 256\ndatasets:\n  - {path: x}\nlearning_rate: 1e-5\n"
    )
    message, recipe = answered(tmp_path, axolotl)
    assert list(recipe.stages) == ["reward"]
    assert "reward_model: true → write kind: reward" in message and "num_labels: 1 → write kind: reward" in message
    classifier = "base_model: a\nmodel_type: AutoModelForSequenceClassification\nsequence_len: 256\nlearning_rate: 1e-5\n"
    assert list(answered(tmp_path, classifier)[1].stages) == ["reward"]
    verl = (
        "actor_rollout_ref: {model: {path: a}, rollout: {n: 5}}\nreward_model: {enable: false, model: {path: x}}\n"
        "algorithm: {adv_estimator: grpo}\ntrainer: {total_epochs: 15}\n"
    )
    assert list(answered(tmp_path, verl)[1].stages) == ["grpo"]
    message, recipe = answered(tmp_path, "stage: ppo\nreward_model: saves/reward\nlearning_rate: 1e-5\n")
    assert list(recipe.stages) == ["grpo"] and "reward_model: saves/reward → name its directory in rewards" in message
