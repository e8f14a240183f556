"""A mixture of experts passes through the whole pipeline: it is trained, logged, killed and resumed."""

from pathlib import Path

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
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)
STAGES = ("pretrain", "dpo")


def _recipe(world: Path, output: Path, balance: str) -> Recipe:
    """A recipe of a mixture of experts with the stages pretrain and dpo."""
    tree = tiny_run.tree(world, output)
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": balance}
    stages = {name: tree["stages"][name] for name in STAGES}
    return tiny_run.recipe(world, output, model={**tiny_run.MODEL, "qk_norm": True, "moe": moe}, stages=stages)


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run."""
    return Pipeline(_recipe(world, tmp_path_factory.mktemp("whole"), "bias"), QUIET).run()


@pytest.mark.parametrize("at", [2, 12])
def test_a_mixture_killed_before_its_biases_move_resumes_bit_for_bit(
    at: int, world: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(world, tmp_path, "bias")
    run_until_killed(recipe, at, monkeypatch, Decoder, "update_router_biases")
    assert final_results(Pipeline(recipe, QUIET).run(resume=True), STAGES) == final_results(uninterrupted, STAGES)
    model = from_pretrained(uninterrupted / "dpo" / "checkpoints" / "last" / "model")
    biases = torch.stack([m.e_score_correction_bias for m in model.modules() if isinstance(m, Router)])  # type: ignore[misc]
    moves = (biases / 0.001).round()
    torch.testing.assert_close(biases, moves * 0.001)  # whole multiples of bias_update_rate
    assert 0 < moves.abs().max() <= 14


def test_every_step_of_a_mixture_writes_its_routing(world: Path, tmp_path: Path) -> None:
    run = Pipeline(_recipe(world, tmp_path, "aux_loss"), QUIET).run()
    for stage in STAGES:
        for event in events(run, stage, "step"):
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
    first = events(run, "dpo", "step")[0]
    assert first["train/loss"] == pytest.approx(0.6931, abs=0.02)  # without the penalty, which is about 0.02 · top_k
