"""Sampling: draws that belong to a token, choices that follow the distribution, and parameters within their bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.generation.sampling import (
    NUCLEUS_CANDIDATES,
    SamplingParams,
    process_logits,
    sample_batch,
    sample_next_token,
    token_log_probabilities,
    uniform_draws,
)

BITS = 2**64 - 1


def _mixed(state: int) -> int:
    """The mixing of SplitMix64, with Python integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & BITS
    return state ^ (state >> 31)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(-(2**40), 2**64),
    pairs=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**20)), min_size=1, max_size=5),
)
def test_draws_equal_splitmix_computed_with_python_integers(seed: int, pairs: list[tuple[int, int]]) -> None:
    expected = []
    for sample, position in pairs:
        state = seed
        for number in (0, sample, position):
            state = _mixed((state + (number + 1) * 0x9E3779B97F4A7C15) & BITS)
        expected.append((state >> 32) / 2**32)
    samples, positions = zip(*pairs, strict=True)
    assert uniform_draws([seed] * len(pairs), samples, positions).tolist() == expected


def test_mixing_gives_the_published_numbers() -> None:
    """The first outputs of the generator of Steele, Lea & Flood for seed 0, as its reference implementation prints them."""
    gamma = 0x9E3779B97F4A7C15
    assert [_mixed(gamma * i & BITS) for i in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def _draw_table(seed: int) -> torch.Tensor:
    """Draws of 200 samples at 200 positions."""
    samples, positions = (grid.flatten() for grid in torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij"))
    return uniform_draws([seed] * 200 * 200, samples.tolist(), positions.tolist()).view(200, 200)


def test_draws_are_uniform_and_independent_along_samples_and_positions() -> None:
    table = _draw_table(7)
    assert table.min() >= 0 and table.max() < 1
    shares = torch.histc(table.float(), 20, 0, 1) / table.numel()
    assert (shares - 0.05).abs().max() < 0.005
    centred = table - 0.5
    for other in (centred.roll(1, 0), centred.roll(1, 1), _draw_table(8) - 0.5):
        assert (centred * other).mean().abs() < 12 * 0.0005 / 6  # five standard errors of 1/12/200


def test_a_choice_does_not_depend_on_the_other_rows() -> None:
    logits = 3 * torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=1.0, top_k=20, top_p=0.9)
    draws = uniform_draws([5] * 9, range(0, 27, 3), [row % 4 for row in range(9)])
    together = sample_next_token(logits, params, None, draws)
    for row in range(9):
        one = slice(row, row + 1)
        assert sample_next_token(logits[one], params, None, draws[one]) == together[row]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 5, 40]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(PARAMS, min_size=1, max_size=12), seed=st.integers(0, 99))
def test_rows_with_their_own_parameters_are_chosen_as_if_each_were_alone(rows: list[SamplingParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(rows), 50, generator=generator)
    in_context = torch.rand(len(rows), 50, generator=generator) < 0.3
    draws = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    alone = [
        sample_next_token(logits[i : i + 1], params, in_context[i : i + 1], draws[i : i + 1]) for i, params in enumerate(rows)
    ]
    assert torch.equal(sample_batch(logits, rows, in_context, draws), torch.cat(alone))


def test_excluded_tokens_are_never_chosen() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]]).expand(3000, 5)
    draws = uniform_draws([0] * 3000, range(3000), [0] * 3000)
    chosen = sample_next_token(logits, SamplingParams(temperature=1.0), None, draws)
    assert set(chosen.tolist()) == {1, 3}
    assert abs((chosen == 3).float().mean() - 0.7311) < 0.03  # e / (1 + e)


def test_a_choice_without_draws_or_present_tokens_is_an_error() -> None:
    logits = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="random draw"):
        sample_next_token(logits, SamplingParams(temperature=1.0), None, None)
    with pytest.raises(ValueError, match="which tokens are present"):
        sample_next_token(logits, SamplingParams(repetition_penalty=2.0), None, None)


def test_log_probabilities_are_computed_from_the_unprocessed_logits() -> None:
    logits = 3 * torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([3, 0, 29, 3])
    expected = logits.log_softmax(-1)[torch.arange(4), tokens]
    torch.testing.assert_close(token_log_probabilities(logits, tokens), expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "0 or more"),
        ("temperature", float("nan"), "0 or more"),
        ("top_k", -1, "0 or more"),
        ("top_p", 0.0, "above 0, and at most 1"),
        ("top_p", 1.1, "above 0, and at most 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("max_new_tokens", 0, "1 or more"),
    ],
)
def test_a_parameter_out_of_bounds_is_an_error_that_names_it(name: str, value: float, expected: str) -> None:
    with pytest.raises(FledgeError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.where == name
    assert caught.value.what == f"must be {expected}, not {value}"


@pytest.mark.parametrize("spread", [0.2, 4.0], ids=["flat: sorted", "peaked: candidates"])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_keeps_the_same_tokens_as_sorting_all(spread: float, top_p: float) -> None:
    logits = spread * torch.randn(5, 3 * NUCLEUS_CANDIDATES, generator=torch.Generator().manual_seed(1))
    shaped = process_logits(logits, SamplingParams(temperature=1.0, top_p=top_p))
    for row, kept in zip(logits.double(), shaped, strict=True):
        ordered, index = row.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        assert set(index[before < top_p].tolist()) == set(kept.isfinite().nonzero()[:, 0].tolist())
