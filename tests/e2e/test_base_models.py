"""A published base model without chat tokens: texts are trained as they are, conversations make its embedding grow."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fledge.api.model import load
from fledge.cli import main
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.pipeline import Pipeline
from fledge.recipe import ModelConfig, recipe_from_dict
from fledge.run import Console
from fledge.tokenizer import load_tokenizer
from tests.support import tiny_run
from tests.tokenizer.test_base_models import byte_level, saved

QUIET = Console(quiet=True)
SIZES = {key: value for key, value in tiny_run.MODEL.items() if key != "dropout"}
CHAT = ("<|im_start|>", "<|im_end|>")
GENERATION = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [0]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The directory of a base model with a single control token and settings of generation."""
    folder = saved(tmp_path / "base", byte_level(["<|endoftext|>"]), eos_token="<|endoftext|>")
    model = Decoder(ModelConfig.model_validate(SIZES), load_tokenizer(folder, needs_template=False).vocab_size)
    model.init_weights(0)
    model.save_pretrained(folder, bos=None, eos=[0], pad=0)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION), encoding="utf-8")
    return folder


def train(tmp_path: Path, base: Path, stages: tuple[str, ...], implementation: str = "native", **changes: Any) -> Path:
    """Train a few steps of the tiny run from the base model; the run directory."""
    model = {"path": str(base), "implementation": implementation}
    values = tiny_run.tree(tmp_path / "world", tmp_path / "runs", model=model, generation_samples={}, **changes)
    values["runtime"]["attention"] = "sdpa"
    values["stages"] = {name: {**values["stages"][name], "duration": "2 steps"} for name in stages}
    for stage in values["stages"].values():
        stage["optimizer"] = {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
    return Pipeline(recipe_from_dict(values), QUIET).run()


def result(run: Path, stage: str) -> Path:
    """The model directory of a finished stage."""
    return run / stage / json.loads((run / stage / "result.json").read_text())["model"]


@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_conversations_grow_the_embedding_and_the_plan_names_the_tokens(
    tmp_path: Path, base: Path, implementation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, base, ("sft", "dpo"), implementation)
    size = load_model(base).vocab_size
    notes = [" ".join(json.loads((run / stage / "plan.json").read_text())["notes"]) for stage in ("sft", "dpo")]
    assert f"grow from {size:,} to {size + 2:,} tokens" in notes[0] and ", ".join(CHAT) in notes[0]
    assert "grow" not in notes[1]
    for stage in ("sft", "dpo"):
        folder = result(run, stage)
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        assert model.vocab_size == tokenizer.vocab_size == size + 2
        generation = json.loads((folder / "generation_config.json").read_text())
        assert (generation["temperature"], generation["top_p"]) == (0.6, 0.9)
        assert set(generation["eos_token_id"]) == {0, tokenizer.eot_id}
    theirs = AutoModelForCausalLM.from_pretrained(result(run, "dpo"), dtype=torch.float32)
    assert theirs.get_input_embeddings().num_embeddings == size + 2
    assert main(["generate", str(run), "hello", "--max-new-tokens", "3"]) == 0


def test_texts_need_no_chat_tokens(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, base, ("pretrain",))
    folder = result(run, "pretrain")
    assert load_model(folder).vocab_size == load_model(base).vocab_size
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(base, needs_template=False)
    assert theirs.encode("A cat") == ours.encode_prefix("A cat") == AutoTokenizer.from_pretrained(base).encode("A cat")
    assert main(["generate", str(folder), "A cat", "--raw", "--max-new-tokens", "3"]) == 0
    assert main(["generate", str(folder), "A cat"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    (tmp_path / "prompts.txt").write_text("A cat?\n", encoding="utf-8")
    assert main(["prefer", "sample", str(folder), str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "a.jsonl")]) == 2
    assert "has no chat template" in capsys.readouterr().err and not (tmp_path / "a.jsonl").exists()


def test_own_special_tokens_grow_the_embedding(tmp_path: Path, base: Path) -> None:
    run = train(tmp_path, base, ("pretrain",), tokenizer={"special_tokens": ["<think>", "</think>"]})
    model = load(result(run, "pretrain"))
    assert len(model.tokenizer.encode("<think></think>")) == 2
    assert len(model.score("<think>a").tokens) == 2


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    small = Decoder(ModelConfig.model_validate(SIZES), 300)
    small.init_weights(0)
    small.save_pretrained(base, bos=None, eos=[0], pad=0)
    assert config["vocab_size"] > 300
    with pytest.raises(FledgeError, match="it is not the model's own"):
        train(tmp_path, base, ("sft",))


def test_a_new_row_is_the_mean_of_the_others() -> None:
    for tied in (True, False):
        model = Decoder(ModelConfig.model_validate({**SIZES, "tie_word_embeddings": tied}), 20)
        model.init_weights(0)
        before = model.lm_head_weight.detach().clone()
        model.grow_vocabulary(23)
        assert model.cost.vocab_size == 23 and model.embed_tokens.weight.shape[0] == 23
        assert torch.equal(model.lm_head_weight[:20], before)
        assert torch.allclose(model.lm_head_weight[20:], before.mean(0).expand(3, -1))
        assert model.cost.parameters().total == sum(parameter.numel() for parameter in model.parameters())
