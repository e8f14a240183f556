"""Best-of-N: which of several answers is chosen, and what happens to answers that are cut or too long."""

import math
import random
from pathlib import Path

from fledge.evaluate.best_of import RankedAnswers
from fledge.generation import RewardModel
from fledge.tokenizer import Tokenizer
from tests.support.decoders import make_decoder


def test_the_best_answer_is_one_that_ended_and_could_be_read() -> None:
    texts = ("a", "b", "c", "d")
    ended = RankedAnswers(texts, (9.0, 1.0, 3.0, 3.0), ("length", "stop", "stop", "stop"))
    assert (ended.best, ended.cut, ended.too_long) == (2, 1, 0)
    assert RankedAnswers(texts, (1.0, 9.0, 3.0, 3.0), ("length",) * 4).best == 1
    unread = RankedAnswers(texts, (-math.inf, -7.0, -math.inf, -8.0), ("stop", "length", "stop", "length"))
    assert (unread.best, unread.cut, unread.too_long) == (1, 2, 2)


def test_equal_answers_have_equal_rewards_whatever_else_is_scored_with_them(chatml: Tokenizer) -> None:
    """In batches of other sizes the last bits are others, and a group of equal answers would not be found to be equal."""
    model = make_decoder(1, hidden_size=128, intermediate_size=344, max_position_embeddings=256)
    model.become_reward_model(3)
    judge, draw = RewardModel(model, chatml, Path(__file__), pad=0), random.Random(1)
    same = [draw.randrange(1, 90) for _ in range(60)]
    for _ in range(4):
        lengths = [draw.randrange(20, 200) for _ in range(8) for _ in range(7)]
        sequences = [[draw.randrange(1, 90) for _ in range(length)] for length in lengths]
        places = draw.sample(range(len(sequences)), 8)
        for place in places:
            sequences[place] = same
        rewards = judge.score_tokens(sequences)
        assert len({rewards[place] for place in places}) == 1
        assert len(set(rewards)) == len(sequences) - len(places) + 1
