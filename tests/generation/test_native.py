"""The inference model computes the function of the decoder, in one pass or in several."""

import pytest
import torch
from torch import Tensor

from fledge.generation.kv_cache import GRAIN, KVCache, cache_bytes
from fledge.generation.native import InferenceModel, _padding
from fledge.generation.packed_linear import PackedLinear, PlainProduct, can_pack
from fledge.model.decoder import Decoder
from tests.support.decoders import make_decoder, random_tokens

SIZES: list[dict[str, object]] = [
    {},
    {"qk_norm": True, "tie_word_embeddings": False},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1},
    {"moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}},
    {"attention_bias": "qkv"},
    {"attention_bias": "qkvo", "qk_norm": True, "head_dim": 12},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
]
PROMPTS = [random_tokens(length, seed=length).tolist() for length in (9, 4, 17)]
NEXT = random_tokens(3, 30, seed=5).tolist()


def _whole(model: Decoder, tokens: list[int]) -> Tensor:
    """The last logits [V] of a whole forward pass."""
    return model.logits(model(torch.tensor([tokens])))[0, -1]


@pytest.mark.parametrize("changes", SIZES)
@torch.no_grad()
def test_logits_from_the_cache_equal_logits_of_full_forward_passes(changes: dict[str, object]) -> None:
    model = make_decoder(num_hidden_layers=3, **changes)
    form = InferenceModel(model)
    cache = form.empty_cache(3, 60)
    sequences = [list(prompt) for prompt in PROMPTS]

    def check(logits: Tensor, count: int) -> None:
        expected = torch.stack([_whole(model, tokens) for tokens in sequences[:count]])
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)

    check(form.forward(cache, [], [], PROMPTS[:2]), 2)
    for step in range(30):  # the third joins at the third step
        going = 2 if step < 3 else 3
        lengths = [len(tokens) for tokens in sequences[:going]]
        new = [NEXT[slot][step] for slot in range(going)]
        for tokens, token in zip(sequences, new, strict=False):
            tokens.append(token)
        joining = PROMPTS[2:] if step == 2 else []
        check(form.forward(cache, new, lengths, joining), going + len(joining))


@torch.no_grad()
def test_a_sequence_continues_unchanged_in_another_slot() -> None:
    model = make_decoder()
    form = InferenceModel(model)
    cache = form.empty_cache(3, 40)
    form.forward(cache, [], [], PROMPTS)
    cache.move([2], [0], len(PROMPTS[2]))
    logits = form.forward(cache, [5, 6], [len(PROMPTS[2]), len(PROMPTS[1])], [])
    expected = torch.stack([_whole(model, [*PROMPTS[2], 5]), _whole(model, [*PROMPTS[1], 6])])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


def test_a_cache_grows_with_its_sequences_and_keeps_its_contents() -> None:
    cache = KVCache(
        num_layers=2, slots=3, num_kv_heads=2, head_dim=4, max_length=1000, dtype=torch.float32, device=torch.device("cpu")
    )
    assert cache.nbytes == 0
    cache.reserve(10)
    slots, positions = torch.tensor([0, 2]), torch.tensor([9, 3])
    cache.write(1, slots, positions, torch.ones(2, 4, 4))
    capacities = [cache.capacity]
    for length in range(11, 1001):
        cache.reserve(length)
        assert length <= cache.capacity <= max(length * 1.5, length + GRAIN) + GRAIN
        capacities.append(cache.capacity)
    assert cache.capacity == 1024 and len(set(capacities)) < 8
    sizes = {"num_layers": 2, "slots": 3, "num_kv_heads": 2, "head_dim": 4}
    assert cache.nbytes == cache_bytes(**sizes, capacity=1000, dtype=torch.float32) == 2 * 2 * 3 * 2 * 1024 * 4 * 4
    for layer, total in ((0, 0), (1, 2 * 4 * 4)):
        keys, values = cache.read(layer, 3, 12)
        assert keys.shape == values.shape == (3, 2, 12, 4)
        assert keys.sum() + values.sum() == total
    assert keys[2, :, 3].eq(1).all() and values[0, :, 9].eq(1).all()


def test_a_cache_gets_more_slots_and_keeps_its_contents_until_it_is_cleared() -> None:
    cache = KVCache(
        num_layers=2, slots=0, num_kv_heads=1, head_dim=4, max_length=0, dtype=torch.float32, device=torch.device("cpu")
    )
    cache.resize(2, 40)
    cache.reserve(30)
    assert (cache.slots, cache.capacity) == (2, 64)
    cache.write(0, torch.tensor([1]), torch.tensor([29]), torch.ones(1, 2, 4))
    cache.resize(5, 200)
    cache.reserve(150)
    cache.resize(1, 10)  # never smaller
    assert (cache.slots, cache.max_length) == (5, 200) and 150 <= cache.capacity <= 256
    keys, _ = cache.read(0, 5, 150)
    assert keys[1, :, 29].eq(1).all() and keys.sum() == 4
    peak = cache.nbytes
    cache.clear()
    assert (cache.slots, cache.capacity, cache.nbytes, cache.peak_bytes) == (0, 0, 0, peak)


@pytest.mark.parametrize("biased", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_equal_plain_ones(dtype: torch.dtype, biased: bool) -> None:
    weight = (torch.randn(24, 40, generator=torch.Generator().manual_seed(0)) / 5).to(dtype)
    if not can_pack(weight):
        pytest.skip("this machine packs no weights of this kind")
    bias = torch.randn(24, generator=torch.Generator().manual_seed(2)).to(dtype) if biased else None
    plain, packed = PlainProduct(weight, bias), PackedLinear(weight, bias)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for rows in (1, 7, 64, 130):
        x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(rows)).to(dtype)
        other = torch.randn(rows, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
        kept = other.clone()
        pairs = [
            (packed(x), plain(x)),
            (packed.plus(x, other), plain.plus(x, other)),
            (packed.times(x, other), plain.times(x, other)),
            (packed.silu(x), plain.silu(x)),
            (plain.plus(x, other), other + plain(x)),
            (plain.times(x, other), other * plain(x)),
        ]
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
        assert torch.equal(other, kept)


def test_float32_weights_are_packed_on_a_cpu_and_float16_ones_are_not() -> None:
    assert can_pack(torch.zeros(2, 2)) == torch.backends.mkldnn.is_available()
    assert not can_pack(torch.zeros(2, 2, dtype=torch.float16))
    assert not can_pack(torch.zeros(2, 2, device="meta"))


@pytest.mark.parametrize("changes", SIZES)
@torch.no_grad()
def test_logits_do_not_depend_on_the_packing_of_weights(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_decoder(**changes)
    packed = InferenceModel(model)
    for module in ("packed_linear", "packed_mlp"):
        monkeypatch.setattr(f"fledge.generation.{module}.can_pack", lambda weight: False)
    plain = InferenceModel(model)
    logits = [form.forward(form.empty_cache(3, 20), [], [], PROMPTS) for form in (packed, plain)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("changes", SIZES)
@torch.no_grad()
def test_logits_are_equal_on_gpu_and_cpu(changes: dict[str, object]) -> None:
    model = make_decoder(**changes)
    expected = torch.stack([_whole(model, tokens) for tokens in PROMPTS])
    form = InferenceModel(model.to("cuda"))
    cache = form.empty_cache(3, 20)
    torch.testing.assert_close(form.forward(cache, [], [], PROMPTS).cpu(), expected, atol=1e-3, rtol=1e-3)


def test_the_layout_of_prompts_goes_there_and_back() -> None:
    padded, unpadded = _padding([2, 5, 1])
    assert padded == [0, 1, 0, 0, 0, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7]
    assert [padded[index] for index in unpadded] == list(range(8))
