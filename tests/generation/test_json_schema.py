"""Answers that follow a JSON schema, whatever the model would have said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError
from fledge.generation import Engine, SamplingParams
from fledge.generation.json_schema import JsonSchema, only_allowed
from fledge.model.decoder import Decoder
from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support.decoders import make_decoder

pytest.importorskip("llguidance", reason="answers by a JSON schema need the extra eval")
jsonschema = pytest.importorskip("jsonschema", reason="schemas are checked with the extra eval")

NAMES = {
    "type": "object",
    "properties": {"vehicle": {"enum": ["Taxi", "出租车", None]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["vehicle", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 320 tokens."""
    return train_tokenizer(['{"vehicle":"Taxi","count":12} {"vehicle":"出租车"}'] * 20, 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    """A model that has learned nothing, with more rows than the tokenizer has tokens."""
    return make_decoder(vocab=tokenizer.vocab_size + 9, max_position_embeddings=256)


@settings(deadline=None, max_examples=15)
@given(temperature=st.sampled_from([0.0, 1.0, 3.0]), seed=st.integers(0, 2**31), penalty=st.sampled_from([1.0, 1.5]))
def test_an_answer_ends_and_is_valid(
    tokenizer: Tokenizer, model: Decoder, temperature: float, seed: int, penalty: float
) -> None:
    schema = JsonSchema(NAMES, tokenizer)
    params = SamplingParams(
        json_schema=schema, temperature=temperature, seed=seed, repetition_penalty=penalty, max_new_tokens=200
    )
    (completion,) = Engine(model, tokenizer.stop_ids).generate([[1, 2, 3]], params)
    assert completion.finish_reason == "stop"  # the schema has no text of any length
    jsonschema.validate(json.loads(tokenizer.decode(completion.tokens)), NAMES)


def test_other_requests_of_the_batch_are_answered_as_they_are_alone(tokenizer: Tokenizer, model: Decoder) -> None:
    free, bound = SamplingParams(max_new_tokens=20), SamplingParams(max_new_tokens=60, json_schema=JsonSchema(NAMES, tokenizer))
    engine = Engine(model, tokenizer.stop_ids)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8]]
    together = engine.generate(prompts, [free, bound, bound])
    assert together[0].tokens == engine.generate(prompts[:1], free)[0].tokens
    assert together[1].tokens == engine.generate(prompts[1:2], bound)[0].tokens
    assert tokenizer.decode(together[1].tokens).startswith("{") and tokenizer.decode(together[2].tokens).startswith("{")


def test_a_stop_token_that_looks_like_text_does_not_end_a_string() -> None:
    own = train_tokenizer(['{"a":"Taxi"}'] * 20, 300)
    own.core.add_tokens([AddedToken("[STOP]", special=False)])
    own = Tokenizer(own.core, own.template, bos=own.bos, eos=own.eos, pad=own.pad_text, stop_tokens=["[STOP]"])
    stop = own.core.token_to_id("[STOP]")
    matcher = JsonSchema({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, own).matcher()
    for token in own.encode('{"a":"x"'):
        assert not matcher.allowed()[stop]
        matcher.accept(token)
    for token in own.encode("}"):
        matcher.accept(token)
    assert matcher.allowed()[stop]


def test_blanks_between_parts_do_not_repeat(tokenizer: Tokenizer) -> None:
    matcher, blank = JsonSchema(NAMES, tokenizer).matcher(), tokenizer.encode(" ")[0]
    for token in tokenizer.encode("{"):
        matcher.accept(token)
    assert matcher.allowed()[blank]
    matcher.accept(blank)
    assert not matcher.allowed()[blank]


def test_a_tokenizer_that_the_library_does_not_know_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    core = Core(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("</s>", -2.0)], 0, False))
    core.decoder = decoders.Metaspace()
    own = Tokenizer(core, tokenizer.template, bos=None, eos="</s>", pad="</s>")
    with pytest.raises(FledgeError, match="json_schema: llguidance cannot follow a schema with this model's tokenizer"):
        JsonSchema(NAMES, own)


def test_log_probabilities_stay_those_of_the_model(tokenizer: Tokenizer, model: Decoder) -> None:
    params = SamplingParams(max_new_tokens=8, logprobs=True, json_schema=JsonSchema(NAMES, tokenizer))
    (completion,) = Engine(model, tokenizer.stop_ids).generate([[1, 2, 3]], params)
    hidden = model(torch.tensor([[1, 2, 3, *completion.tokens]]))
    expected = model.logits(hidden)[0, 2:-1].log_softmax(-1).gather(-1, torch.tensor(completion.tokens)[:, None])[:, 0]
    assert completion.logprobs is not None
    torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_only_allowed_tokens_keep_their_logits_and_rows_without_a_token_lose_theirs(tokenizer: Tokenizer) -> None:
    matcher = JsonSchema(NAMES, tokenizer).matcher()
    logits = torch.zeros(2, tokenizer.vocab_size + 9)
    masked = only_allowed(logits, {1: matcher})
    assert torch.equal(masked[0], logits[0])
    kept = [tokenizer.decode([number]).strip() for number in range(masked.shape[1]) if masked[1, number] == 0]
    assert "{" in kept and all(text.startswith("{") for text in kept if text)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"type": "object", "not": {"required": ["a"]}}, 'Unimplemented keys: \\["not"\\]'),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(schema: dict[str, Any], message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(FledgeError, match=f"json_schema: this schema cannot be followed: .*{message}"):
        JsonSchema(schema, tokenizer)
