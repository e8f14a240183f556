"""Precedence of values (defaults, preset, files, flags), and writing a recipe as YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.recipe import differences, load_recipe, recipe_from_dict, to_yaml
from fledge.recipe.load import merge, preset_names
from fledge.recipe.schema import BatchConfig, PreferenceStage, PretrainStage, SftStage

DATA = {"data": {"train": "rows.jsonl"}}
STAGES = {"pretrain": DATA, "sft": DATA, "dpo": DATA}


def write(folder: Path, name: str, text: str) -> str:
    """Write a file; returns its path."""
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_precedence_is_flags_files_preset_defaults(tmp_path: Path) -> None:
    stage = "{data: {train: a.jsonl}, batch: {micro_batch_size: 7}, duration: 2 epochs}"
    first = write(tmp_path, "a.yaml", f"preset: 26m\nstages: {{sft: {stage}}}\n")
    second = write(tmp_path, "b.yaml", "stages: {sft: {duration: 3 epochs, optimizer: {max_grad_norm: 0.5}}}\n")
    recipe = load_recipe([first, second], [("stages.sft.optimizer.weight_decay", "0.5"), ("seed", "7")])
    sft = recipe.stages["sft"]
    assert (sft.optimizer.weight_decay, recipe.seed) == (0.5, 7)  # flags
    assert (sft.duration, sft.optimizer.max_grad_norm) == ("3 epochs", 0.5)  # second file
    assert sft.batch.micro_batch_size == 7  # first file, over the preset's 32
    assert (sft.optimizer.learning_rate, sft.select_checkpoint) == (2e-5, "best")  # preset
    assert (sft.data.validation, sft.optimizer.eps) == (0.02, 1e-8)  # defaults


def test_preset_given_by_a_flag_does_not_override_files(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "model: {num_hidden_layers: 3}\nstages: {sft: {data: {train: a.jsonl}}}\n")
    recipe = load_recipe([file], [("preset", "104m")])
    assert (recipe.model.num_hidden_layers, recipe.model.hidden_size) == (3, 768)


def test_flags_accept_yaml_values(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "stages: {sft: {data: {train: a.jsonl}}}\n")
    recipe = load_recipe(
        [file],
        [
            ("name", "2024-01-31"),
            ("stages.sft.data.train", "[b.jsonl, c.txt]"),
            ("stages.sft.optimizer", "{learning_rate: 1e-3}"),
            ("stages.sft.data.validation", "5%"),
            ("stages.sft.optimizer.max_grad_norm", "null"),
            ("generation_samples.prompts", "[你好]"),
        ],
    )
    stage = recipe.stages["sft"]
    assert recipe.name == "2024-01-31"
    assert [source.path for source in stage.data.train] == ["b.jsonl", "c.txt"]
    assert (stage.optimizer.learning_rate, stage.data.validation, stage.optimizer.max_grad_norm) == (1e-3, 0.05, None)
    assert recipe.generation_samples.prompts == ["你好"]


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".1e-3", "+1e-4"])
def test_scientific_notation_is_read_as_a_number(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, "a.yaml", f"stages: {{sft: {{data: {{train: a.jsonl}}, optimizer: {{learning_rate: {text}}}}}}}\n")
    assert load_recipe([file]).stages["sft"].optimizer.learning_rate == 1e-4


def test_setting_one_optimizer_key_keeps_the_other_defaults_of_the_stage_kind() -> None:
    stages = {name: {**DATA, "optimizer": {"max_grad_norm": 0.5}} for name in STAGES}
    recipe = recipe_from_dict({"stages": stages})
    assert [stage.optimizer.name for stage in recipe.stages.values()] == ["muon", "adamw", "adamw"]
    assert [stage.optimizer.learning_rate for stage in recipe.stages.values()] == ["auto", 2e-5, 5e-6]
    assert [stage.optimizer.weight_decay for stage in recipe.stages.values()] == ["auto", 0.01, 0.01]
    plain = recipe_from_dict({"stages": STAGES})
    assert [stage.optimizer.learning_rate for stage in plain.stages.values()] == ["auto", 2e-5, 5e-6]


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": {"max_grad_norm": 0.5}}])
def test_an_adapter_has_ten_times_the_learning_rate_of_the_stage(optimizer: dict[str, Any]) -> None:
    def rates(adapter: Any, **more: Any) -> list[Any]:
        stages = {name: {**DATA, "adapter": adapter, **optimizer, **more} for name in ("sft", "dpo")}
        recipe = recipe_from_dict({"model": {"path": "base"}, "stages": stages})
        return [stage.optimizer.learning_rate for stage in recipe.stages.values()]

    assert rates({}) == [pytest.approx(2e-4), pytest.approx(5e-5)]
    assert rates(None) == [2e-5, 5e-6]
    assert rates({"r": 4}, optimizer={"learning_rate": 1e-3}) == [1e-3, 1e-3]


def test_source_may_be_a_path_a_mapping_or_a_list() -> None:
    for train in ("a.txt", ["a.txt"], {"path": "a.txt"}, [{"path": "a.txt"}]):
        for validation in (train, 0.1):
            data = recipe_from_dict({"stages": {"pretrain": {"data": {"train": train, "validation": validation}}}})
            stage = data.stages["pretrain"]
            assert stage.data.train[0].path == "a.txt"
            assert stage.data.validation == (0.1 if validation == 0.1 else stage.data.train)


def test_merge_is_by_key_and_replaces_whole_lists() -> None:
    assert merge({"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": {}}) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": {}}
    assert merge({"a": {"x": 1}}, {"a": None}) == {"a": None}


def test_recipe_from_dict_does_not_change_the_dictionary() -> None:
    tree: dict[str, Any] = {"preset": "26m", "stages": {"sft": {"data": {"train": "a"}}}}
    recipe_from_dict(tree)
    assert tree == {"preset": "26m", "stages": {"sft": {"data": {"train": "a"}}}}


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
TEXT = st.one_of(
    st.none(),
    st.sampled_from(
        [
            "1e5",
            "2024-01-31",
            "null",
            "yes",
            "0x1f",
            "1_000",
            "~",
            "",
            " ",
            "a: b",
            "#",
            "12:30:00",
            "<<",
            "=",
            "\x85",
            "a\u2028b",
            "\u2029 ",
            "\r\n",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20),
)


@given(
    name=st.one_of(NAMES, st.sampled_from(["1e5", "3E8", "007", "2024-01-31", "no", "1.5"])),
    seed=st.integers(0, 2**32 - 1),
    system=TEXT,
    learning_rate=st.floats(1e-12, 10),
    duration=st.sampled_from(["1 epochs", "0.5 epochs", "20M tokens", "500 steps"]),
    warmup=st.one_of(st.integers(0, 10**6), st.floats(0, 0.99)),
    prompts=st.lists(TEXT.filter(lambda text: text is not None), max_size=3),
    preset=st.sampled_from([None, "26m", "145m"]),
)
def test_recipe_survives_writing_and_loading_yaml(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    seed: int,
    system: str | None,
    learning_rate: float,
    duration: str,
    warmup: float,
    prompts: list[str],
    preset: str | None,
) -> None:
    tree = {
        "name": name,
        "seed": seed,
        "preset": preset,
        "generation_samples": {"prompts": prompts},
        "stages": {
            "a": {
                "kind": "sft",
                "data": {"train": "a.jsonl", "system": system},
                "duration": duration,
                "optimizer": {"learning_rate": learning_rate},
                "schedule": {"warmup": warmup, "min_lr": 0},
            }
        },
    }
    recipe = recipe_from_dict(tree)
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    loaded = load_recipe([str(file)])
    assert loaded == recipe
    assert differences(recipe, loaded) == []


def test_differences_list_each_changed_key_with_both_values() -> None:
    old = recipe_from_dict({"stages": {"sft": DATA}})
    new = recipe_from_dict({"seed": 1, "stages": {"sft": {**DATA, "optimizer": {"learning_rate": 1e-3}}, "dpo": DATA}})
    lines = differences(old, new)
    assert "seed: 42 -> 1" in lines
    assert "stages.sft.optimizer.learning_rate: 2e-05 -> 0.001" in lines
    assert any(line.startswith("stages.dpo.beta: '(absent)' -> 0.1") for line in lines)
    assert not any(line.startswith("model") for line in lines)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_works_for_every_kind_of_stage(preset: str) -> None:
    recipe = recipe_from_dict({"preset": preset, "stages": STAGES})
    kinds = [type(stage) for stage in recipe.stages.values()]
    assert kinds == [PretrainStage, SftStage, PreferenceStage]
    assert "kinds" not in yaml.safe_load(to_yaml(recipe))
    assert all(stage.schedule.name == "cosine" for stage in recipe.stages.values())


def test_a_written_micro_batch_is_exact_and_that_of_a_preset_is_left_open() -> None:
    def batch_of(own: dict[str, Any], **more: Any) -> BatchConfig:
        stage = {"data": {"train": "x.txt"}, **({"batch": own} if own else {})}
        return recipe_from_dict({"stages": {"pretrain": stage}, **more}).stages["pretrain"].batch

    for own in ({}, {"gradient_accumulation_steps": 4}):
        assert batch_of(own).merge_micro_batches and batch_of(own, preset="104m").merge_micro_batches
    own = {"micro_batch_size": 8}
    assert not batch_of(own).merge_micro_batches and not batch_of(own, preset="104m").merge_micro_batches
    assert batch_of({**own, "merge_micro_batches": True}, preset="104m").merge_micro_batches
    stored = recipe_from_dict({"preset": "104m", "stages": STAGES})
    again = recipe_from_dict(yaml.safe_load(to_yaml(stored)))
    assert all(stage.batch.merge_micro_batches for stage in again.stages.values()) and again == stored
    with pytest.raises(FledgeError, match="auto is as large as memory allows: leave merge_micro_batches: false out"):
        batch_of({"tokens_per_step": 1024, "merge_micro_batches": False})


def test_presets_have_the_published_values() -> None:
    assert preset_names() == ["104m", "145m", "26m", "45m-moe"]
    facts = {}
    for preset in preset_names():
        recipe = recipe_from_dict({"preset": preset, "stages": STAGES})
        first, sft, dpo = recipe.stages.values()
        assert isinstance(dpo, PreferenceStage)
        assert dpo.beta == 0.1
        facts[preset] = [
            (recipe.model.hidden_size, recipe.model.num_hidden_layers),
            (
                first.optimizer.learning_rate,
                first.schedule.warmup,
                first.batch.micro_batch_size,
                first.batch.gradient_accumulation_steps,
            ),
            (sft.optimizer.learning_rate, sft.schedule.min_lr, sft.duration, sft.batch.micro_batch_size),
            (dpo.optimizer.learning_rate, dpo.duration, dpo.batch.micro_batch_size),
        ]
    assert facts["26m"] == [(512, 8), (5e-4, 1000, 64, 1), (2e-5, 2e-6, "10 epochs", 32), (5e-6, "2 epochs", 16)]
    assert facts["104m"] == [(768, 16), (3e-4, 2000, 32, 2), (1e-5, 1e-6, "10 epochs", 16), (5e-6, "2 epochs", 8)]
    assert facts["145m"] == [(640, 8), (1e-4, 3000, 16, 4), (5e-6, 5e-7, "8 epochs", 8), (5e-6, "2 epochs", 4)]
    assert facts["45m-moe"] == [(512, 8), (2e-4, 2000, 32, 4), (2e-5, 2e-6, "10 epochs", 32), (5e-6, "2 epochs", 16)]
    moe = recipe_from_dict({"preset": "145m", "stages": STAGES}).model.moe
    assert moe is not None
    assert (moe.num_experts, moe.num_experts_per_tok, moe.num_shared_experts) == (4, 2, 1)
    assert recipe_from_dict({"preset": "26m", "stages": STAGES}).model.moe is None
