from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.recipe import load_recipe
from fledge.sweep.recipes import SweepFiles, trial_recipes
from fledge.sweep.space import Parameter, gather_space, own_values, parse_parameter, read_space
from tests.support import tiny_run

RATE = "stages.sft.optimizer.learning_rate"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("k=log:1e-4..1e-2", Parameter(key="k", low=1e-4, high=1e-2, log=True)),
        ("k=0..0.2", Parameter(key="k", low=0.0, high=0.2)),
        ("k=int:2..8", Parameter(key="k", low=2, high=8, number="int")),
        ("k=logint:64..512", Parameter(key="k", low=64, high=512, number="int", log=True)),
        ("k=adamw,muon", Parameter(key="k", choices=("adamw", "muon"))),
        ("k=1e-4,3e-4", Parameter(key="k", choices=(1e-4, 3e-4))),
        ("k=[0.9, 0.95],[0.9, 0.99]", Parameter(key="k", choices=([0.9, 0.95], [0.9, 0.99]))),
        ("k=true,null", Parameter(key="k", choices=(True, None))),
    ],
)
def test_a_parameter_means_what_is_written_and_is_written_as_it_was(text: str, expected: Parameter) -> None:
    parsed = parse_parameter(text)
    assert parsed == expected
    assert parse_parameter(parsed.describe()) == parsed


@pytest.mark.parametrize(
    "text, message",
    [
        ("stages", "names no key"),
        ("k=", "names no key"),
        ("k=5", "one value"),
        ("k=a,a", "one value"),
        ("k=2..1", "must rise"),
        ("k=log:0..1", "above zero"),
        ("k=int:1.5..4", "whole numbers"),
        ("k=lgo:1..4", "no kind of range"),
        ("k=log:a..b", "no range of numbers"),
        ("k=[1,2", "cannot read"),
    ],
)
def test_what_is_no_parameter_is_refused_with_a_way_to_write_one(text: str, message: str) -> None:
    with pytest.raises(FledgeError, match=message) as caught:
        parse_parameter(text)
    assert "log:1e-4..1e-2" in (caught.value.hint or "")


def test_a_file_holds_the_same_space_as_options(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("stages:\n  sft:\n    optimizer: {learning_rate: log:1e-4..1e-2}\n    batch.x: [1, 2]\n", encoding="utf-8")
    assert read_space(file) == [parse_parameter(f"{RATE}=log:1e-4..1e-2"), parse_parameter("stages.sft.batch.x=1,2")]


def test_keys_that_the_sweep_sets_and_keys_that_come_twice_are_refused() -> None:
    with pytest.raises(FledgeError, match="sets the key 'seed' itself") as caught:
        gather_space(["seed=1,2"], [])
    assert "--seeds" in (caught.value.hint or "")
    with pytest.raises(FledgeError, match="searched twice"):
        gather_space(["a=1,2", "a=3,4"], [])
    with pytest.raises(FledgeError, match="nothing is searched"):
        gather_space([], [])


def test_an_unknown_key_and_a_value_out_of_bounds_name_the_option(tmp_path: Path) -> None:
    file = str(tiny_run.write(tmp_path / "tiny.yaml", tiny_run.tree(tmp_path / "world", tmp_path)))
    for text, message in (
        ("stages.sft.optimizer.learning_rat=1e-3,1e-4", "did you mean 'learning_rate'"),
        (f"{RATE}=-1..1", "greater than 0"),
    ):
        with pytest.raises(FledgeError, match=message) as caught:
            trial_recipes([file], [], [parse_parameter(text)], SweepFiles(folder=tmp_path / "sweep"))
        assert text.partition("=")[0] in (caught.value.where or "")
    with pytest.raises(FledgeError, match="comes after the stage that is measured"):
        space = [parse_parameter("stages.dpo.beta=0.1,0.2")]
        trial_recipes([file], [], space, SweepFiles(folder=tmp_path / "sweep"), stage="sft")


def test_the_first_trial_is_the_recipe_itself_where_the_space_holds_it(tmp_path: Path) -> None:
    file = str(tiny_run.write(tmp_path / "tiny.yaml", tiny_run.tree(tmp_path / "world", tmp_path)))
    recipe = load_recipe([file])
    assert own_values(recipe, [parse_parameter(f"{RATE}=log:1e-4..1e-2")]) == {RATE: 1e-3}
    assert own_values(recipe, [parse_parameter(f"{RATE}=log:1e-5..1e-4")]) is None


def test_a_trial_trains_only_the_stages_that_are_searched(tmp_path: Path) -> None:
    file = str(tiny_run.write(tmp_path / "tiny.yaml", tiny_run.tree(tmp_path / "world", tmp_path)))
    files = SweepFiles(folder=tmp_path / "sweep")
    recipes = trial_recipes([file], [], [parse_parameter(f"{RATE}=1e-3,1e-4")], files, stage="sft")
    start, trial = recipes.start(1), recipes.trial(3, 1, {RATE: 1e-4})
    assert start is not None and list(start.stages) == ["pretrain"]
    assert list(trial.stages) == ["sft"] and trial.stages["sft"].optimizer.learning_rate == 1e-4
    assert trial.stages["sft"].evaluation.verdict.roll_back is False  # else a bad trial's model would be the start model
    assert trial.stages["sft"].init_from == str(files.start(1) / "pretrain")
    assert start.built_dataset == trial.built_dataset == str(files.data(1))
    assert recipes.whole(2).seed == recipes.whole(1).seed + 1
    assert recipes.whole(2).tokenizer.path == str(files.data(1) / "tokenizer")
    changing = trial_recipes([file], [], [parse_parameter("stages.sft.data.max_seq_len=32,64")], files, stage="sft")
    assert not changing.shares_data and changing.trial(1, 1, {}).built_dataset is None
    whole = trial_recipes([file], [], [parse_parameter("model.hidden_size=32,64")], files, stage="sft")
    assert whole.start(1) is None and list(whole.trial(1, 1, {}).stages) == ["pretrain", "sft"]
