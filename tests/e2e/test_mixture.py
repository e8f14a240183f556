"""A mixture of experts through the whole pipeline: trained, watched, stopped, resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.model.decoder import Decoder
from fledge.model.moe import Router
from fledge.model.pretrained import from_pretrained
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe
from fledge.run import Console
from tests.support import tiny_run
from tests.support.killing import run_until_killed

QUIET = Console(quiet=True)


def _recipe(world: Path, output: Path, balance: str) -> Recipe:
    """Pretraining and preferences."""
    tree = tiny_run.tree(world, output)
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": balance}
    stages = {name: tree["stages"][name] for name in ("pretrain", "dpo")}
    return tiny_run.recipe(world, output, model={**tiny_run.MODEL, "qk_norm": True, "moe": moe}, stages=stages)


def _steps(run: Path, stage: str) -> list[dict[str, Any]]:
    lines = (run / stage / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "step"]


def _finals(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for stage in ("pretrain", "dpo"):
        last = run / stage / "checkpoints" / "last"
        results[f"{stage} weights"] = (last / "model" / "model.safetensors").read_bytes()
        results[f"{stage} optimizer"] = (last / "state" / "optimizer.safetensors").read_bytes()
        results[f"{stage} steps"] = _steps(run, stage)
    return results


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    return Pipeline(_recipe(world, tmp_path_factory.mktemp("whole"), "bias"), QUIET).run()


@pytest.mark.parametrize("at", [2, 12])
def test_a_mixture_killed_before_its_biases_move_resumes_bit_for_bit(
    at: int, world: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(world, tmp_path, "bias")
    run_until_killed(recipe, at, monkeypatch, Decoder, "update_router_biases")
    assert _finals(Pipeline(recipe, QUIET).run(resume=True)) == _finals(uninterrupted)
    model = from_pretrained(uninterrupted / "dpo" / "checkpoints" / "last" / "model")
    biases = torch.stack([m.e_score_correction_bias for m in model.modules() if isinstance(m, Router)])  # type: ignore[misc]
    moves = (biases / 0.001).round()
    torch.testing.assert_close(biases, moves * 0.001)  # whole steps of bias_rate
    assert 0 < moves.abs().max() <= 14


def test_every_step_of_a_mixture_writes_its_routing(world: Path, tmp_path: Path) -> None:
    run = Pipeline(_recipe(world, tmp_path, "aux_loss"), QUIET).run()
    for stage in ("pretrain", "dpo"):
        for event in _steps(run, stage):
            load = torch.tensor(event["router/load"])
            assert load.shape == (2, 4)
            torch.testing.assert_close(load.mean(1), torch.ones(2), atol=1e-3, rtol=0.0)
            assert event["router/max_load"] == pytest.approx(float(load.max()), abs=1e-4)
            assert event["router/min_load"] == pytest.approx(float(load.min()), abs=1e-4)
            assert (
                0 < event["router/entropy"] <= 1.3863
                and event["train/router_aux_loss"] >= 1.9
                and event["train/router_z_loss"] > 0
            )
    first = _steps(run, "dpo")[0]
    assert first["train/loss"] == pytest.approx(0.6931, abs=0.02)  # without the penalty, which is about 0.02 · top_k
