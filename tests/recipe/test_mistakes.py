"""Every mistake in a recipe is reported with its location and a suggestion."""

from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe, recipe_from_dict

GOOD = """\
preset: 26m
stages:
  sft:
    data: {train: chat.jsonl}
"""


def load_error(*files: Path, overrides: tuple[tuple[str, str], ...] = ()) -> str:
    """The error for these recipe files and flags."""
    with pytest.raises(FledgeError) as caught:
        load_recipe([str(file) for file in files], overrides)
    return str(caught.value)


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    """Write a recipe file; returns its path."""
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_all_mistakes_are_reported_together_with_line_and_nearest_spelling(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """\
preset: 27m
model:
  hiden_size: 64
  num_hidden_layers: -1
stages:
  sft:
    data:
      train: [{pth: chat.jsonl}]
      validation: 100
    optimizer: {learning: 1e-4, max_grad_norm: zero}
    duration: 3 parsecs
  tune:
    data: {train: x.jsonl}
sed: 3
seed: 1
seed: 2
""",
    )
    text = load_error(file)
    for line, *words in [
        (1, "there is no preset '27m'", "did you mean '26m'"),
        (3, "unknown key 'model.hiden_size'", "did you mean 'hidden_size'?"),
        (4, "model.num_hidden_layers", "greater than 0", "-1"),
        (8, "unknown key 'stages.sft.data.train.0.pth'", "did you mean 'path'?"),
        (9, "stages.sft.data.validation: Input should be less than 1 (it is 100)"),
        (10, "stages.sft.optimizer.max_grad_norm", "valid number", "zero"),
        (10, "unknown key 'stages.sft.optimizer.learning'"),
        (11, "stages.sft.duration", "3 parsecs", "write '3 epochs'"),
        (12, "stages.tune: kind must be one of pretrain, sft, preference"),
        (14, "unknown key 'sed'", "did you mean 'seed'?"),
        (16, "the key 'seed' is written twice"),
    ]:
        matching = [row for row in text.splitlines() if f"{file}:{line}: " in row and all(word in row for word in words)]
        assert len(matching) == 1, (line, words, text)
    assert text.startswith("11 problems in the recipe:")


def test_mistake_in_a_list_of_validation_sources_is_reported_once(tmp_path: Path) -> None:
    file = write(tmp_path, "stages:\n  sft:\n    data:\n      train: a.jsonl\n      validation: [{path: 3}]\n")
    assert "1 problem in the recipe" in load_error(file)
    assert f"{file}:5: stages.sft.data.validation.0.path: Input should be a valid string (it is 3)" in load_error(file)


def test_suggested_spelling_comes_from_the_kind_of_the_stage(tmp_path: Path) -> None:
    file = write(tmp_path, "stages:\n  data:\n    kind: preference\n    data: {train: a.jsonl}\n    betta: 0.1\n")
    assert f"{file}:5: unknown key 'stages.data.betta'; did you mean 'beta'?" in load_error(file)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{hidden_size: 100, num_attention_heads: 8}", "hidden_size 100 is not a multiple of num_attention_heads 8"),
        ("{hidden_size: 24, num_attention_heads: 8}", "must be even"),
        ("{num_attention_heads: 8, num_key_value_heads: 3}", "not a multiple of num_key_value_heads 3"),
        ("{max_position_embeddings: 16}", "data.max_seq_len 512 is longer than model.max_position_embeddings 16"),
        ("{moe: {num_experts: 2, num_experts_per_tok: 3}}", "num_experts_per_tok 3 is more than the 2 experts"),
    ],
)
def test_incompatible_model_sizes_are_an_error(tmp_path: Path, model: str, message: str) -> None:
    assert message in load_error(write(tmp_path, f"{GOOD}model: {model}\n"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("schedule: {min_lr: 1}", "schedule.min_lr 1.0 is above optimizer.learning_rate"),
        ("schedule: {warmup: 1.5}", "neither a whole number of steps nor a fraction below 1"),
        ("schedule: {warmup: 100%}", "must be below 100%"),
        ("schedule: {warmup: many%}", "cannot read the fraction"),
        ("optimizer: {learning_rate: .inf}", "finite"),
        ("duration: 1.1.1 epochs", "write '3 epochs'"),
        ("kind: [sft]", "kind must be one of"),
        ("kind: rl", "kind must be one of"),
        ("data: {train: []}", "at least 1"),
    ],
)
def test_wrong_value_in_a_stage_is_reported(tmp_path: Path, stage: str, message: str) -> None:
    assert message in load_error(write(tmp_path, GOOD), write(tmp_path, f"stages:\n  sft:\n    {stage}\n", "over.yaml"))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model: {a: [1\nb: 2", 2, "not readable as YAML"),
        ("- a\n- b\n", 1, "a recipe is a mapping"),
        ("name: !thing x\n" + GOOD, 1, "cannot read 'x' as !thing"),
        ("seed: !!int ten\n" + GOOD, 1, "cannot read 'ten'"),
        ("a: 1\n---\nb: 2\n", 2, "not readable as YAML"),
    ],
)
def test_invalid_yaml_is_reported_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = write(tmp_path, text)
    assert f"{file}:{line}: " in load_error(file)
    assert message in load_error(file)


def test_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "this recipe is not UTF-8" in load_error(tmp_path / "bad.yaml")
    (tmp_path / "nul.yaml").write_bytes(b"name: a\0b\n")
    assert "not readable as YAML" in load_error(tmp_path / "nul.yaml")
    assert "this is a folder, not a recipe" in load_error(tmp_path)


def test_missing_file_is_reported_by_name(tmp_path: Path) -> None:
    assert load_error(tmp_path / "nowhere.yaml").startswith(f"{tmp_path / 'nowhere.yaml'}: this recipe does not exist")


def test_recipe_without_stages_is_an_error(tmp_path: Path) -> None:
    assert "the key 'stages' is missing" in load_error(write(tmp_path, ""))
    assert "at least one stage" in load_error(write(tmp_path, "stages: {}\n"))
    assert "a stage cannot be called 'tokenizer'" in load_error(
        write(tmp_path, "stages: {tokenizer: {kind: sft, data: {train: a}}}")
    )


def test_mistake_in_a_flag_is_reported_at_the_flag(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "    optimizer: {learning_rate: 1e-4}\n")
    text = load_error(
        file,
        overrides=(
            ("stages.sft.optimizer.learning_rate", "fast"),
            ("stages.sft.batch", "{micro_batch_size: 0}"),
            ("model.hiden", "3"),
        ),
    )
    assert "--stages.sft.optimizer.learning_rate: stages.sft.optimizer.learning_rate: Input should be a valid number" in text
    assert "--stages.sft.batch: stages.sft.batch.micro_batch_size: Input should be greater than 0 (it is 0)" in text
    assert "--model.hiden: unknown key 'model.hiden'" in text


def test_mistake_in_a_mapping_given_as_a_flag_is_reported_at_the_flag(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "    optimizer: {learning_rate: 1e-4}\n")
    text = load_error(file, overrides=(("stages.sft.optimizer", "{learning_rate: fast}"),))
    assert "--stages.sft.optimizer: stages.sft.optimizer.learning_rate" in text
    assert str(file) not in text


def test_recipe_is_frozen() -> None:
    recipe = recipe_from_dict({"stages": {"sft": {"data": {"train": "a.jsonl"}}}})
    stage = recipe.stages["sft"]
    for section, key in (
        (recipe, "seed"),
        (recipe.model, "hidden_size"),
        (stage, "duration"),
        (stage.optimizer, "learning_rate"),
    ):
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, key, 1)
    assert isinstance(recipe, Recipe)
