"""The recipes of paired runs: a stage alone, with what it needs of the stages before it."""

from pathlib import Path

import yaml

from fledge.doctor.prove_recipes import ProofRecipes
from fledge.recipe.sections.policy import PolicySettings


def test_paired_runs_are_judged_by_the_reward_model_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    grpo = {"data": {"train": "q.jsonl"}, "rewards": [{"model": "reward"}], "init_from": str(tmp_path / "start")}
    stages = {"sft": {"data": {"train": "c.jsonl"}}, "reward": {"data": {"train": "p.jsonl"}}, "grpo": grpo}
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    recipe = ProofRecipes.of(run, "grpo").whole({})
    stage = recipe.stages["grpo"]
    assert list(recipe.stages) == ["grpo"] and isinstance(stage, PolicySettings)
    assert [one.model for one in stage.rewards] == [str(run / "reward")]
