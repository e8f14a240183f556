"""Requests that join and leave a running engine: their results, their log-probabilities, and what they leave behind."""

import random
from collections import defaultdict
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.generation import Completion, Engine, SamplingParams, TokenOutput, score_tokens
from fledge.generation.scoring import next_token_logps
from fledge.model.decoder import Decoder
from tests.support.decoders import VOCAB, make_decoder, random_tokens

STOP = frozenset(random_tokens(VOCAB // 12, seed=3).tolist())
PROMPTS = [random_tokens(length, seed=length).tolist() for length in (5, 1, 12, 3, 12, 8)]
PARAMS = [
    SamplingParams(max_new_tokens=9),
    SamplingParams(max_new_tokens=14, repetition_penalty=1.3),
    SamplingParams(temperature=1.0, top_p=0.95, max_new_tokens=12, seed=11),
    SamplingParams(temperature=1.2, top_k=30, top_p=0.9, repetition_penalty=1.2, max_new_tokens=20, seed=4),
    SamplingParams(temperature=1.0, top_p=0.95, max_new_tokens=6, seed=-7),
]


def wandering_decoder() -> Decoder:
    """A tiny decoder whose answers wander through the vocabulary and end after different numbers of tokens."""
    return make_decoder(initializer_range=0.15)


def run_to_end(engine: Engine) -> dict[int, list[TokenOutput]]:
    """The outputs of all requests, by id."""
    outputs = defaultdict(list)
    while engine.num_unfinished:
        for output in engine.step():
            outputs[output.request_id].append(output)
    return outputs


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 5), count=st.integers(1, 10))
def test_a_result_does_not_depend_on_which_requests_arrive_finish_or_are_cancelled_meanwhile(
    seed: int, batch: int, count: int
) -> None:
    dice, model = random.Random(seed), wandering_decoder()
    engine, alone = Engine(model, STOP, max_batch_size=batch), Engine(model, STOP, max_batch_size=1)
    arrivals = sorted((dice.randrange(25), number) for number in range(count))
    requests, outputs, cancelled, step = {}, defaultdict(list), set(), 0
    while arrivals or engine.num_unfinished:
        while arrivals and arrivals[0][0] <= step:
            _, number = arrivals.pop(0)
            prompt, params = dice.choice(PROMPTS), dice.choice(PARAMS)
            requests[engine.add(prompt, params, sample_index=number)] = prompt, params, number
        if requests and dice.random() < 0.1:
            request_id = dice.choice(list(requests))
            if engine.cancel(request_id):
                cancelled.add(request_id)
        for output in engine.step():
            outputs[output.request_id].append(output)
        step += 1
    for output in engine.step():  # a request cancelled last of all
        outputs[output.request_id].append(output)
    for request_id, (prompt, params, number) in requests.items():
        alone.add(prompt, params, sample_index=number)
        (expected,) = run_to_end(alone).values()
        got = outputs[request_id]
        if request_id in cancelled:
            assert got.pop() == TokenOutput(request_id, None, None, "cancelled")
            expected = expected[: len(got)]
        assert [(o.token, o.finish_reason) for o in got] == [(o.token, o.finish_reason) for o in expected]


def test_every_request_has_its_own_parameters() -> None:
    engine = Engine(wandering_decoder(), STOP)
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(10)]
    each = [PARAMS[number % len(PARAMS)] for number in range(10)]
    together = engine.generate(prompts, each)
    for number, (prompt, params) in enumerate(zip(prompts, each, strict=True)):
        engine.add(prompt, params, sample_index=number)
        (outputs,) = run_to_end(engine).values()
        assert together[number] == Completion.from_outputs(outputs)


def test_requests_start_in_the_order_in_which_they_were_added() -> None:
    engine = Engine(make_decoder(), max_batch_size=1)
    ids = [engine.add(prompt, SamplingParams(max_new_tokens=2)) for prompt in PROMPTS]
    assert list(run_to_end(engine)) == ids


def test_samples_of_one_prompt_differ_by_their_index_and_repeat_with_it() -> None:
    engine, params = Engine(make_decoder()), SamplingParams(temperature=1.0, max_new_tokens=12)
    for index in (0, 1, 2, 1):
        engine.add(PROMPTS[0], params, sample_index=index)
    first, second, third, again = ([o.token for o in outputs] for outputs in run_to_end(engine).values())
    assert second == again and len({tuple(first), tuple(second), tuple(third)}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_belong_to_the_unchanged_distribution_of_the_model(dtype: torch.dtype) -> None:
    """Log-probabilities equal the log-softmax of a whole forward pass at the chosen tokens, with any sampling parameters."""
    model = wandering_decoder()
    model.compute_dtype = dtype
    each = [SamplingParams(**{**vars(params), "logprobs": True}) for params in PARAMS]
    completions = Engine(model, STOP).generate(PROMPTS[:5], each)
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    for prompt, completion in zip(PROMPTS, completions, strict=False):
        ending = [] if completion.stop_token is None else [completion.stop_token]
        logprobs = [*(completion.logprobs or []), *([completion.stop_logprob] if ending else [])]
        sequence = [*prompt, *completion.tokens, *ending]
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([sequence])))[0].log_softmax(-1)
        expected = [float(logits[i - 1, sequence[i]]) for i in range(len(prompt), len(sequence))]
        assert logprobs == pytest.approx(expected, abs=tolerance)


def test_log_probabilities_are_returned_only_when_requested() -> None:
    engine = Engine(make_decoder())
    with_logprobs, other = engine.generate(PROMPTS[:2], [SamplingParams(logprobs=True, max_new_tokens=3), SamplingParams()])
    assert with_logprobs.logprobs is not None and len(with_logprobs.logprobs) == 3 and max(with_logprobs.logprobs) < 0
    assert other.logprobs is None


def test_a_cancelled_request_frees_its_slot_and_is_reported_as_cancelled() -> None:
    engine = Engine(make_decoder(), max_batch_size=1)
    first, second, third = (engine.add(prompt, SamplingParams(max_new_tokens=5)) for prompt in PROMPTS[:3])
    assert [output.request_id for output in engine.step()] == [first]
    assert engine.cancel(first) and engine.cancel(third)
    assert not engine.cancel(first) and not engine.cancel(99)
    outputs = engine.step()
    assert outputs[:2] == [TokenOutput(one, None, None, "cancelled") for one in (first, third)]
    assert [output.request_id for output in outputs[2:]] == [second]
    assert engine.cancel(second) and engine.num_unfinished == 0
    assert engine.step() == [TokenOutput(second, None, None, "cancelled")] and engine.step() == []
    assert Completion.from_outputs([TokenOutput(0, 7), *outputs[:1]]) == Completion([7], "cancelled")
    with pytest.raises(ValueError, match="finish reason"):
        Completion.from_outputs([TokenOutput(0, 7)])


def test_streams_and_batches_share_an_engine_with_other_requests() -> None:
    model, greedy = make_decoder(), SamplingParams(max_new_tokens=8)
    expected = [completion.tokens for completion in Engine(model).generate(PROMPTS, greedy)]
    engine = Engine(model, max_batch_size=2)
    added = engine.add(PROMPTS[5], greedy)
    streams = [engine.stream(prompt, greedy) for prompt in PROMPTS[:2]]
    pairs = [(next(streams[0]), next(streams[1])) for _ in range(4)]
    completions = engine.generate(PROMPTS[2:5], greedy)
    pairs += list(zip(*streams, strict=True))
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == expected[:2]
    assert [completion.tokens for completion in completions] == expected[2:5]
    outputs = engine.step()
    assert {output.request_id for output in outputs} == {added}
    assert [output.token for output in outputs] == expected[5]


def test_an_interrupted_batch_and_a_closed_stream_leave_nothing_running() -> None:
    model = make_decoder()
    engine = Engine(model, max_batch_size=2)
    expected = engine.generate(PROMPTS)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=3), progress=interrupt)
    stream = engine.stream(PROMPTS[0])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.num_unfinished == 0 and engine.step() == []
    assert engine.generate(PROMPTS) == expected


def test_a_pass_that_runs_out_of_memory_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make_decoder(), max_batch_size=3)
    expected = [completion.tokens for completion in engine.generate(PROMPTS[:3], SamplingParams(max_new_tokens=6))]
    ids = [engine.add(prompt, SamplingParams(max_new_tokens=6)) for prompt in PROMPTS[:2]]
    outputs = [*engine.step(), *engine.step()]
    ids.append(engine.add(PROMPTS[2], SamplingParams(max_new_tokens=6)))

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fledge.generation.native.InferenceLayer._prefill", fail)
        with pytest.raises(MemoryError):
            engine.step()
    outputs += chain.from_iterable(run_to_end(engine).values())
    assert [[o.token for o in outputs if o.request_id == request_id] for request_id in ids] == expected


def test_the_cache_has_slots_and_room_for_the_present_requests_only_and_is_freed_after_the_last() -> None:
    engine = Engine(make_decoder(max_position_embeddings=2000), max_batch_size=64)
    assert engine.cache.nbytes == 0
    engine.add(PROMPTS[0], SamplingParams(max_new_tokens=40))
    engine.step()
    assert (engine.cache.slots, engine.cache.capacity) == (1, 64)
    for prompt in PROMPTS[:4]:
        engine.add(prompt, SamplingParams(max_new_tokens=40))
    engine.step()
    assert (engine.cache.slots, engine.cache.capacity) == (5, 64)
    largest = engine.cache.nbytes
    run_to_end(engine)
    assert (engine.cache.nbytes, engine.cache.peak_bytes) == (0, largest)
    engine.add(PROMPTS[0], SamplingParams(max_new_tokens=200))
    engine.step()
    assert (engine.cache.slots, engine.cache.capacity) == (1, 128)  # of at most 256: it grows with its sequences


def test_the_mode_of_the_model_does_not_change_between_passes() -> None:
    model = make_decoder(dropout=0.5).train()
    engine = Engine(model)
    engine.add(PROMPTS[0], SamplingParams(max_new_tokens=4))
    engine.step()
    assert model.training and all(block.training for block in model.blocks())


@pytest.mark.parametrize("changes", [{}, {"moe": {"num_experts": 4, "num_experts_per_tok": 2}, "qk_norm": True}])
@pytest.mark.parametrize("batch_tokens", [1, 16, 10_000])
def test_scores_are_the_log_probabilities_of_each_sequence_alone(changes: dict[str, object], batch_tokens: int) -> None:
    model = make_decoder(**changes, dropout=0.5).train()
    sequences = [*PROMPTS, [], random_tokens(65, seed=1).tolist()]
    scores = score_tokens(model, sequences, batch_tokens)
    assert model.training
    model.eval()
    for sequence, values in zip(sequences, scores, strict=True):
        assert len(values) == max(0, len(sequence) - 1)
        if values:
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([sequence[:-1]])))[0].log_softmax(-1)
            expected = logits[torch.arange(len(values)), torch.tensor(sequence[1:])]
            assert values == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_candidates_for_the_next_token_have_the_log_probabilities_of_each_sequence_alone(batch_tokens: int) -> None:
    model = make_decoder(dropout=0.5).train()
    sequences = [*PROMPTS, random_tokens(64, seed=1).tolist()]
    found = next_token_logps(model, sequences, [5, 9, 5], batch_tokens)
    assert model.training and found.shape == (len(sequences), 3)
    expected = [[score_tokens(model, [[*one, token]])[0][-1] for token in (5, 9, 5)] for one in sequences]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    with pytest.raises(FledgeError, match=r"sequence 2: it has 65 tokens, the model has 64 positions"):
        next_token_logps(model, [[1], [1] * 65], [5])


def test_the_score_of_an_answer_is_what_generation_reported() -> None:
    model = make_decoder()
    params = SamplingParams(temperature=1.0, max_new_tokens=10, logprobs=True)
    completions = Engine(model).generate(PROMPTS, params)
    scores = score_tokens(model, [[*prompt, *done.tokens] for prompt, done in zip(PROMPTS, completions, strict=True)])
    for done, values in zip(completions, scores, strict=True):
        assert values[-10:] == pytest.approx(done.logprobs, abs=1e-4)


def test_a_sequence_that_is_too_long_to_score_is_an_error_that_names_it() -> None:
    with pytest.raises(FledgeError, match="sequence 2: it has 66 tokens, the model has 64 positions"):
        score_tokens(make_decoder(), [[1, 2], [1] * 66])
