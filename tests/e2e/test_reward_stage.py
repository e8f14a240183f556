"""A reward model from a command to its use: it learns, resumes exactly, rewards a grpo stage, and chooses among answers."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledge import load_reward_model
from fledge.cli import main
from fledge.errors import FledgeError
from fledge.evaluate.best_of import BestOf
from fledge.evaluate.rewards import build_rewards
from fledge.export import export_model
from fledge.forecast.planning import dry_run
from fledge.generation import SamplingParams, load_engine
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.recipe.sections.rewards import RewardConfig
from fledge.report import write_report
from fledge.run import Console
from fledge.tokenizer import Message
from tests.e2e.test_processes import assert_same_losses
from tests.support import small_runs, tiny_run
from tests.support.killing import run_until_killed
from tests.support.ranks import run_ranks, run_recipe
from tests.support.reward_runs import chain, conversation, model_of, run, tree
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)


def test_a_reward_model_learns_which_answers_are_better_and_reports_it(trained: Path) -> None:
    before, after = (json.loads((trained / "reward" / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["loss"] == pytest.approx(math.log(2), abs=0.4)
    assert after["loss"] < 0.5 * before["loss"] and after["rewards/accuracies"] == 1.0 and after["pairs"] > 5
    assert after["length_baseline"] >= 0.5 and after["rewards/chosen_std"] >= 0 and after["samples"] == []
    steps = events(trained, "reward", "step")
    assert {"train/rewards/margins", "train/rewards/rejected_std", "train/rewards/accuracies_longer"} <= steps[-1].keys()
    assert "train/perplexity" not in steps[-1]
    model = load_reward_model(trained)
    good, bad = model.score([conversation(small_runs.KNOWN_ANSWER), conversation("It is box 7.")])
    assert good > bad + 1
    page = write_report(trained).read_text(encoding="utf-8")
    assert "reward model" in page and "奖励模型" in page and "nats/pair" in page
    assert json.loads((trained / "reward" / "plan.json").read_text())["loss_unit"] == "nats/pair"


def test_transformers_gives_the_rewards_of_what_a_run_has_written(trained: Path) -> None:
    import transformers

    folder = model_of(trained)
    ours, theirs = load_reward_model(folder), transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [conversation(answer) for answer in (small_runs.KNOWN_ANSWER, "It is box 7.", "No")]
    rendered = [tokenizer.apply_chat_template(text, tokenize=False).rstrip() for text in texts]
    batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    assert tokenizer.pad_token_id == theirs.config.pad_token_id
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        scores = theirs.eval()(**batch).logits[:, 0].tolist()
    assert ours.score(texts) == pytest.approx(scores, abs=1e-4)
    assert ours.score(texts)[2] == pytest.approx(ours.score(texts[2:])[0], abs=1e-5)


VARIANTS: dict[str, dict[str, Any]] = {
    "weights": {},
    "adapter": {"adapter": {"r": 2, "lora_dropout": 0.3}, "optimizer": {"learning_rate": 1e-2}},
    "averaged": {"ema": {"decay": 0.9}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_resumes_bit_for_bit(variant: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tree(start, tmp_path / "whole", **VARIANTS[variant]))
    killed = recipe_from_dict(tree(start, tmp_path / "killed", **VARIANTS[variant]))
    run_until_killed(killed, 5, monkeypatch)
    assert final_results(Pipeline(killed, QUIET).run(resume=True), ("reward",)) == final_results(whole, ("reward",))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(start: Path, tmp_path: Path) -> None:
    changes = {"batch": {"micro_batch_size": 1, "gradient_accumulation_steps": 5}, "duration": "4 steps"}
    one, two = (tree(start, tmp_path / name, **changes) for name in ("one", "two"))
    run(one)
    run_ranks(2, run_recipe, two)
    runs = [tmp_path / name / "small" for name in ("one", "two")]
    assert_same_losses(*runs, ("reward",))
    for alone, shared in zip(*(events(folder, "reward", "step") for folder in runs), strict=True):
        for name in ("rewards/chosen", "rewards/chosen_std", "length_baseline", "rewards/accuracies"):
            assert alone[f"train/{name}"] == pytest.approx(shared[f"train/{name}"], rel=1e-3, abs=1e-5), name


def test_an_adapter_trains_the_head_with_it_and_nothing_else(start: Path, tmp_path: Path) -> None:
    folder = model_of(run(tree(start, tmp_path, **VARIANTS["adapter"])))
    tensors = load_file(folder / "adapter_model.safetensors")
    assert "base_model.model.score.weight" in tensors and all("lora" in name or "score" in name for name in tensors)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert len(load_reward_model(folder).score([conversation("a"), conversation("b")])) == 2


def test_a_stage_goes_on_with_a_reward_model_and_its_head(start: Path, trained: Path, tmp_path: Path) -> None:
    first = load_file(model_of(trained) / "model.safetensors")["score.weight"]
    folder = run(tree(start, tmp_path, init_from=str(model_of(trained)), duration="1 steps", optimizer={"learning_rate": 1e-9}))
    torch.testing.assert_close(load_file(model_of(folder) / "model.safetensors")["score.weight"], first, atol=1e-6, rtol=0)
    before = json.loads((folder / "reward" / "eval" / "before.json").read_text())
    assert before["rewards/accuracies"] == 1.0


# -- a reward of a grpo stage ---------------------------------------------------------------------------------------------


def test_a_recipe_trains_a_reward_model_and_then_on_its_rewards_and_resumes_bit_for_bit(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(chain(start, tmp_path / "whole"))
    assert json.loads((whole / "grpo" / "start.json").read_text())["source"] == str(start / "model")
    first = events(whole, "grpo", "step")[0]
    assert first["train/reward"] == pytest.approx(first["train/rewards/model/mean"]) and first["train/reward_std"] > 0
    assert set(json.loads((whole / "grpo" / "reward_models.json").read_text())) == {"model"}
    killed = recipe_from_dict(chain(start, tmp_path / "killed"))
    run_until_killed(killed, 9, monkeypatch)
    stages = ("reward", "grpo")
    assert final_results(Pipeline(killed, QUIET).run(resume=True), stages) == final_results(whole, stages)


def test_a_reward_model_that_has_changed_since_a_stage_began_is_refused(
    start: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_of(trained), tmp_path / "judge")
    values = chain(start, tmp_path / "runs", rewards=[{"model": str(tmp_path / "judge"), "name": "judge"}])
    values["stages"].pop("reward")
    recipe = recipe_from_dict(values)
    run_until_killed(recipe, 3, monkeypatch)
    weights = load_file(tmp_path / "judge" / "model.safetensors")
    save_file(
        {**weights, "score.weight": 2 * weights["score.weight"]}, tmp_path / "judge" / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(FledgeError, match="the reward model of 'judge' has other weights than when this stage began"):
        Pipeline(recipe, QUIET).run(resume=True)


def test_rewards_by_what_is_no_reward_model_of_the_run_are_refused(start: Path, trained: Path, tmp_path: Path) -> None:
    values = chain(start, tmp_path, rewards=[{"model": str(start / "model")}])
    values["stages"].pop("reward")
    with pytest.raises(FledgeError, match="this is a language model and no reward model"):
        run(values)
    other = tmp_path / "other"
    small_runs.write_rows(tmp_path)
    small_runs.train(
        other, {"kind": "reward", "data": {"train": str(tmp_path / "pairs.jsonl")}, "duration": "1 steps"},
        tokenizer={"vocab_size": 330}, model=small_runs.MODEL,
    )  # fmt: skip
    values["stages"]["grpo"]["rewards"] = [{"model": str(other / "small")}]
    with pytest.raises(FledgeError, match="has another tokenizer or chat template than the run") as caught:
        run(values)
    assert caught.value.where == "stages.grpo.rewards.model.model"
    with pytest.raises(FledgeError, match="here are texts alone"):
        build_rewards([RewardConfig(rule="model", model=str(trained))], 5.0)


def test_a_reward_model_writes_nothing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", str(trained), "Hello"], ["chat", str(trained)], ["export", str(trained), "--to", "gguf"]):
        assert main(command) == 2
        assert "this is a reward model: it gives a number for an answer, and writes none" in capsys.readouterr().err
    with pytest.raises(FledgeError, match="this is a reward model"):
        export_model(str(trained), to="hf", weight_type=None, out=str(tmp_path / "out"), log=lambda text: None)
    with pytest.raises(FledgeError, match="this is a reward model"):
        load_engine(model_of(trained))


def test_a_run_that_ends_with_a_reward_model_says_how_to_use_it(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_run.write(tmp_path / "r.yaml", tree(start, tmp_path / "runs", duration="1 steps"))
    assert main(["train", str(recipe), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert f"--best-of 8 --reward-model {tmp_path / 'runs' / 'small'}" in shown and "fledge chat" not in shown


def test_a_model_that_transformers_computes_is_refused_before_anything_is_trained(start: Path, tmp_path: Path) -> None:
    values = {**tree(start, tmp_path), "model": {"path": str(start / "model"), "implementation": "transformers"}}
    values["stages"]["reward"].pop("init_from")
    with pytest.raises(FledgeError, match="a reward model needs fledge's own decoder") as caught:
        dry_run(recipe_from_dict(values), QUIET)
    assert caught.value.where == "stages.reward.kind"


def test_an_sft_stage_does_not_start_from_a_reward_model(start: Path, trained: Path, tmp_path: Path) -> None:
    stage = {"kind": "sft", "init_from": str(model_of(trained)), "data": {"train": str(start / "known.jsonl")}}
    with pytest.raises(FledgeError, match="this is a reward model"):
        small_runs.train(tmp_path, stage)


# -- best-of-N ------------------------------------------------------------------------------------------------------------


def test_the_best_of_several_answers_is_the_one_with_the_highest_reward(
    start: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores that are printed are those of the first draws, and of the draws that the reward model gives most."""
    rows = [small_runs.dialogue(f"Hello number {n}!", small_runs.KNOWN_ANSWER) for n in range(12)]
    small_runs.write_jsonl(tmp_path / "test.jsonl", rows)
    command = ["score", str(tmp_path / "test.jsonl"), str(start / "model"), "--max-new-tokens", "14", "--temperature", "0.9"]
    best_of = ["--best-of", "5", "--reward-model", str(trained), "--seed", "4", "--json"]
    assert main([*command, *best_of]) == 0
    scores = json.loads(capsys.readouterr().out)["models"]
    one, best = (scores[f"{start / 'model'}, {name}"] for name in ("one sample", "best of 5"))
    loaded, judge = load_engine(start / "model"), load_reward_model(trained)
    params = SamplingParams(max_new_tokens=14, temperature=0.9, seed=4)
    questions = [([Message("user", f"Hello number {n}!")], None) for n in range(12)]
    ranked = BestOf(5, judge, params).answer(loaded.engine, loaded.tokenizer, questions, [str(n) for n in range(12)])
    chosen = []
    for number, answers in enumerate(ranked):
        rewards = judge.score([conversation(text, f"Hello number {number}!") for text in answers.texts])
        assert rewards == pytest.approx(list(answers.rewards), abs=1e-5)
        ended = [reason == "stop" for reason in answers.finish_reasons]
        kept = [reward for reward, is_ended in zip(rewards, ended, strict=True) if is_ended or not any(ended)]
        chosen.append(answers.texts[rewards.index(max(kept))])
    assert len({text for answers in ranked for text in answers.texts}) > 12
    first = sum(answers.texts[0].strip() == small_runs.KNOWN_ANSWER for answers in ranked)
    assert one["exact_match"]["value"] == pytest.approx(first / 12)
    assert best["exact_match"]["value"] == pytest.approx(sum(text.strip() == small_runs.KNOWN_ANSWER for text in chosen) / 12)
    some = sum(small_runs.KNOWN_ANSWER in map(str.strip, answers.texts) for answers in ranked)
    assert best["any_right"]["value"] == pytest.approx(some / 12)
    difference = best["exact_match_difference"]
    assert difference["value"] == pytest.approx(best["exact_match"]["value"] - one["exact_match"]["value"])
    assert main([*command, *best_of[:-1]]) == 0
    shown = capsys.readouterr().out
    assert "best of 5" in shown and "some answer of all that were drawn is right" in shown


def test_each_model_is_compared_with_its_own_samples_and_long_draws_are_counted(
    start: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [small_runs.dialogue(f"Hello number {n}!", small_runs.KNOWN_ANSWER) for n in range(6)]
    small_runs.write_jsonl(tmp_path / "test.jsonl", rows)
    names = [str(start / "model"), str((start / "model").resolve())]
    command = ["score", str(tmp_path / "test.jsonl"), *names, "--max-new-tokens", "99"]
    best_of = ["--best-of", "4", "--reward-model", str(trained), "--seed", "4"]
    assert main([*command, *best_of, "--temperature", "1.3", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["models"]
    to = {name: scores[name].get("exact_match_difference", {}).get("to") for name in scores}
    assert to == {
        f"{names[0]}, one sample": None,
        f"{names[0]}, best of 4": f"{names[0]}, one sample",
        f"{names[1]}, one sample": f"{names[0]}, one sample",
        f"{names[1]}, best of 4": f"{names[1]}, one sample",
    }
    best = scores[f"{names[0]}, best of 4"]
    assert 0 < best["too_long_draws"] <= round(24 * best["cut_draws"]["value"]) < 24 == best["cut_draws"]["draws"]
    assert main([*command, *best_of, "--temperature", "40"]) == 2
    error = capsys.readouterr().err
    assert "test.jsonl:1: all 4 answers are too long for the reward model, which has 64 positions" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward-model", "{}"], "--reward-model: it belongs to --best-of"),
        (["--best-of", "4"], "--best-of: a reward model chooses the answer"),
        (["--best-of", "1", "--reward-model", "{}"], "--best-of: best of 1 leaves nothing to choose from"),
        (["--best-of", "4", "--reward-model", "{}", "--temperature", "0"], "--temperature: at temperature 0 all answers"),
    ],
)
def test_options_of_best_of_that_make_no_sense_are_refused(
    options: list[str], message: str, start: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(start / "known.jsonl"), str(start / "model"), *(option.format(trained) for option in options)]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_conversations_that_cannot_be_scored_are_refused_with_their_number(trained: Path) -> None:
    model = load_reward_model(trained)
    with pytest.raises(FledgeError, match="it ends with the turn of user") as caught:
        model.score([conversation("a"), conversation("a")[:1]])
    assert caught.value.where == "conversation 2"
    with pytest.raises(FledgeError, match="the reward model has 64 positions") as caught:
        model.score([conversation("a"), conversation("word " * 99)])
    assert caught.value.where == "sequence 2"
    assert model.score([]) == []
