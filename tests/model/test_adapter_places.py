"""An adapter finds its base model after one of the two, or both, have moved; the hash of the weights decides."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.errors import FledgeError
from fledge.model.adapter_files import BASE, read_adapter_config, write_adapter
from fledge.model.adapters import merge_adapter
from fledge.model.loading import describe_model, load_model
from tests.support.adapters import adapted_model, logits, write_adapted
from tests.support.decoders import make_decoder, random_tokens

LORA = {"r": 2, "target_modules": ["q_proj", "o_proj"]}


def _base(folder: Path, seed: int = 0, **changes: Any) -> Path:
    make_decoder(seed, **changes).save_pretrained(folder, bos=1, eos=[2], pad=0)
    return folder


def _run(root: Path) -> Path:
    """A folder as a run has it: a base model in one stage, an adapter for it in another."""
    base = _base(root / "pretrain" / "checkpoints" / "step-4" / "model")
    return write_adapted(root / "sft" / "checkpoints" / "step-2" / "model", base, **LORA)


def test_a_run_that_was_moved_finds_its_base_inside_itself(tmp_path: Path) -> None:
    expected = logits(load_model(_run(tmp_path / "old")))
    shutil.move(tmp_path / "old", tmp_path / "elsewhere" / "new")
    adapter = tmp_path / "elsewhere" / "new" / "sft" / "checkpoints" / "step-2" / "model"
    moved = load_model(adapter)
    assert torch.equal(logits(moved), expected) and moved.adapter is not None
    assert moved.adapter.base is not None and moved.adapter.base.resolve().is_relative_to(tmp_path / "elsewhere")
    assert describe_model(adapter).cost.vocab_size == 97


def test_of_two_models_at_the_places_of_the_base_the_one_with_the_right_weights_is_taken(tmp_path: Path) -> None:
    expected = logits(load_model(_run(tmp_path / "old")))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    _base(tmp_path / "old" / "pretrain" / "checkpoints" / "step-4" / "model", seed=3)  # trained again since
    adapter = tmp_path / "new" / "sft" / "checkpoints" / "step-2" / "model"
    assert torch.equal(logits(load_model(adapter)), expected)
    _base(tmp_path / "new" / "pretrain" / "checkpoints" / "step-4" / "model", seed=4)
    with pytest.raises(FledgeError, match="trained on other weights than those in"):
        load_model(adapter)


def test_an_adapter_that_was_moved_alone_still_finds_its_base_and_so_does_one_of_an_earlier_version(tmp_path: Path) -> None:
    adapter = _run(tmp_path / "run")
    expected = logits(load_model(adapter))
    alone = shutil.copytree(adapter, tmp_path / "alone")
    assert torch.equal(logits(load_model(alone)), expected)
    record = json.loads((alone / BASE).read_text())
    (alone / BASE).write_text(json.dumps({"weights_hash": record["weights_hash"]}))
    assert torch.equal(logits(load_model(alone)), expected) and read_adapter_config(alone).base_hash == record["weights_hash"]
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FledgeError, match="the base model of this adapter is not there"):
        load_model(alone)


@pytest.mark.parametrize(
    "sizes", [{"attention_bias": "qkv"}, {"attention_bias": "qkvo", "head_dim": 16}, {"head_dim": 4, "qk_norm": True}]
)
@pytest.mark.parametrize("kind", [{"r": 3}, {"r": 3, "use_dora": True}, {"r": 2, "modules_to_save": ["q_proj"]}])
def test_biases_and_heads_of_any_size(tmp_path: Path, sizes: dict[str, Any], kind: dict[str, Any]) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = _base(tmp_path / "base", **sizes)
    model = adapted_model(base, **{"target_modules": ["k_proj", "o_proj", "up_proj"], **kind})
    expected = logits(model)
    assert (expected - logits(load_model(base))).abs().max() > 0.05

    write_adapter(tmp_path / "adapter", model)
    assert torch.equal(logits(load_model(tmp_path / "adapter")), expected)
    library = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(library, tmp_path / "adapter").train()  # else rows of DoRA have old lengths

    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(input_ids=random_tokens(2, 10)).logits, expected, atol=1e-5, rtol=1e-4)
    merge_adapter(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=0)
