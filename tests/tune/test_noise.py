from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.data import PackedDataset
from fledge.model.loading import load_model
from fledge.objective import CausalLMObjective
from fledge.prepare import Preparation
from fledge.recipe import load_recipe
from fledge.run.console import silent
from fledge.run.directory import RunDirectory
from fledge.run.events import read_events
from fledge.tune.noise import NormsOfStep, noise_scale, recorded_norms
from tests.support import small_runs


def drawn_norms(scale: float, tokens: int, steps: int, seed: int, size: int = 200, share: float = 0.5) -> list[NormsOfStep]:
    """Steps whose gradients are drawn: |G|² = 1, and the noise of one token has tr(Σ) = `scale`. `share`: of the first part."""
    draw = np.random.default_rng(seed)
    true = np.full(size, size**-0.5)
    deviations = [np.sqrt(scale / size / (tokens * part)) for part in (share, 1 - share)]
    found = []
    for step in range(1, steps + 1):
        first, second = (true + deviation * draw.normal(size=size) for deviation in deviations)
        whole = share * first + (1 - share) * second
        found.append(NormsOfStep(step=step, tokens=tokens, whole=sum(whole**2), half=sum(first**2), share=share))
    return found


@pytest.mark.parametrize("share", [1 / 2, 1 / 3, 7 / 15])
@pytest.mark.parametrize("tokens", [100, 1000, 10_000])
def test_the_noise_scale_is_found_whatever_the_batch_that_measures_it(tokens: int, share: float) -> None:
    found = noise_scale(drawn_norms(1000.0, tokens, steps=400, seed=1, share=share))
    assert found is not None and found.tokens == pytest.approx(1000, rel=0.2)


def test_its_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    intervals = [noise_scale(drawn_norms(1000.0, 500, steps=80, seed=seed)) for seed in range(60)]
    hits = [one is not None and one.interval[0] <= 1000 <= (one.interval[1] or np.inf) for one in intervals]
    assert 0.85 <= np.mean(hits) <= 1.0
    assert all(one is not None and one.interval[1] is not None and one.interval[1] < 3 * one.interval[0] for one in intervals)


def test_a_gradient_that_is_all_noise_has_no_scale_or_no_upper_end() -> None:
    draw = np.random.default_rng(3)
    norms = [NormsOfStep(step=n, tokens=100, whole=sum(draw.normal(size=50) ** 2) / 2, half=sum(draw.normal(size=50) ** 2))
             for n in range(1, 81)]  # fmt: skip
    found = noise_scale(norms)
    assert found is None or found.interval[1] is None or found.interval[1] > 1000


def test_tokens_and_steps_trade_as_the_formula_says() -> None:
    found = noise_scale(drawn_norms(1000.0, 1000, steps=400, seed=1))
    assert found is not None
    for batch in (10.0, 1000.0, 1e5):  # (E / E_min − 1) (S / S_min − 1) = 1
        assert (found.more_tokens(batch) - 1) * (found.more_steps(batch) - 1) == pytest.approx(1)
    assert found.more_tokens(found.tokens) == 2 == found.more_steps(found.tokens)


def gradients_of_rows(model_directory: Path, data: PackedDataset) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the summed loss of each packed row [rows, parameters], and its targets [rows]."""
    model, objective = load_model(model_directory), CausalLMObjective()
    gradients, targets = [], []
    for row in range(len(data.layout)):
        model.zero_grad(set_to_none=True)
        batch = data.assemble([row])
        objective(model, batch).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy())
        targets.append(batch.weight)
    return np.array(gradients), np.array(targets)


def test_a_run_records_the_noise_of_its_own_gradients(tmp_path: Path) -> None:
    """The scale of the recorded norms against its definition, from the gradient of every row at the same weights."""
    small_runs.write_rows(tmp_path)
    stage = {
        "kind": "sft", "data": {"train": str(tmp_path / "mixed.jsonl"), "validation": 0}, "duration": "300 steps",
        "batch": {"micro_batch_size": 1, "gradient_accumulation_steps": 3}, "optimizer": {"learning_rate": 1e-12},
        "schedule": {"name": "constant", "warmup": 0},
    }  # fmt: skip
    more = {"tokenizer": {"vocab_size": 400}, "model": small_runs.MODEL, "logging": {"every_steps": 1}}
    run = small_runs.train(tmp_path, stage, **more)
    directory = RunDirectory(run).stage("sft")
    norms = recorded_norms(read_events(directory.events))
    assert len(norms) > 250
    found = noise_scale(norms)
    assert found is not None

    recipe = load_recipe([str(run / "recipe.yaml")])
    preparation = Preparation(recipe, silent, lambda name: RunDirectory(run).stage(name).data, resuming=True)
    data = preparation.stage_data("sft", preparation.tokenizer(run / "tokenizer")).train
    gradients, targets = gradients_of_rows(directory.root / "checkpoints" / "last" / "model", data)
    mean = gradients.sum(0) / targets.sum()
    spread = ((gradients - targets[:, None] * mean) ** 2).sum(1) / targets.mean() ** 2  # |ḡ_row − G|²
    trace = targets.mean() * spread.sum() / (len(targets) - 1)
    signal = (mean**2).sum() - trace / targets.sum()
    low, high = found.interval
    assert high is not None and 0.7 * low <= trace / signal <= 1.4 * high
