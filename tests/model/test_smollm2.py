"""A published chat model, SmolLM2-135M-Instruct: loaded, talked to and exported."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fledge
from fledge.export import export_model
from fledge.export.comparison import TOKENISED
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.model.locate import locate_model
from fledge.tokenizer import load_tokenizer
from tests.support.smollm2 import smollm2

pytest.importorskip("gguf")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model as a directory, in a cache of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield locate_model(str(smollm2()))


@torch.no_grad()
def test_the_native_decoder_computes_the_logits_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file, model = smollm2(), load_model(folder)
    assert isinstance(model, Decoder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokens = torch.tensor([load_tokenizer(folder).encode("The capital of France is Paris. 小猫 and 1,234 apples 🙂.\n\n")])
    torch.testing.assert_close(model.eval().logits(model(tokens)), theirs.eval()(tokens).logits, atol=1e-4, rtol=1e-4)


def test_it_answers_a_simple_question(folder: Path) -> None:
    model = fledge.load(smollm2())
    assert model.path == folder and model.max_positions == 8192
    assert "Paris" in model.chat("What is the capital of France?", max_new_tokens=20)
    assert model.score("The sun rises in the east.").perplexity < 50


def test_every_text_comes_back_from_its_tokens(folder: Path) -> None:
    own = load_tokenizer(folder)
    assert own.encode("2024") == [own.core.token_to_id(digit) for digit in "2024"]  # digits one by one, as it was trained
    assert all(own.decode(own.encode(text)) == text for text in TOKENISED)
    assert own.stop_ids >= {own.core.token_to_id("<|im_end|>")} and own.vocab_size == 49_152


def test_its_export_computes_and_tokenises_in_llama_cpp_as_it_does(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    _, lines = export_model(str(folder), to="gguf", weight_type="f16", out=str(tmp_path / "out"), log=lambda text: None)
    assert lines[-1] == f"equal tokens in llama.cpp: {len(TOKENISED)} texts, 3 conversations"
