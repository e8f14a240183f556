"""Completions: equal to whole forward passes, independent of the batch, and within every limit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fledge.errors import FledgeError
from fledge.generation import Completion, Engine, PromptTooLongError, SamplingParams
from fledge.generation.sampling import process_logits
from fledge.model.decoder import Decoder
from tests.support.decoders import VOCAB, make_decoder, random_tokens
from tests.support.generating import generate, stream

NEVER: frozenset[int] = frozenset()
MIXTURE = {"moe": {"num_experts": 4, "num_experts_per_tok": 2}, "qk_norm": True}
PROMPTS = [random_tokens(length, seed=length).tolist() for length in (5, 1, 12, 3, 12, 8)]


def _naive(model: Decoder, prompt: list[int], new: int, penalty: float = 1.0) -> list[int]:
    """Greedy decoding by one whole forward pass for each token."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            logits = model.logits(model(torch.tensor([tokens])))[0, -1]
            for token in set(tokens):
                logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def _tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


def _results(completions: list[Completion]) -> list[tuple[list[int], str]]:
    return [(completion.tokens, completion.finish_reason) for completion in completions]


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "tie_word_embeddings": False, "num_key_value_heads": 4}, MIXTURE])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_cached_greedy_decoding_equals_whole_forward_passes(changes: dict[str, object], penalty: float) -> None:
    model = make_decoder(num_hidden_layers=3, **changes)
    answers = generate(model, PROMPTS, NEVER, SamplingParams(max_new_tokens=25, repetition_penalty=penalty))
    assert _tokens(answers) == [_naive(model, prompt, 25, penalty) for prompt in PROMPTS]
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert len({token for answer in answers for token in answer.tokens}) > 15  # not one token repeated


@settings(deadline=None, max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    batch=st.integers(1, 6),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_a_greedy_answer_does_not_depend_on_the_other_prompts_or_the_batch_size(
    lengths: list[int], batch: int, penalty: float
) -> None:
    model = make_decoder()
    prompts = [random_tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]
    sampling = SamplingParams(max_new_tokens=8, repetition_penalty=penalty)
    alone = [generate(model, [prompt], NEVER, sampling)[0] for prompt in prompts]
    assert _results(generate(model, prompts, NEVER, sampling, max_batch_size=batch)) == _results(alone)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_an_answer_ends_before_its_first_stop_token_and_the_others_continue(penalty: float) -> None:
    model, sampling = make_decoder(), SamplingParams(max_new_tokens=20, repetition_penalty=penalty)
    free = _tokens(generate(model, PROMPTS, NEVER, sampling))
    stop = frozenset({free[0][4], free[2][9]})
    expected = []
    for tokens in free:
        end = next((i for i, token in enumerate(tokens) if token in stop), None)
        expected.append((tokens[:end], "length" if end is None else "stop"))
    assert {reason for _, reason in expected} == {"stop", "length"}
    assert len({len(tokens) for tokens, _ in expected}) > 2  # rows leave the batch at different steps
    assert _results(generate(model, PROMPTS, stop, sampling)) == expected


def test_a_stop_token_as_the_last_allowed_token_is_a_stop() -> None:
    model = make_decoder()
    tokens = generate(model, PROMPTS[:1], NEVER, SamplingParams(max_new_tokens=3))[0].tokens
    assert tokens[2] not in tokens[:2]
    answer = generate(model, PROMPTS[:1], frozenset({tokens[2]}), SamplingParams(max_new_tokens=3))[0]
    assert answer == Completion(tokens[:2], "stop", stop_token=tokens[2])


@pytest.mark.parametrize("limit", [1, 7])
def test_no_answer_is_longer_than_max_new_tokens(limit: int) -> None:
    answers = generate(make_decoder(), PROMPTS, NEVER, SamplingParams(max_new_tokens=limit))
    assert [len(answer.tokens) for answer in answers] == [limit] * len(PROMPTS)


def test_an_answer_ends_where_the_positions_of_the_model_end() -> None:
    model, longer = make_decoder(max_position_embeddings=13), make_decoder(max_position_embeddings=64)
    answers = generate(model, PROMPTS, NEVER, SamplingParams(max_new_tokens=50))
    assert [len(answer.tokens) for answer in answers] == [13 - len(prompt) for prompt in PROMPTS]
    assert {answer.finish_reason for answer in answers} == {"length"}
    full = generate(longer, PROMPTS, NEVER, SamplingParams(max_new_tokens=50))
    assert all(short.tokens == long.tokens[: len(short.tokens)] for short, long in zip(answers, full, strict=True))
    assert list(stream(model, PROMPTS[0], NEVER, SamplingParams(max_new_tokens=50))) == answers[0].tokens


def test_progress_counts_every_prompt_and_no_prompts_give_no_completions() -> None:
    done: list[int] = []
    generate(make_decoder(), PROMPTS, NEVER, SamplingParams(max_new_tokens=1), max_batch_size=4, progress=done.append)
    assert done == [4, 2]
    assert generate(make_decoder(), [], NEVER, SamplingParams()) == []


def test_a_prompt_that_is_empty_or_leaves_no_room_for_a_token_is_an_error_that_names_it() -> None:
    engine = Engine(make_decoder(max_position_embeddings=12))
    almost_full = PROMPTS[2][:11]
    assert [len(answer.tokens) for answer in engine.generate([almost_full])] == [1]
    with pytest.raises(PromptTooLongError, match=r"prompt 2: it has 12 tokens, .* the model has 12 positions") as caught:
        engine.generate([PROMPTS[0], PROMPTS[2]])
    assert (caught.value.prompt_length, caught.value.max_positions) == (12, 12)
    with pytest.raises(PromptTooLongError, match="prompt 2: it has 13 tokens"):
        engine.generate([PROMPTS[0], [*PROMPTS[2], 1]])
    with pytest.raises(PromptTooLongError, match="the question: it has 12 tokens"):
        engine.generate([PROMPTS[2]], where=["the question"])
    with pytest.raises(PromptTooLongError, match="the question: it has 12 tokens"):
        engine.add(PROMPTS[2], where="the question")
    with pytest.raises(PromptTooLongError, match="the question: it has 12 tokens"):
        next(engine.stream(PROMPTS[2], where="the question"))
    with pytest.raises(FledgeError, match="prompt 3: it is empty"):
        engine.generate([*PROMPTS[:2], []])
    assert engine.num_unfinished == 0


def test_a_batch_size_below_one_and_missing_parameters_are_errors() -> None:
    with pytest.raises(FledgeError, match="max_batch_size: must be 1 or more, not 0"):
        Engine(make_decoder(), max_batch_size=0)
    with pytest.raises(ValueError, match="6 prompts, but 1 sampling parameters"):
        Engine(make_decoder()).generate(PROMPTS, [SamplingParams()])


def _expected(model: Decoder, prompt: list[int], stop: frozenset[int], sampling: SamplingParams) -> tuple[list[int], str]:
    """The result of naive decoding, up to the first stop token."""
    room = model.config.max_position_embeddings - len(prompt)
    tokens = _naive(model, prompt, min(sampling.max_new_tokens, room), sampling.repetition_penalty)
    end = next((i for i, token in enumerate(tokens) if token in stop), None)
    return tokens[:end], "length" if end is None else "stop"


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=9),
    batch=st.integers(1, 10),
    limit=st.integers(1, 12),
    penalty=st.sampled_from([1.0, 1.4]),
    stops=st.integers(0, VOCAB // 3),
    prefill_tokens=st.sampled_from([1, 20, 2048]),
)
def test_refilled_slots_give_the_results_of_naive_decoding(
    lengths: list[int], batch: int, limit: int, penalty: float, stops: int, prefill_tokens: int
) -> None:
    model = make_decoder(max_position_embeddings=28, initializer_range=0.3)
    prompts = [random_tokens(length, seed=100 + i).tolist() for i, length in enumerate(lengths)]
    stop = frozenset(random_tokens(stops, seed=1).tolist())
    sampling = SamplingParams(max_new_tokens=limit, repetition_penalty=penalty)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledge.generation.engine.PREFILL_TOKENS", prefill_tokens)
        answers = generate(model, prompts, stop, sampling, max_batch_size=batch)
    assert _results(answers) == [_expected(model, prompt, stop, sampling) for prompt in prompts]


def test_a_free_slot_is_refilled_in_the_next_pass() -> None:
    model, prompts = make_decoder(initializer_range=0.3), [random_tokens(5, seed=i).tolist() for i in range(12)]
    stop = frozenset(random_tokens(VOCAB // 4, seed=2).tolist())
    engine = Engine(model, stop, max_batch_size=4)
    ids = [engine.add(prompt, SamplingParams(max_new_tokens=20)) for prompt in prompts]
    passes, lengths = 0, dict.fromkeys(ids, 0)
    while engine.num_unfinished:
        waiting, free = len(engine.waiting), 4 - len(engine.running)
        for output in engine.step():
            lengths[output.request_id] += 1
        assert len(engine.waiting) == waiting - min(free, waiting)
        passes += 1
    assert len(set(lengths.values())) > 3
    assert passes <= sum(lengths.values()) / 4 + max(lengths.values())  # no slot idles while a prompt waits
    in_batches = sum(max(list(lengths.values())[start : start + 4]) for start in (0, 4, 8))
    assert passes < in_batches


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
UNSEEN = torch.zeros(1, 4, dtype=torch.bool)
OFF = float("-inf")


@pytest.mark.parametrize(
    ("sampling", "context", "expected"),
    [
        (SamplingParams(), [], [2.0, 1.0, 0.0, -1.0]),
        (SamplingParams(temperature=0.5), [], [4.0, 2.0, 0.0, -2.0]),
        (SamplingParams(top_k=2), [], [2.0, 1.0, OFF, OFF]),
        (SamplingParams(top_k=9), [], [2.0, 1.0, 0.0, -1.0]),
        (SamplingParams(top_p=0.64), [], [2.0, OFF, OFF, OFF]),  # shares: .644 .237 .087 .032
        (SamplingParams(top_p=0.65), [], [2.0, 1.0, OFF, OFF]),
        (SamplingParams(top_p=0.89), [], [2.0, 1.0, 0.0, OFF]),
        (SamplingParams(top_p=1e-9), [], [2.0, OFF, OFF, OFF]),
        (SamplingParams(top_p=0.8, temperature=10.0), [], [0.2, 0.1, 0.0, -0.1]),
        (SamplingParams(top_p=0.6, top_k=3), [], [2.0, OFF, OFF, OFF]),
        (SamplingParams(repetition_penalty=2.0), [0, 3], [1.0, 1.0, 0.0, -2.0]),
        (SamplingParams(repetition_penalty=4.0, top_k=1), [0], [OFF, 1.0, OFF, OFF]),
    ],
)
def test_logits_are_shaped_as_the_settings_say(sampling: SamplingParams, context: list[int], expected: list[float]) -> None:
    mask = UNSEEN.clone()
    mask[0, context] = True
    before = LOGITS.clone()
    torch.testing.assert_close(process_logits(LOGITS, sampling, mask), torch.tensor([expected]))
    assert torch.equal(LOGITS, before)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 40),
    top_p=st.integers(5, 100).map(lambda percent: percent / 100),  # not where rounding decides
    penalty=st.floats(0.7, 2),
)
def test_logits_are_shaped_as_transformers_shapes_them(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 30, generator=generator)
    tokens = torch.randint(30, (4, 6), generator=generator)
    in_context = torch.zeros(4, 30, dtype=torch.bool).scatter_(1, tokens, True)
    theirs = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    theirs += [TopKLogitsWarper(top_k)] if top_k else []
    theirs += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = LogitsProcessorList(theirs)(tokens, logits.clone())  # type: ignore[arg-type]
    got = process_logits(
        logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty), in_context
    )
    torch.testing.assert_close(got, expected)


def test_draws_follow_the_shaped_distribution() -> None:
    model = make_decoder(initializer_range=0.1)
    sampling = SamplingParams(temperature=0.8, top_k=4, max_new_tokens=1, seed=3)
    drawn = [answer.tokens[0] for answer in generate(model, [PROMPTS[0]] * 4000, NEVER, sampling, max_batch_size=1000)]
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([PROMPTS[0]])))[:, -1]
    expected = process_logits(logits, sampling, torch.zeros(1, VOCAB, dtype=torch.bool)).softmax(-1)[0]
    shares = torch.bincount(torch.tensor(drawn), minlength=VOCAB) / 4000
    assert (shares - expected).abs().max() < 0.03
    assert torch.equal(shares > 0, expected > 0)


WARM = SamplingParams(temperature=1.0, top_p=0.95, max_new_tokens=15, seed=11)


def test_sampling_follows_its_seed_and_nothing_else() -> None:
    model = make_decoder()
    torch.manual_seed(0)
    first = generate(model, PROMPTS, NEVER, WARM, max_batch_size=4)
    torch.manual_seed(1)
    assert generate(model, PROMPTS, NEVER, WARM, max_batch_size=4) == first
    assert (
        generate(model, PROMPTS, NEVER, SamplingParams(temperature=1.0, max_new_tokens=15, seed=12), max_batch_size=4) != first
    )


def test_equal_prompts_in_different_batches_get_different_draws() -> None:
    answers = _tokens(generate(make_decoder(), [PROMPTS[0]] * 6, NEVER, WARM, max_batch_size=2))
    assert len({tuple(tokens) for tokens in answers}) == 6


HOT = SamplingParams(temperature=1.2, top_k=30, top_p=0.9, repetition_penalty=1.2, max_new_tokens=12, seed=4)


@pytest.mark.parametrize("sampling", [WARM, HOT], ids=["warm", "hot"])
def test_a_sampled_answer_does_not_depend_on_the_batch_it_is_made_in(sampling: SamplingParams) -> None:
    model = make_decoder(initializer_range=0.1)
    stop = frozenset(random_tokens(VOCAB // 10, seed=3).tolist())
    expected = generate(model, PROMPTS, stop, sampling, max_batch_size=1)
    assert len({len(answer.tokens) for answer in expected}) > 2
    for batch in (2, 3, 4, 64):
        assert generate(model, PROMPTS, stop, sampling, max_batch_size=batch) == expected
    assert generate(model, PROMPTS[:3], stop, sampling) == expected[:3]
    assert list(stream(model, PROMPTS[0], stop, sampling)) == expected[0].tokens


@pytest.mark.parametrize("sampling", [SamplingParams(max_new_tokens=15), WARM], ids=["greedy", "sampled"])
def test_stream_gives_what_generate_gives(sampling: SamplingParams) -> None:
    model = make_decoder()
    for prompt in PROMPTS:
        free = generate(model, [prompt], NEVER, sampling)[0].tokens
        assert list(stream(model, prompt, NEVER, sampling)) == free
        stop = frozenset({free[6]})
        assert list(stream(model, prompt, stop, sampling)) == generate(model, [prompt], stop, sampling)[0].tokens


def _never_mind(done: int) -> None:
    raise KeyboardInterrupt


def test_dropout_is_off_while_generating_and_the_mode_is_restored() -> None:
    calm, model = make_decoder(), make_decoder(dropout=0.5).train()
    expected = generate(calm, PROMPTS, NEVER, SamplingParams(max_new_tokens=10))
    assert generate(model, PROMPTS, NEVER, SamplingParams(max_new_tokens=10)) == expected
    assert list(stream(model, PROMPTS[0], NEVER, SamplingParams(max_new_tokens=10))) == expected[0].tokens
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, NEVER, SamplingParams(max_new_tokens=1), progress=_never_mind)
    abandoned = stream(model, PROMPTS[0], NEVER, SamplingParams(max_new_tokens=10))
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert model.training and all(block.training for block in model.blocks())
    generate(calm, PROMPTS, NEVER, SamplingParams(max_new_tokens=1))
    assert not calm.training


def test_generation_keeps_no_graph_and_works_in_bfloat16() -> None:
    model = make_decoder()
    exact = generate(model, PROMPTS, NEVER, SamplingParams(max_new_tokens=1))
    model.compute_dtype = torch.bfloat16
    rounded = generate(model, PROMPTS, NEVER, SamplingParams(max_new_tokens=6))
    same = [a.tokens[0] == b.tokens[0] for a, b in zip(rounded, exact, strict=True)]
    assert sum(same) >= len(PROMPTS) - 1
    assert all(len(answer.tokens) == 6 for answer in rounded)
