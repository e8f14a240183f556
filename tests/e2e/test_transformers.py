"""A model that the library transformers computes passes through complete runs: `model.implementation: transformers`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.forecast.planning import dry_run
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.model.pretrained import from_pretrained
from fledge.pipeline import Pipeline
from fledge.recipe import ModelConfig, recipe_from_dict
from fledge.run import Console
from fledge.tokenizer import train_tokenizer
from tests.conftest import TEXTS
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.run_directory import events
from tests.support.transformers_models import write_model

QUIET = Console(quiet=True)
SIZES = {key: value for key, value in tiny_run.MODEL.items() if key != "dropout"}
OPTIMIZER = {"name": "adamw", "learning_rate": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
SAMPLES = {"prompts": ["你是谁？", "What is 3 plus 4?"], "texts": [], "max_new_tokens": 12}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tokenizer, written by a native decoder."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = train_tokenizer(TEXTS, 420, "chatml")
    model = Decoder(ModelConfig.model_validate(SIZES), tokenizer.vocab_size)
    model.init_weights(0)
    model.save_pretrained(folder, bos=tokenizer.bos_id, eos=sorted(tokenizer.stop_ids), pad=tokenizer.pad)
    tokenizer.save(folder)
    return folder


def tree(
    world: Path, output: Path, start: Path, implementation: str, stages: tuple[str, ...] = ("sft",), **more: Any
) -> dict[str, Any]:
    """A recipe of some stages of the tiny run, from a model directory, in float32 with AdamW."""
    values = tiny_run.tree(world, output)
    runtime = {**values["runtime"], "attention": "sdpa", **more.pop("runtime", {})}
    values |= {"model": {"path": str(start), "implementation": implementation}, "runtime": runtime}
    values |= {"tokenizer": {"path": str(start)}, "generation_samples": SAMPLES}
    values["stages"] = {name: {**values["stages"][name], "optimizer": OPTIMIZER, **more} for name in stages}
    return values


def run(*arguments: Any, **more: Any) -> Path:
    """Run the recipe that `tree` gives for these arguments: the run directory."""
    return Pipeline(recipe_from_dict(tree(*arguments, **more)), QUIET).run()


def prompt_tests(folder: Path, every_steps: int) -> dict[str, Any]:
    """Two prompts, one of which must fail and one of which must pass."""
    cases = [
        {"prompt": "你是谁？", "expect": {"exact": ["no model says this"]}},
        {"prompt": "hi", "expect": {"length": {"min": 0}}},
    ]
    (folder / "prompts.yaml").write_text(json.dumps(cases), encoding="utf-8")
    return {"prompts": str(folder / "prompts.yaml"), "every_steps": every_steps, "max_new_tokens": 8}


def passed_tests(run: Path) -> list[int]:
    """The number of passed prompts of each prompt test."""
    return [event["prompt_tests/passed"] for event in events(run, "sft", "prompt_tests")]


def assert_same_curves(left: Path, right: Path, stage: str, steps: int) -> None:
    """Check that losses of all steps and validation losses differ by less than 1e-4, gradient norms by less than 1e-3."""
    both = [events(run, stage, "step") for run in (left, right)]
    assert [event["step"] for event in both[0]] == [event["step"] for event in both[1]] == list(range(1, steps + 1))
    for ours, theirs in zip(*both, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-4)
        assert ours["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], abs=1e-3)
        assert ours["train/target_tokens"] == theirs["train/target_tokens"]
    for ours, theirs in zip(*(events(run, stage, "eval") for run in (left, right)), strict=True):
        assert ours["eval/loss"] == pytest.approx(theirs["eval/loss"], abs=1e-4)


@pytest.mark.slow
def test_a_whole_fine_tuning_stage_has_the_native_decoders_losses_at_every_step(
    world: Path, start: Path, tmp_path: Path
) -> None:
    runs = {}
    for implementation in ("native", "transformers"):
        more: dict[str, Any] = {"duration": "30 steps", "prompt_tests": prompt_tests(tmp_path, every_steps=10)}
        runs[implementation] = run(world, tmp_path / implementation, start, implementation, **more)
    native, bridge = runs["native"], runs["transformers"]
    assert json.loads((bridge / "sft" / "data_report.json").read_text())["train"]["examples"] > len(
        events(bridge, "sft", "step")
    )
    assert_same_curves(native, bridge, "sft", 30)
    losses = [event["train/loss"] for event in events(bridge, "sft", "step")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    models = [from_pretrained(folder / "sft" / "checkpoints" / "last" / "model") for folder in (native, bridge)]
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=1e-2, msg=lambda text, name=name: f"{name}: {text}")
    samples = [json.loads((folder / "sft" / "eval" / "after.json").read_text())["samples"] for folder in (native, bridge)]
    assert samples[0] == samples[1] and len(samples[0]) == 2
    assert passed_tests(native) == passed_tests(bridge) == [1, 1, 1]
    plans = [json.loads((folder / "sft" / "plan.json").read_text()) for folder in (native, bridge)]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_an_unsupported_architecture_passes_through_all_stages_and_loads_in_transformers(
    world: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stages with averaged weights, Muon and activation checkpointing, started on the command line."""
    vocabulary = len(AutoTokenizer.from_pretrained(start))
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": 96, "initializer_range": 0.02}
    write_model(tmp_path / "other", "Llama", mlp_bias=True, **sizes)
    for file in start.glob("*token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    more: dict[str, Any] = {"optimizer": {**OPTIMIZER, "name": "muon"}, "ema": {"decay": 0.9, "start_fraction": 0.0}}
    values = tree(world, tmp_path, tmp_path / "other", "auto", ("sft", "dpo"), runtime={"activation_checkpointing": 2}, **more)
    path = tiny_run.write(tmp_path / "recipe.yaml", values)
    assert main(["train", str(path)]) == 0
    printed = capsys.readouterr()
    assert "the native decoder does not cover mlp_bias = True" in " ".join((printed.out + printed.err).split())
    finished = tmp_path / "tiny"
    assert events(finished, "dpo", "step")[0]["train/loss"] == pytest.approx(0.6931, abs=1e-3)
    for stage in ("sft", "dpo"):
        last = finished / stage / "checkpoints" / "last"
        for name in ("model", "averaged"):
            theirs = AutoModelForCausalLM.from_pretrained(last / name, dtype=torch.float32).eval()
            ours = load_model(last / name).eval()
            assert type(theirs).__name__ == "LlamaForCausalLM" and ours.implementation == "transformers"
            tokens = torch.arange(20)[None]
            with torch.no_grad():
                torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    assert len(AutoTokenizer.from_pretrained(finished / "sft" / "checkpoints" / "last" / "model")) == vocabulary


def test_a_model_of_transformers_answers_on_the_command_line(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, "Llama", mlp_bias=True, vocab_size=len(AutoTokenizer.from_pretrained(start)))
    for file in start.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["generate", str(tmp_path), "你是谁？", "--max-new-tokens", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() and "the library transformers computes this model" in printed.err


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(world: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = run(world, tmp_path / "whole", start, "transformers")
    recipe = recipe_from_dict(tree(world, tmp_path / "killed", start, "transformers"))
    run_until_killed(recipe, 6, monkeypatch)
    resumed = Pipeline(recipe, QUIET).run(resume=True)
    for name in ("model/model.safetensors", "state/optimizer.safetensors"):
        assert (resumed / "sft/checkpoints/last" / name).read_bytes() == (
            uninterrupted / "sft/checkpoints/last" / name
        ).read_bytes()
    assert [e["train/loss"] for e in events(resumed, "sft", "step")] == [
        e["train/loss"] for e in events(uninterrupted, "sft", "step")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one_process(world: Path, start: Path, tmp_path: Path, parallelism: str) -> None:
    alone = run(world, tmp_path / "alone", start, "transformers")
    more: dict[str, Any] = {"runtime": {"parallelism": parallelism}, "prompt_tests": prompt_tests(tmp_path, every_steps=4)}
    values = tree(world, tmp_path / "two", start, "transformers", **more)
    path = tiny_run.write(tmp_path / "two.yaml", values)
    assert main(["train", str(path), "--quiet", "--nproc-per-node", "2"]) == 0
    assert_same_curves(alone, tmp_path / "two" / "tiny", "sft", 8)
    assert passed_tests(tmp_path / "two" / "tiny") == [1, 1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_half_precision_trains_and_fp16_scales_its_loss(world: Path, start: Path, tmp_path: Path, precision: str) -> None:
    exact = run(world, tmp_path / "fp32", start, "transformers")
    half = run(world, tmp_path / precision, start, "transformers", runtime={"precision": precision})
    for ours, theirs in zip(events(half, "sft", "step"), events(exact, "sft", "step"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0.01)
        assert ("train/loss_scale" in ours) == (precision == "fp16")


def test_a_setting_unsupported_by_transformers_is_an_error_before_anything_is_written(
    world: Path, start: Path, tmp_path: Path
) -> None:
    recipe = recipe_from_dict(tree(world, tmp_path, start, "transformers", runtime={"attention": "blocked"}))
    for attempt in (lambda: Pipeline(recipe, QUIET).run(), lambda: dry_run(recipe, QUIET)):
        with pytest.raises(FledgeError, match="cannot compute attention by 'blocked'"):
            attempt()
    assert not (tmp_path / "tiny").exists()


def test_transformers_without_a_model_directory_is_an_error() -> None:
    with pytest.raises(FledgeError, match="implementation: transformers needs path"):
        recipe_from_dict(
            {"model": {"implementation": "transformers"}, "stages": {"x": {"kind": "sft", "data": {"train": "a.jsonl"}}}}
        )


def test_a_started_run_keeps_its_implementation(world: Path, start: Path, tmp_path: Path) -> None:
    run(world, tmp_path, start, "native", duration="2 steps")
    with pytest.raises(FledgeError, match=r"model\.implementation: 'native' -> 'transformers'"):
        run(world, tmp_path, start, "transformers", duration="2 steps")
