"""A config.json with wrong values is an error that names the key: never a traceback, and no memory is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.model.hf_config import read_config
from fledge.model.loading import load_model
from tests.support.decoders import make_decoder

BAD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "64", "default", [], [1],
    ["x"], [[]], {}, {"a": 1}, {"rope_type": "yarn"}, {"type": "yarn"}, {"rope_theta": "x"}, {"moe": 3}, {"dropout": "x"},
]  # fmt: skip
ROPES: list[Any] = [
    {"type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **{key: value}}
    for kind in ("linear", "llama3", "yarn")
    for key in ("factor", "low_freq_factor", "original_max_position_embeddings", "beta_slow", "mscale", "truncate")
    for value in (None, 0, -1, 1e300, 10**400, "x", [1], {"a": 1})
]
EXTRA = (
    "rope_scaling",
    "layer_types",
    "num_experts",
    "moe_intermediate_size",
    "use_sliding_window",
    "quantization_config",
    "head_dim",
    "no_rope_layers",
    "sliding_window",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that this package wrote."""
    folder = tmp_path_factory.mktemp("model")
    make_decoder().save_pretrained(folder, bos=None, eos=[1], pad=0)
    return folder


def test_no_value_of_any_key_is_a_traceback_or_more_memory_than_the_weights(model: Path) -> None:
    path = model / "config.json"
    original = path.read_text()
    refused = 0
    try:
        for key in (*json.loads(original), *EXTRA):
            for value in (*BAD, *(ROPES if "rope" in key else ROPES[::29]), "left out"):
                changed = {**json.loads(original), key: value}
                if value == "left out":
                    del changed[key]
                path.write_text(json.dumps(changed))
                try:
                    load_model(model, "native")
                except FledgeError as error:
                    refused += 1
                    assert str(model) in str(error.where)
    finally:
        path.write_text(original)
    assert refused > 300
    load_model(model, "native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "64"}, r"hidden_size must be a whole number above zero \(it is '64'\)"),
        ({"num_hidden_layers": 9_000}, r"describes .* parameters, more than the .* bytes of weights can hold"),
        ({"vocab_size": 2**40}, "vocab_size is larger than any model has"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope_type = longrope"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, r"rope_scaling.factor must be a number \(it is '4'\)"),
        ({"rope_scaling": {"type": ["yarn"], "factor": 4.0}}, r"rope_scaling.type must be a text"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "rope_theta": 1.0}}, "rope_theta 1.0 is not more than 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": -1}}, "beta_fast: .*greater than 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of texts"),
        ({"hidden_size": None}, "the key 'hidden_size' is missing"),
    ],
)
def test_the_key_is_named(model: Path, change: dict[str, Any], message: str) -> None:
    path = model / "config.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(original), **change}))
        with pytest.raises(FledgeError, match=message):
            load_model(model, "native")
    finally:
        path.write_text(original)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ufeff{}", '{"a":' * 5000, "null", "\x00"])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(FledgeError) as caught:
        read_config(tmp_path)
    assert "config.json" in str(caught.value.where)
