"""Whether a pair's prompt is computed once: as the recipe says, where the model can; the plan says what was done and why."""

from pathlib import Path
from typing import Any

import pytest

from fledge.document_numbers import BRANCH
from fledge.plan.warnings import PlanError
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import recipe_from_dict
from tests.support import tiny_run
from tests.support.sources import jsonl

MODEL = {**tiny_run.MODEL, "max_position_embeddings": 128}
QUESTION = "Which bird keeps a red box by the lake and reads one letter every day?"


def prepared(folder: Path, kind: str = "preference", *, model: Any = MODEL, **stage: Any) -> PreparedStage:
    """A stage on 40 pairs with long questions."""
    rows = [{"prompt": f"{QUESTION}{n}", "chosen": f"It is number {n}.", "rejected": f"No {n}."} for n in range(40)]
    data = {"train": str(jsonl(folder / "pairs.jsonl", rows)), "validation": 0.2, "max_seq_len": 128}
    tree = {
        "name": "r",
        "output": str(folder),
        "tokenizer": {"vocab_size": 320},
        "model": model,
        "stages": {"s": {"kind": kind, "data": data, "batch": {"micro_batch_size": 2}, "duration": "3 steps", **stage}},
    }
    preparation = Preparation(recipe_from_dict(tree), lambda text: None)
    return preparation.prepare("s", preparation.tokenizer())


def shares(stage: PreparedStage) -> bool:
    """Whether rows of training and of validation have branches; both have them or none has."""
    assert stage.data.validation is not None
    found = {int(data.batch(0, 2).documents.max()) > BRANCH for data in (stage.data.train, stage.data.validation)}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_long_prompts_are_shared_and_the_plan_says_how_much_that_saves(kind: str, tmp_path: Path) -> None:
    shared, plain = prepared(tmp_path, kind=kind), prepared(tmp_path, kind=kind, share_prompts=False)
    assert shares(shared) and not shares(plain)
    saving = 1 - shared.data.train.num_tokens / plain.data.train.num_tokens
    assert saving > 0.3
    assert f"the prompt of a pair is computed once: {saving:.1%} fewer tokens" in shared.plan.notes[0]
    assert not any("prompt of a pair" in note for note in plain.plan.notes)
    assert shared.plan.rows < plain.plan.rows and shared.plan.target_tokens >= plain.plan.target_tokens


def test_pairs_whose_prompts_are_hardly_anything_are_left_as_they_are_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fledge.plan.prompt_sharing.MIN_SAVING", 0.9)
    automatic, asked = prepared(tmp_path), prepared(tmp_path, share_prompts=True)
    assert not shares(automatic) and "once would be only" in automatic.plan.notes[0]
    assert shares(asked)


def test_a_model_of_transformers_computes_each_prompt_twice_and_the_plan_says_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=128, vocab_size=400)
    config.save_pretrained(tmp_path / "gpt2")
    model = {"config": str(tmp_path / "gpt2")}
    stage = prepared(tmp_path, model=model)
    assert not shares(stage)
    assert "keeps documents apart by their positions alone" in stage.plan.notes[0]
    with pytest.raises(PlanError) as raised:
        prepared(tmp_path, model=model, share_prompts=True)
    assert raised.value.where == "stages.s.share_prompts" and "transformers" in raised.value.what
    assert "auto or false" in str(raised.value.hint)


@pytest.mark.parametrize("kind", ["kto", "sft"])
def test_a_stage_without_pairs_has_no_such_key(kind: str) -> None:
    stage = {"kind": kind, "data": {"train": "x"}, "share_prompts": True}
    with pytest.raises(Exception, match="share_prompts"):
        recipe_from_dict({"stages": {"s": stage}})
