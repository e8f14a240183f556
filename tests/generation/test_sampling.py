"""Draws that belong to a token: what they are, that they are uniform, and that a choice follows the distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.generation.sampling import CANDIDATES, SamplingParams, process_logits, sample_next_token, uniform_draws

BITS = 2**64 - 1


def _mixed(state: int) -> int:
    """SplitMix64's mixing, with Python's whole numbers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & BITS
    return state ^ (state >> 31)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(-(2**40), 2**64),
    pairs=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**20)), min_size=1, max_size=5),
)
def test_draws_are_those_of_splitmix_in_whole_numbers(seed: int, pairs: list[tuple[int, int]]) -> None:
    expected = []
    for prompt, place in pairs:
        state = seed
        for number in (0, prompt, place):
            state = _mixed((state + (number + 1) * 0x9E3779B97F4A7C15) & BITS)
        expected.append((state >> 32) / 2**32)
    prompts, places = torch.tensor(pairs).unbind(1)
    assert uniform_draws(seed, prompts, places).tolist() == expected


def test_mixing_gives_the_published_numbers() -> None:
    """The first outputs of the generator of Steele, Lea & Flood for seed 0, as its reference implementation prints them."""
    gamma = 0x9E3779B97F4A7C15
    assert [_mixed(gamma * i & BITS) for i in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_draws_are_uniform_and_independent_along_prompts_and_places() -> None:
    prompts, places = (grid.flatten() for grid in torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij"))
    table = uniform_draws(7, prompts, places).view(200, 200)
    assert table.min() >= 0 and table.max() < 1
    shares = torch.histc(table.float(), 20, 0, 1) / table.numel()
    assert (shares - 0.05).abs().max() < 0.005
    centred = table - 0.5
    for other in (centred.roll(1, 0), centred.roll(1, 1), uniform_draws(8, prompts, places).view(200, 200) - 0.5):
        assert (centred * other).mean().abs() < 12 * 0.0005 / 6  # five standard errors of 1/12/200


def test_a_choice_does_not_depend_on_the_other_rows() -> None:
    logits = 3 * torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    sampling = SamplingParams(temperature=1.0, top_k=20, top_p=0.9, seed=5)
    prompts, places = torch.arange(9) * 3, torch.arange(9) % 4
    together = sample_next_token(logits, sampling, None, prompts, places)
    for row in range(9):
        one = slice(row, row + 1)
        assert sample_next_token(logits[one], sampling, None, prompts[one], places[one]) == together[row]


def test_ruled_out_tokens_are_never_chosen() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]]).expand(3000, 5)
    chosen = sample_next_token(
        logits, SamplingParams(temperature=1.0), None, torch.arange(3000), torch.zeros(3000, dtype=torch.long)
    )
    assert set(chosen.tolist()) == {1, 3}
    assert abs((chosen == 3).float().mean() - 0.7311) < 0.03  # e / (1 + e)


@pytest.mark.parametrize("spread", [0.2, 4.0], ids=["flat: sorted", "peaked: candidates"])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_of_a_large_vocabulary_keeps_the_same_tokens_as_sorting_all(spread: float, top_p: float) -> None:
    logits = spread * torch.randn(5, 3 * CANDIDATES, generator=torch.Generator().manual_seed(1))
    shaped = process_logits(logits, SamplingParams(temperature=1.0, top_p=top_p))
    for row, kept in zip(logits.double(), shaped, strict=True):
        ordered, index = row.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        assert set(index[before < top_p].tolist()) == set(kept.isfinite().nonzero()[:, 0].tolist())
