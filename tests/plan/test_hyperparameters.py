"""Settings of `auto`: numbers that are given stay, and derived ones follow their rules."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.plan import hyperparameters
from fledge.plan.hyperparameters import RunSize, fine_tuning_rate, resolve, resolve_stage
from fledge.recipe import load_recipe, recipe_from_dict, to_yaml
from fledge.recipe.schema import OptimizerConfig, Recipe

REFERENCE = RunSize(hyperparameters.REFERENCE_WIDTH, hyperparameters.REFERENCE_BATCH, 488, hyperparameters.REFERENCE_TOKENS)
AUTO = {"learning_rate": "auto", "betas": "auto", "weight_decay": "auto"}


def auto(name: str, **more: object) -> OptimizerConfig:
    """Optimizer settings that are `auto` unless given."""
    return OptimizerConfig(**{"name": name, **AUTO, **more})  # type: ignore[arg-type]


def recipe(optimizer: dict[str, object], schedule: dict[str, object] | None = None, kind: str = "pretrain") -> Recipe:
    """A recipe with one stage."""
    stage = {"kind": kind, "data": {"train": "a.txt"}, "optimizer": optimizer, "schedule": schedule or {}}
    return recipe_from_dict({"stages": {"one": stage}})


def rate(name: str, run: RunSize) -> float:
    """The derived learning rate of a run."""
    return resolve(auto(name), run)[0].numbers()[0]


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
def test_reference_run_gets_the_reference_rate(name: str) -> None:
    config, notes = resolve(auto(name), REFERENCE)
    assert config.numbers()[0] == pytest.approx(hyperparameters.RATES[name])
    assert config.automatic == [] and len(notes) == 3
    assert [note.split()[0] for note in notes] == ["lr", "betas", "weight_decay"]


def test_learning_rate_scales_with_width_batch_and_length_as_in_the_papers() -> None:
    base = RunSize(320, 8192, 1000, 8_000_000)
    assert rate("adamw", RunSize(640, 8192, 1000, 8_000_000)) == pytest.approx(rate("adamw", base) / 2)
    assert rate("muon", RunSize(1280, 8192, 1000, 8_000_000)) == pytest.approx(rate("muon", base) / 2)
    assert rate("muon", RunSize(320, 4 * 8192, 1000, 8_000_000)) == pytest.approx(rate("muon", base) * 2)
    assert rate("muon", RunSize(320, 8192, 1000, 16_000_000)) == pytest.approx(rate("muon", base) * 2**-0.32)
    assert rate("muon", RunSize(320, 8192, 10, 100_000)) == pytest.approx(
        hyperparameters.RATES["muon"]
    )  # never above the reference's


def test_half_life_of_the_second_moment_in_tokens_does_not_depend_on_the_batch() -> None:
    long = 10**9
    for batch in (50_000, 100_000, 500_000):
        _, (_, second), _ = resolve(auto("adamw"), RunSize(320, batch, 100, long))[0].numbers()
        assert second ** (hyperparameters.HALF_LIFE / batch) == pytest.approx(0.5)
    _, (_, second), _ = resolve(auto("adamw"), RunSize(320, 500_000, 100, long))[0].numbers()
    assert second == pytest.approx(0.95, abs=1e-4)
    _, (_, short), _ = resolve(auto("adamw"), RunSize(320, 8192, 488, 4_000_000))[0].numbers()
    assert short ** (0.05 * 4_000_000 / 8192) == pytest.approx(0.5)


def test_weight_decay_averages_over_a_fixed_fraction_of_the_run() -> None:
    for steps in (5_000, 50_000):
        lr, _, decay = resolve(auto("muon"), RunSize(320, 8192, steps, steps * 8192))[0].numbers()
        assert lr * decay * steps == pytest.approx(1 / hyperparameters.DECAY_TIME_FRACTION)
    assert resolve(auto("muon", learning_rate=1e-5), RunSize(320, 8192, 10, 81920))[0].weight_decay == hyperparameters.MAX_DECAY


@given(
    width=st.integers(8, 8192), batch=st.integers(64, 10**7), steps=st.integers(1, 10**6),
    name=st.sampled_from(["adamw", "muon", "adamw8bit"]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_derived_settings_are_valid_for_every_size_of_run(width: int, batch: int, steps: int, name: str) -> None:
    config, notes = resolve(auto(name), RunSize(width, batch, steps, batch * steps))
    assert OptimizerConfig.model_validate(config.model_dump()) == config
    lr, (first, second), decay = config.numbers()
    assert lr <= hyperparameters.MAX_RATE and first < 1 and 0.9 <= second <= 0.999 and decay <= hyperparameters.MAX_DECAY
    assert f"lr {lr:.3g} =" in notes[0] and f"{second:.4g}" in notes[1] and f"weight_decay {decay:.3g} =" in notes[2]


def test_given_numbers_stay_and_only_auto_is_derived() -> None:
    stage = recipe({"learning_rate": 1e-3, "weight_decay": 0.2}).stages["one"]
    assert stage.optimizer.name == "muon" and stage.optimizer.automatic == ["betas"]
    plain, notes = resolve_stage(stage, REFERENCE)
    assert (plain.optimizer.learning_rate, plain.optimizer.weight_decay) == (1e-3, 0.2)
    assert [note.split()[0] for note in notes] == ["betas"]
    explicit = recipe({"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1}).stages["one"]
    assert resolve_stage(explicit, REFERENCE) == (explicit, [])


def test_stored_recipe_keeps_auto_and_percentages(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stored = recipe({}, {"min_lr": "10%"})
    (tmp_path / "recipe.yaml").write_text(to_yaml(stored), encoding="utf-8")
    loaded = load_recipe([str(tmp_path / "recipe.yaml")])
    assert loaded == stored
    stage = loaded.stages["one"]
    assert (stage.optimizer.learning_rate, stage.optimizer.betas, stage.schedule.min_lr) == ("auto", "auto", "10%")
    plain, _ = resolve_stage(stage, REFERENCE)
    assert plain.schedule.min_lr == pytest.approx(0.1 * hyperparameters.RATES["muon"])


def test_minimum_rate_above_the_derived_rate_is_an_error() -> None:
    stage = recipe({}, {"min_lr": 0.5}).stages["one"]
    with pytest.raises(FledgeError, match=r"min_lr 0.5 is above optimizer.learning_rate, which auto sets to 0.006"):
        resolve_stage(stage, REFERENCE)


@pytest.mark.parametrize(("kind", "rate"), [("sft", 2e-5), ("preference", 5e-6)])
def test_fine_tuning_has_numbers_and_derives_a_learning_rate_alone(kind: str, rate: float) -> None:
    optimizer = recipe({}, kind=kind).stages["one"].optimizer
    assert optimizer.name == "adamw" and optimizer.learning_rate == rate
    with pytest.raises(FledgeError, match=r"the default of betas is \[0.9, 0.95\]; the default of weight_decay is 0.01\)"):
        recipe({"betas": "auto", "weight_decay": "auto"}, kind=kind)
    stage = recipe({"learning_rate": "auto"}, kind=kind).stages["one"]
    plain, (why,) = resolve_stage(stage, REFERENCE)
    share = hyperparameters.FINE_TUNING_SHARES[kind]
    assert plain.optimizer.learning_rate == pytest.approx(share * hyperparameters.RATES["adamw"])
    assert f"{share:g} (found by trial for {kind}) × that of fresh weights: lr 0.004" in why
    wide, (why,) = resolve_stage(stage, replace(REFERENCE, width=2048))
    assert wide.optimizer.learning_rate == rate and "no model wider than 768 was tried" in why


def test_a_derived_rate_of_an_adapter_is_ten_times_as_large() -> None:
    base = fine_tuning_rate("sft", "adamw", REFERENCE, has_adapter=False)[0]
    assert fine_tuning_rate("sft", "adamw", REFERENCE, has_adapter=True)[0] == pytest.approx(min(0.02, 10 * base))
    wide = fine_tuning_rate("sft", "adamw", replace(REFERENCE, width=4096), has_adapter=True)[0]
    assert wide == pytest.approx(2e-4)
    untried, why = fine_tuning_rate("preference", "adamw", REFERENCE, has_adapter=True)
    assert untried == pytest.approx(5e-5) and "no adapter was tried in preference stages" in why


def test_a_reward_model_has_no_derived_rate() -> None:
    with pytest.raises(FledgeError, match="learning_rate: auto is not derived for this kind of stage; write a number"):
        recipe({"learning_rate": "auto"}, kind="reward")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            {"learning_rate": "fast"},
            r"1 problem in the recipe:\n.*stages.one.optimizer.learning_rate: Input should be a valid number",
        ),
        ({"betas": [0.9, 2]}, r"1 problem in the recipe:\n.*stages.one.optimizer.betas.1: Input should be less than 1"),
        ({"weight_decay": -1}, r"1 problem in the recipe:\n.*stages.one.optimizer.weight_decay: Input should be greater"),
    ],
)
def test_invalid_number_is_reported_as_one_problem(optimizer: dict[str, object], message: str) -> None:
    with pytest.raises(FledgeError, match=message):
        recipe(optimizer)
