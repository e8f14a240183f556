"""Answers of an encoder–decoder: those of transformers, whatever else is generated at the same time."""

from pathlib import Path

import pytest
import torch

from fledge.errors import FledgeError
from fledge.generation import Engine, SamplingParams, score_tokens
from fledge.model.loading import load_model
from tests.support.encoder_decoders import END, START, random_answers, write_encoder_decoder

PROMPTS = [[*source, START] for source, _ in random_answers([(3, 0), (11, 0), (1, 0), (7, 0), (19, 0), (5, 0), (0, 0), (2, 0)])]


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, slots: int) -> None:
    theirs = write_encoder_decoder(tmp_path, "t5 untied", num_decoder_layers=2)  # with more, the library's own cache fails
    params = SamplingParams(max_new_tokens=12, logprobs=True)
    model = load_model(tmp_path).eval()
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt[:-1]])
        expected.append(theirs.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=99)[0, 1:].tolist())
    stops = {expected[0][5], expected[1][2]}  # so that answers end at different times
    answers = Engine(model, stops, max_batch_size=slots).generate(PROMPTS, params)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for prompt, answer, tokens in zip(PROMPTS, answers, expected, strict=True):
        end = next((number for number, token in enumerate(tokens) if token in stops), len(tokens))
        assert answer.tokens == tokens[:end]
        assert answer.logprobs is not None
        (scores,) = score_tokens(model, [[*prompt, *answer.tokens]])
        torch.testing.assert_close(scores[len(prompt) - 1 :], answer.logprobs, atol=1e-4, rtol=1e-4)


def test_sampled_answers_depend_on_seed_and_index_alone(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path, "t5 untied")
    model, params = load_model(tmp_path).eval(), SamplingParams(max_new_tokens=9, temperature=1.0, seed=5)
    first, second = (Engine(model, [END], max_batch_size=slots).generate(PROMPTS, params) for slots in (2, 8))
    assert [answer.tokens for answer in first] == [answer.tokens for answer in second]
    assert list(Engine(model, [END]).stream(PROMPTS[0], params)) == first[0].tokens


def test_an_answer_that_has_begun_is_continued(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path, "t5 untied")
    engine = Engine(load_model(tmp_path).eval())
    (whole, _) = engine.generate(PROMPTS[:2], SamplingParams(max_new_tokens=10))
    begun = [[*PROMPTS[0], *whole.tokens[:4]], PROMPTS[1]]
    rest, _ = engine.generate(begun, SamplingParams(max_new_tokens=6))
    assert rest.tokens == whole.tokens[4:]


def test_a_cancelled_answer_changes_no_other(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path, "t5 untied")
    engine, params = Engine(load_model(tmp_path).eval()), SamplingParams(max_new_tokens=8)
    expected = engine.generate(PROMPTS, params)
    ids = [engine.add(prompt, params) for prompt in PROMPTS]
    outputs = engine.step()
    engine.cancel(ids[1])
    while engine.num_unfinished:
        outputs += engine.step()
    for number, request in enumerate(ids):
        if number != 1:
            tokens = [output.token for output in outputs if output.request_id == request]
            assert tokens == expected[number].tokens


def test_a_prompt_without_start_token_is_refused(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path, "t5 untied")
    model = load_model(tmp_path).eval()
    with pytest.raises(FledgeError, match="has no token 0, with which the decoder"):
        Engine(model).generate([[5, 6, END]])
    with pytest.raises(FledgeError, match="a text alone"):
        score_tokens(model, [[5, 6, END]])
