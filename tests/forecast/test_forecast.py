"""`fledge plan`: forecasts on this machine and on cards, with and without data, a probe, and its refusals."""

import json
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.data import FORMATS
from fledge.errors import FledgeError
from fledge.forecast.assumed import assumed_rows, parse_tokens
from fledge.forecast.planning import plan_recipe
from fledge.forecast.text import flops_text, number
from fledge.plan.time import Range, time_text, two_digits
from fledge.recipe import load_recipe
from fledge.run import Console
from tests.support import tiny_run

PRESET = """
name: seed
preset: 26m
stages:
  pretrain:
    data: {train: none.jsonl, max_seq_len: 512}
    duration: 3 epochs
    batch: {micro_batch_size: 32, gradient_accumulation_steps: 2}
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small generated world."""
    folder = tmp_path_factory.mktemp("data") / "world"
    tiny_run.tree(folder, folder)
    return folder


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Path:
    return tiny_run.write(tmp_path / "r.yaml", tiny_run.tree(world, tmp_path))


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "preset.yaml").write_text(PRESET, encoding="utf-8")
    return tmp_path / "preset.yaml"


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_has_every_stage_on_every_device_and_trains_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys, recipe, "--device", "2xT4", "--device", "rtx4090", "--here", "--runtime.precision", "auto")
    assert [(one["device"], one["count"]) for one in found["devices"]] == [
        ("this machine (cpu)", 1),
        ("T4", 2),
        ("RTX 4090", 1),
    ]
    assert [one["precision"] for one in found["devices"][1:]] == ["fp16", "bf16"]
    assert list(found["stages"]) == list(load_recipe([str(recipe)]).stages)
    for stage in found["stages"].values():
        assert stage["work"]["flops"] == pytest.approx(sum(stage["work"][part] for part in (
            "blocks", "attention", "head", "recomputed", "reference")))  # fmt: skip
        for device in stage["devices"]:
            assert device["fits"] and 0 < device["time"]["total"]["low"] <= device["time"]["total"]["high"]
            moments = device["memory"]["moments"]
            assert {"training step", "evaluation", "saving"} <= set(moments)
            assert device["memory"]["needs"] == pytest.approx(max(one["total"] for one in moments.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_the_hours_of_the_seed_document_are_its_tokens_by_its_speed(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, preset, "--tokens", "256M", "--device", "3090", "--price", "own:6000/8000h+0.35kW*1")
    plan = found["stages"]["pretrain"]["plan"]
    assert plan["tokens"] == 768_000_000 and plan["epochs"] == 3 and plan["steps"] == -(-1_500_000 // 64)
    low, high = found["devices"][0]["hours"]
    assert 0.3 < low < high < 3, "not 118 h: 1,800 tokens a second are a hundredth of what the card does"
    (cost,) = found["devices"][0]["cost"]
    assert cost["low"] == pytest.approx(1.1 * low) and cost["high"] == pytest.approx(1.1 * high)


def test_bf16_on_a_t4_is_an_error_with_the_way_out(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(preset), "--tokens", "1M", "--device", "2xT4", "--runtime.precision", "bf16"]) == 2
    error = capsys.readouterr().err
    assert "T4: this GPU has no bf16 units" in error and "runtime.precision" in error and "fp16" in error


def test_a_model_that_fits_nowhere_is_exit_code_2(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["--model.hidden_size", "8192", "--model.num_hidden_layers", "64", "--model.intermediate_size", "22016",
            "--model.num_attention_heads", "64"]  # fmt: skip
    assert main(["plan", str(preset), "--tokens", "100M", "--device", "T4", *wide]) == 2
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", str(preset), "--tokens", "100M", "--device", "T4"]) == 0


def test_what_would_make_it_fit_is_told_as_options(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = ["--stages.pretrain.batch.micro_batch_size", "512"]
    assert main(["plan", str(preset), "--tokens", "900M", "--device", "T4", *large]) == 2
    line = next(line for line in capsys.readouterr().out.splitlines() if "→ --stages.pretrain.batch.micro_batch_size" in line)
    options = line.split("→ ")[1].split(": ")[0].split()
    assert main(["plan", str(preset), "--tokens", "900M", "--device", "T4", *options]) == 0


def test_a_stage_that_does_not_fit_is_planned_with_one_row_and_measures(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    stage = {**tree["stages"]["pretrain"], "batch": {"tokens_per_step": 512}}
    runtime = {**tree["runtime"], "device": "cpu", "memory_budget": "64 MB"}
    file = tiny_run.write(tmp_path / "small.yaml", {**tree, "runtime": runtime, "stages": {"pretrain": stage}})
    forecast = plan_recipe(load_recipe([str(file)]), Console(quiet=True), tmp_path, devices=["H100"], here=True)
    (planned,) = forecast.stages
    assert planned.inputs.plan.effective_batch_rows == 8
    for one in planned.devices:
        assert not one.fits and one.share.micro == 1 and one.fit.largest is None and one.fit.measures


def test_strict_makes_warnings_errors(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe)]) == 0
    assert "warning (certain): stages.pretrain.duration" in capsys.readouterr().out
    assert main(["plan", str(recipe), "--strict"]) == 2


@pytest.mark.slow
def test_a_probe_measures_the_stages_and_leaves_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), "--probe", "10"]) == 0
    out = capsys.readouterr().out
    assert out.count("measured: 10 steps of each stage on this machine") == len(load_recipe([str(recipe)]).stages)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", "3"], "3 steps are too few"),
        (["--probe", "10", "--tokens", "1M"], "--tokens leaves out"),
        (["--tokens", "many"], "'many' is no number of tokens"),
        (["--tokens", "nothing=1M"], "no stage 'nothing'"),
        (["--tokens", "sft=1M"], "nothing is said about stage pretrain"),
        (["--device", "RTX 9999"], "no card 'RTX 9999'"),
        (["--price", "cheap"], "cannot read the price 'cheap'"),
    ],
)
def test_wrong_options_are_told(recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["plan", str(recipe), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_tokens_are_for_all_stages_or_for_one() -> None:
    assert parse_tokens(["1M"], ["a", "b"]) == {"a": 1_000_000, "b": 1_000_000}
    assert parse_tokens(["b=2k", "1M"], ["a", "b"]) == {"a": 1_000_000, "b": 2_000}
    assert parse_tokens(["sft-zh=20M", "预训练 = 1M"], ["sft-zh", "预训练"]) == {"sft-zh": 20_000_000, "预训练": 1_000_000}


@pytest.mark.parametrize("kind", ["pretrain", "sft", "preference", "kto", "reward"])
def test_assumed_rows_hold_what_they_should(kind: str) -> None:
    stage = {"kind": kind, "data": {"train": "x.jsonl", "max_seq_len": 64}}
    from fledge.recipe import recipe_from_dict

    rows = assumed_rows(recipe_from_dict({"stages": {"x": stage}}).stages["x"], 64_000, 0)
    length = FORMATS[kind].packed_length(64)  # as the rows of data have it
    assert len(rows) == 64_000 // length and rows.packed_length == length
    assert rows.num_tokens == rows.num_target_tokens == 64_000 and rows.mean_context == 64
    assert rows.summary()["padding_share"] == 0
    with pytest.raises(FledgeError, match="more than a plan can hold"):
        assumed_rows(recipe_from_dict({"stages": {"x": stage}}).stages["x"], 10**11, 0)


def test_figures_are_short() -> None:
    assert time_text(Range(30.0, 95.0)) == "30 to 95 s" and time_text(Range(3600 * 100, 3600 * 110)) == "4.2 to 4.6 days"
    assert time_text(Range(0.01, 0.01)) == "0.01 s" and two_digits(1234.0) == "1,200" and number(0.00123456) == "0.00123"
    assert flops_text(2.5e13) == "25.0 TFLOP" and flops_text(1e3) == "0.0 MFLOP"
