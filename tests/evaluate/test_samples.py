"""Samples: greedy answers to the recipe's prompts, and an error that names a prompt without room for an answer."""

import pytest

from fledge.evaluate.samples import sample
from fledge.generation import PromptTooLongError, SamplingParams
from fledge.model.decoder import Decoder
from fledge.recipe import ModelConfig
from fledge.recipe.schema import GenerationSamplesConfig
from fledge.tokenizer import Message, Tokenizer, train_tokenizer
from tests.support.generating import generate

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}
CONFIG = GenerationSamplesConfig(prompts=["What is a cat?", "A dog?"], texts=["A cat is", "Dogs"], max_new_tokens=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tiny tokenizer."""
    return train_tokenizer(["A cat is an animal. What is a dog? Dogs are animals."] * 20, 300)


def _model(tokenizer: Tokenizer, room: int) -> Decoder:
    model = Decoder(ModelConfig.model_validate({**SIZES, "max_position_embeddings": room}), tokenizer.vocab_size)
    model.init_weights(0)
    return model


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_samples_are_the_greedy_answers_in_the_order_of_the_recipe(tokenizer: Tokenizer, kind: str) -> None:
    model = _model(tokenizer, 100)
    prompts = CONFIG.texts if kind == "pretrain" else CONFIG.prompts
    samples = sample(model, tokenizer, CONFIG, kind)
    assert [one.prompt for one in samples] == prompts
    for text, one in zip(prompts, samples, strict=True):
        prompt = tokenizer.encode_prefix(text) if kind == "pretrain" else tokenizer.encode_prompt([Message("user", text)])
        (alone,) = generate(model, [prompt], tokenizer.stop_ids, SamplingParams(max_new_tokens=5))
        assert (one.answer, one.finish_reason) == (tokenizer.decode(alone.tokens, skip_special=True), alone.finish_reason)
        assert one.as_dict() == {"prompt": text, "answer": one.answer, "finish_reason": one.finish_reason}


@pytest.mark.parametrize(
    ("kind", "location"), [("pretrain", "generation_samples.texts, number 1"), ("sft", "generation_samples.prompts, number 1")]
)
def test_a_prompt_without_room_for_an_answer_is_named(tokenizer: Tokenizer, kind: str, location: str) -> None:
    with pytest.raises(PromptTooLongError, match=f"{location}: it has .* tokens, .* the model has 2 positions"):
        sample(_model(tokenizer, 2), tokenizer, CONFIG, kind)


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_recipe_without_prompts_gives_no_samples(tokenizer: Tokenizer, kind: str) -> None:
    assert sample(_model(tokenizer, 100), tokenizer, GenerationSamplesConfig(), kind) == []
