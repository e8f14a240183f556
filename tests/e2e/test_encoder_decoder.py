"""A tiny T5 from a configuration passes through complete runs: sft and dpo, killed and resumed, chat, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import fledge
from fledge.cli import main
from fledge.errors import FledgeError
from fledge.export import export_model
from fledge.model.adapter_files import write_adapter
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from fledge.tokenizer import load_tokenizer
from tests.support import tiny_run
from tests.support.adapters import adapted_model
from tests.support.encoder_decoders import write_config
from tests.support.killing import run_until_killed
from tests.support.run_directory import final_results

QUIET = Console(quiet=True)


def tree(world: Path, output: Path, config: Path, stages: tuple[str, ...] = ("sft", "dpo"), **more: Any) -> dict[str, Any]:
    """A recipe for a T5 with new weights: the stages of the tiny run, with Adafactor and one cycle."""
    values = tiny_run.tree(world, output)
    values |= {"model": {"config": str(config)}, "runtime": {"threads": 1, "precision": "fp32"}}
    learning = {
        "optimizer": {"name": "adafactor", "learning_rate": 1e-2},
        "schedule": {"name": "onecycle", "warmup": 0.25, "div_factor": 25},
    }
    values["stages"] = {name: {**values["stages"][name], **learning, **more} for name in stages}
    return values


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the rows, and that of the configuration."""
    folder = tmp_path_factory.mktemp("t5")
    return folder / "world", write_config(folder / "config", num_decoder_layers=2, vocab_size=7)


@pytest.fixture(scope="module")
def finished(places: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    world, config = places
    return Pipeline(recipe_from_dict(tree(world, tmp_path_factory.mktemp("runs"), config)), QUIET).run()


def test_both_stages_learn(finished: Path) -> None:
    for stage, before in (("sft", None), ("dpo", 0.6931)):
        saved = [json.loads((finished / stage / "eval" / f"{name}.json").read_text()) for name in ("before", "after")]
        assert saved[1]["loss"] < saved[0]["loss"]
        assert before is None or saved[0]["loss"] == pytest.approx(before, abs=1e-3)
        assert all(one["samples"][0]["finish_reason"] in ("stop", "length") for one in saved)


def test_a_killed_run_resumes_byte_for_byte(
    finished: Path, places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from_dict(tree(places[0], tmp_path, places[1]))
    for update in (6, 6):  # in the sft stage, then in the dpo stage
        run_until_killed(recipe, update, monkeypatch)
    resumed = Pipeline(recipe, QUIET).run(resume=True)
    stages = ("sft", "dpo")
    assert final_results(resumed, stages) == final_results(finished, stages)


def test_fledge_chat_and_transformers_load_the_result(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = fledge.load(finished)
    answer = model.chat("你是谁？", max_new_tokens=6)
    assert model.generate("你是谁？", max_new_tokens=6) == answer
    assert "".join(model.stream("你是谁？", max_new_tokens=6)) == answer
    assert main(["generate", str(finished), "你是谁？", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out.strip() == answer.strip()
    with pytest.raises(FledgeError, match="a text alone"):
        model.score("你是谁？")
    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(model.path).eval(), AutoTokenizer.from_pretrained(model.path)
    with torch.no_grad():
        ids = theirs.generate(**tokenizer("你是谁？", return_tensors="pt"), max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == answer


def test_an_encoder_decoder_is_exported_and_compared_whole_merged_and_as_an_adapter(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = fledge.load(finished).path
    adapted = adapted_model(base, target_modules=["q", "v", "wo"], r=2)
    write_adapter(tmp_path / "adapter", adapted)
    load_tokenizer(base).save(tmp_path / "adapter")
    for target, model in (("hf", finished), ("merged", tmp_path / "adapter"), ("adapter", tmp_path / "adapter")):
        _, lines = export_model(
            str(model), to=target, weight_type=None, out=str(tmp_path / f"{target}-out"), log=lambda text: None
        )
        text = "\n".join(lines)
        assert "against fledge from the same files, log-probabilities in nats: mean 0.0000" in text
        assert "of 0 tokens" not in text and ("1 conversations" in text or target == "adapter")
    theirs, before = (AutoModelForSeq2SeqLM.from_pretrained(path).eval() for path in (tmp_path / "merged-out", base))
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "decoder_input_ids": torch.tensor([[0, 8, 9]])}
    assert "pipeline_tag: text2text-generation" in (tmp_path / "hf-out" / "README.md").read_text()
    assert (theirs(**inputs).logits - before(**inputs).logits).abs().max() > 1e-3
    assert main(["export", str(finished), "--to", "gguf", "--out", str(tmp_path / "gguf")]) == 2
    assert "T5ForConditionalGeneration: this architecture is not exported to GGUF" in capsys.readouterr().err


def test_what_a_run_refuses(finished: Path, places: tuple[Path, Path], tmp_path: Path) -> None:
    world, config = places

    def refused(**changes: Any) -> str:
        values = tree(world, tmp_path, config, **{"stages": ("sft",), **changes.pop("tree", {})})
        for section, value in changes.items():
            values[section] = {**values.get(section, {}), **value}
        with pytest.raises(FledgeError) as caught:
            Pipeline(recipe_from_dict(values), QUIET).run()
        return caught.value.text()

    assert "span corruption of T5's pretraining is not supported" in refused(tree={"stages": ("pretrain",)})
    assert "is an encoder–decoder, and the chat template chatml" in refused(tokenizer={"template": "chatml"})
    assert "is not compiled" in refused(runtime={"compile": True})
    assert "has its own sizes; the recipe also sets hidden_size" in refused(model={"hidden_size": 64})
    assert "decodes only, and the chat template seq2seq" in refused(
        model={"config": None, **tiny_run.MODEL, "dropout": 0.0}, tokenizer={"template": "seq2seq"}
    )
    with pytest.raises(Exception, match="path and config both give the model"):
        recipe_from_dict({**tree(world, tmp_path, config), "model": {"config": str(config), "path": str(finished)}})


def test_an_adapter_trains_a_share_of_an_encoder_decoder(finished: Path, places: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = {"r": 4, "target_modules": ["q", "v"]}
    adamw = {"name": "adamw", "learning_rate": 2e-2}
    values = tree(places[0], tmp_path, places[1], ("sft",), adapter=adapter, optimizer=adamw)
    start = fledge.load(finished / "sft").path
    values |= {"model": {"path": str(start)}, "tokenizer": {"path": str(start)}}
    values["runtime"]["precision"] = "bf16"
    run = Pipeline(recipe_from_dict(values), QUIET).run()
    saved = [json.loads((run / "sft" / "eval" / f"{name}.json").read_text())["loss"] for name in ("before", "after")]
    assert saved[1] < saved[0]
    assert isinstance(fledge.load(run).chat("你是谁？", max_new_tokens=4), str)
