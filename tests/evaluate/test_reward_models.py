"""Rewards by a model: what it reads of an answer, and how long it may take."""

from pathlib import Path

import pytest

from fledge.evaluate.rewards import ByModel, RewardContext, build_rewards
from fledge.generation import FinishReason, RewardModel
from fledge.recipe.sections.rewards import RewardConfig
from fledge.tokenizer import Tokenizer
from fledge.training.rollout import DrawnAnswer
from tests.support.decoders import make_decoder


@pytest.fixture
def judge(chatml: Tokenizer) -> RewardModel:
    """A reward model with new weights."""
    model = make_decoder(1, vocab=chatml.vocab_size)
    model.become_reward_model(3)
    return RewardModel(model, chatml, Path("judge"), pad=chatml.pad)


def drawn(tokens: list[int], finish_reason: FinishReason) -> DrawnAnswer:
    """An answer of these tokens to a prompt of three."""
    return DrawnAnswer(
        prompt="", completion="", answer="", prompt_tokens=[7, 8, 9], completion_tokens=tokens, finish_reason=finish_reason
    )


def test_an_answer_is_read_at_the_token_that_ends_a_turn_whichever_token_ended_it(
    judge: RewardModel, chatml: Tokenizer
) -> None:
    assert chatml.eos_id != chatml.eot_id and {chatml.eos_id, chatml.eot_id} <= chatml.stop_ids
    answers = [drawn([20, 21, chatml.eot_id], "stop"), drawn([20, 21, chatml.eos_id], "stop"), drawn([20, 21], "length")]
    first, other, cut = ByModel(judge, "")(answers)
    assert first == other != cut == judge.score_tokens([[7, 8, 9, 20, 21]])[0]


def test_a_reward_model_may_take_longer_than_a_function(judge: RewardModel, chatml: Tokenizer, tmp_path: Path) -> None:
    judge.model.save_pretrained(tmp_path, bos=None, eos=[chatml.eot_id], pad=chatml.pad)
    chatml.save(tmp_path)
    config = RewardConfig(rule="model", model=str(tmp_path))
    table = build_rewards([config], 1e-6, context=RewardContext(chatml))
    answers = [drawn([20 + n % 50] * 40, "length") for n in range(200)]
    assert table.score(answers).shape == (200, 1)
