"""A built directory is used for the recipe, the tokenizer and the files it was built from, and for nothing else."""

from pathlib import Path

import pytest

from fledge.build_dataset import build as build_recipe
from fledge.data.build.build import collect, encode
from fledge.data.build.directory import remove_build
from fledge.data.build.load import load_built_dataset
from fledge.errors import FledgeError
from fledge.recipe import recipe_from_dict
from fledge.run import exclusive_lock
from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support.documents import documents, ignore_line, pretraining_recipe, stage_of
from tests.support.sources import jsonl


def test_a_built_directory_gives_the_batches_of_a_temporary_build(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(60))
    recipe = recipe_from_dict(
        {
            "tokenizer": {"vocab_size": 320},
            "stages": {"x": {"kind": "pretrain", "data": {"train": str(file), "max_seq_len": 64}}},
        }
    )
    dataset = build_recipe(recipe, tmp_path / "out", None, ignore_line)["x"]
    again = build_recipe(recipe, tmp_path / "out", None, ignore_line)["x"]
    from fledge.prepare import Preparation

    temporary = Preparation(recipe, ignore_line)
    fresh = temporary.stage_data("x", temporary.tokenizer())
    for data in (dataset, again):
        assert data.train.fingerprint() == fresh.train.fingerprint()
        assert data.as_dict() == fresh.as_dict()
        assert (data.train.batch(0, 4).input_ids == fresh.train.batch(0, 4).input_ids).all()


def test_a_built_directory_for_other_settings_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    stage = stage_of("pretrain", file)
    encode(collect(stage, "x", 1, tmp_path / "b"), tokenizer)
    with pytest.raises(FledgeError, match=r"data.max_seq_len: built with 64, requested 32"):
        load_built_dataset(tmp_path / "b", stage_of("pretrain", file, max_seq_len=32), tokenizer, 1)
    with pytest.raises(FledgeError, match="seed: built with 1, requested 2"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 2)
    other = train_tokenizer(["other text"], 300)
    with pytest.raises(FledgeError, match="another tokenizer"):
        load_built_dataset(tmp_path / "b", stage, other, 1)
    tokens = next((tmp_path / "b").glob("tokens/*/train.tokens"))
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(FledgeError, match="damaged: the size of this file"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 1)
    tokens.write_bytes(content)
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(FledgeError, match="not complete"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 1)


def test_a_complete_build_names_the_files_that_changed_since(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    build_recipe(pretraining_recipe(file), tmp_path / "out", None, ignore_line)
    jsonl(file, documents(41))
    with pytest.raises(FledgeError, match=r"built from other data:\n.*a\.jsonl: changed since"):
        build_recipe(pretraining_recipe(file), tmp_path / "out", None, ignore_line)
    with pytest.raises(FledgeError, match=r"another recipe:\n.*stages\.x\.data\.max_seq_len"):
        build_recipe(pretraining_recipe(file, max_seq_len=32), tmp_path / "out", None, ignore_line)


def test_a_complete_build_is_not_used_for_a_stage_that_starts_from_another_model(tmp_path: Path) -> None:
    """The tokenizer comes from the model that the first stage starts from."""
    recipe = pretraining_recipe(jsonl(tmp_path / "a.jsonl", documents(40)))
    build_recipe(recipe, tmp_path / "out", None, ignore_line)
    stages = {"x": recipe.stages["x"].model_copy(update={"init_from": "base"})}
    with pytest.raises(FledgeError, match=r"another recipe:\n.*stages\.x\.init_from"):
        build_recipe(recipe.model_copy(update={"stages": stages}), tmp_path / "out", None, ignore_line)


def test_a_recipe_can_be_corrected_after_a_failed_build(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    with pytest.raises(FledgeError, match="there is no file"):
        build_recipe(pretraining_recipe(tmp_path / "b.jsonl"), tmp_path / "out", None, ignore_line)
    with pytest.raises(FledgeError, match="are dropped"):
        build_recipe(pretraining_recipe(file, max_drop_fraction=0.01), tmp_path / "out", None, ignore_line)
    assert build_recipe(pretraining_recipe(file), tmp_path / "out", None, ignore_line)["x"].train.examples.count > 20


def test_a_build_continues_when_only_training_settings_change(tmp_path: Path) -> None:
    file, out = jsonl(tmp_path / "a.jsonl", documents(40)), tmp_path / "out"
    before = build_recipe(pretraining_recipe(file), out, None, ignore_line)["x"].train.fingerprint()
    recipe = pretraining_recipe(file)
    longer = recipe.stages["x"].model_copy(update={"duration": "9 steps"})
    assert longer.duration != recipe.stages["x"].duration
    after = build_recipe(recipe.model_copy(update={"stages": {"x": longer}}), out, None, ignore_line)["x"].train.fingerprint()
    assert before == after


def test_only_one_process_writes_a_build(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    with (
        exclusive_lock(tmp_path / "out"),
        pytest.raises(FledgeError, match="another process is writing here"),
    ):
        build_recipe(pretraining_recipe(file), tmp_path / "out", None, ignore_line)
    build_recipe(pretraining_recipe(file), tmp_path / "out", None, ignore_line)


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file, folder = jsonl(tmp_path / "a.jsonl", documents(40)), tmp_path / "x" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FledgeError, match="this folder holds something else"):
        collect(stage_of("pretrain", file), "x", 1, folder)
    remove_build(folder)
    assert (folder / "mine.txt").read_text() == "mine"


def test_flipped_bits_in_built_tokens_are_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stage = stage_of("pretrain", jsonl(tmp_path / "a.jsonl", documents(40)))
    encode(collect(stage, "x", 1, tmp_path / "b"), tokenizer)
    tokens = next((tmp_path / "b").glob("tokens/*/train.tokens"))
    content = bytearray(tokens.read_bytes())
    content[40] ^= 1
    tokens.write_bytes(bytes(content))
    with pytest.raises(FledgeError, match="not those that were written"):
        load_built_dataset(tmp_path / "b", stage, tokenizer, 1)
