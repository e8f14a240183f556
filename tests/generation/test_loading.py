"""Loading a model directory for generation."""

from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.generation import SamplingParams, load_engine
from fledge.tokenizer import train_tokenizer
from fledge.tokenizer.native_templates import CHATML
from tests.support import small_model


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error_that_names_both_numbers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a few words"] * 20, 300, CHATML)
    for vocab_size in (tokenizer.vocab_size, tokenizer.vocab_size - 1):
        small_model.model(vocab_size).save_pretrained(tmp_path / str(vocab_size), bos=None, eos=[0], pad=0)
        tokenizer.save(tmp_path / str(vocab_size))
    loaded = load_engine(tmp_path / str(tokenizer.vocab_size))
    assert loaded.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert len(loaded.engine.generate([[1]], SamplingParams(max_new_tokens=2))) == 1
    with pytest.raises(FledgeError, match="it has no rows for") as caught:
        load_engine(tmp_path / str(tokenizer.vocab_size - 1))
    assert f"{tokenizer.vocab_size - 1:,}" in caught.value.what and f"{tokenizer.vocab_size:,}" in caught.value.what
