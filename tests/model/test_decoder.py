"""The decoder: packing, causality, positions, norms, dropout, initialisation and precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.model.attention import BACKENDS, Attention
from fledge.model.decoder import Decoder, RMSNorm, rotate
from fledge.model.eager import force_eager
from fledge.model.protocol import eval_mode
from tests.support.decoders import VOCAB, assert_same_gradients, gradients, make_config, make_decoder, random_tokens


def _packed(lengths: list[int], packed_length: int) -> tuple[PackedDataset, list[np.ndarray]]:
    """Sequences of lengths + 1 random tokens (that many positions), packed."""
    sequences = [random_tokens(n + 1, seed=i).numpy().astype(np.int32) for i, n in enumerate(lengths)]
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in sequences]))).astype(np.int64)
    tokens = np.concatenate(sequences)
    weights = np.ones(len(tokens), np.float32)
    examples = Examples(tokens=tokens, weights=weights, offsets=offsets, sequences_per_example=1)
    return PackedDataset(examples, packed_length, pad=0, seed=3, split_documents=False), sequences


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("qk_norm", [False, True])
def test_logits_of_a_packed_document_equal_logits_of_the_document_alone(backend: str, qk_norm: bool) -> None:
    model = make_decoder(qk_norm=qk_norm, max_position_embeddings=256)
    model.set_attention_backend(backend)
    data, sequences = _packed([5, 1, 130, 20, 40, 129, 3, 7], packed_length=200)
    batch = data.batch(0, len(data))
    seen = set()
    with torch.no_grad():
        packed = model.logits(model(batch.input_ids, batch.position_ids, batch.documents))
        for row, slots in enumerate(data.epoch_order(0)):
            for number, slot in enumerate(range(data.layout.offsets[slots], data.layout.offsets[slots + 1]), 1):
                sequence = int(data.layout.sequence[slot])
                alone = model.logits(model(torch.from_numpy(sequences[sequence][None, :-1]).long()))[0]
                torch.testing.assert_close(packed[row][batch.documents[row] == number], alone, atol=1e-5, rtol=1e-5)
                seen.add(sequence)
    assert len(seen) == len(sequences)
    assert int(batch.documents.max()) > 1


@settings(deadline=None, max_examples=10)
@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=6), backend=st.sampled_from(sorted(BACKENDS)))
def test_packing_changes_no_gradient(lengths: list[int], backend: str) -> None:
    model = make_decoder()
    model.set_attention_backend(backend)
    data, sequences = _packed(lengths, packed_length=32)
    batch = data.batch(0, len(data))
    hidden = model(batch.input_ids, batch.position_ids, batch.documents)
    hidden[batch.documents > 0].square().sum().backward()
    packed = gradients(model)
    for sequence in sequences:
        model(torch.from_numpy(sequence[None, :-1]).long()).square().sum().backward()
    largest = max(float(gradient.abs().max()) for gradient in packed.values())
    assert_same_gradients(packed, gradients(model), atol=1e-6 * largest, rtol=1e-4)


@settings(deadline=None, max_examples=12)
@given(position=st.integers(0, 149), backend=st.sampled_from(sorted(BACKENDS)))
def test_a_changed_token_changes_nothing_before_it(position: int, backend: str) -> None:
    model = make_decoder(max_position_embeddings=256)
    model.set_attention_backend(backend)
    tokens = random_tokens(1, 150)
    other = tokens.clone()
    other[0, position] = (other[0, position] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(tokens) - model(other))[0].abs().amax(-1)
    assert difference[:position].sum() == 0 or difference[:position].max() < 1e-6
    assert (difference[position:] > 1e-4).float().mean() > 0.9


def test_rotation_turns_each_pair_by_position_times_frequency() -> None:
    model = make_decoder(rope_theta=500.0)
    x = torch.randn(1, 1, 3, 8, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[0, 1, 17]])
    turned = rotate(x, *model.rope_cos_sin(positions))[0, 0]
    for t, position in enumerate([0, 1, 17]):
        for i in range(4):
            angle = position * 500.0 ** (-2 * i / 8)
            expected = complex(x[0, 0, t, i], x[0, 0, t, i + 4]) * complex(math.cos(angle), math.sin(angle))
            got = complex(turned[t, i], turned[t, i + 4])
            assert abs(got - expected) < 1e-5


def test_only_distances_between_positions_matter() -> None:
    model, tokens = make_decoder(), random_tokens(2, 20)
    positions = torch.arange(20).expand(2, 20)
    with torch.no_grad():
        plain, shifted = model(tokens), model(tokens, positions + 30)
        stretched = model(tokens, positions * 2)
    torch.testing.assert_close(model(tokens, positions), plain, atol=0, rtol=0)
    torch.testing.assert_close(shifted, plain, atol=1e-4, rtol=1e-4)
    assert (stretched - plain).abs().max() > 1e-2


def test_rms_norm_is_its_formula() -> None:
    norm = RMSNorm(16, eps=0.1)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 16))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    expected = [[v / math.sqrt(sum(u * u for u in row) / 16 + 0.1) * w for v, w in zip(row, norm.weight.tolist(), strict=True)]
                for row in x.tolist()]  # fmt: skip
    torch.testing.assert_close(norm(x), torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    norm = RMSNorm(64, eps=1e-6)
    x = (100 * torch.randn(4, 64, generator=torch.Generator().manual_seed(3))).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    model, tokens = make_decoder(dropout=0.3), random_tokens(2, 10)
    plain = make_decoder(dropout=0.0)

    def forward(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(tokens)

    assert torch.equal(forward(1), forward(2))
    assert torch.equal(forward(1), plain(tokens))
    model.train()
    assert torch.equal(forward(1), forward(1))
    assert not torch.equal(forward(1), forward(2))
    with eval_mode(model):
        assert torch.equal(forward(1), plain(tokens))
    assert model.training and all(block.training for block in model.blocks())


def test_the_mode_is_restored_after_an_error() -> None:
    model = make_decoder().train()
    with pytest.raises(RuntimeError), eval_mode(model):
        raise RuntimeError
    assert model.training


def test_initialisation_follows_the_seed_and_its_scales() -> None:
    first, same, other = (Decoder(make_config(hidden_size=128, num_hidden_layers=8), 500) for _ in range(3))
    torch.manual_seed(9)
    first.init_weights(4)
    torch.manual_seed(10)
    same.init_weights(4)
    other.init_weights(5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)
    for name, parameter in first.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert parameter.std().item() == pytest.approx(0.2 / 4 if writes else 0.2, rel=0.05), name
        assert abs(parameter.mean().item()) < 0.01, name


def test_bfloat16_stays_close_to_float32_and_gradients_stay_float32() -> None:
    model, tokens = make_decoder(qk_norm=True), random_tokens(4, 50)
    for backend in BACKENDS:
        model.set_attention_backend(backend)
        model.compute_dtype = torch.float32
        exact = model(tokens)
        exact.square().sum().backward()
        expected = gradients(model)
        model.compute_dtype = torch.bfloat16
        rounded = model(tokens)
        assert rounded.dtype == torch.bfloat16 and model.logits(rounded).dtype == torch.float32
        rounded.float().square().sum().backward()
        assert torch.linalg.vector_norm(rounded.float() - exact) / torch.linalg.vector_norm(exact) < 0.02
        for name, gradient in gradients(model).items():
            assert gradient.dtype == torch.float32, name
            assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.995, name


def test_tied_head_is_the_embedding_and_an_untied_one_is_not() -> None:
    tied, untied = make_decoder(tie_word_embeddings=True), make_decoder(tie_word_embeddings=False)
    assert tied.lm_head_weight is tied.embed_tokens.weight
    assert untied.lm_head is not None and untied.lm_head_weight is untied.lm_head.weight
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(untied.logits(hidden), hidden @ untied.lm_head.weight.t())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_keeps_the_state_of_the_generator_only_for_dropout(
    dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the state is a copy from the device in every layer."""
    read = []
    original = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: (read.append(True), original())[1])
    model = make_decoder(dropout=dropout).train()
    model.activation_checkpoint_every = 1
    model(random_tokens(2, 9)).pow(2).mean().backward()
    assert bool(read) == bool(dropout)


def test_uncompiled_passes_have_a_backend_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend of the pass is really the one that computes, and the other one is back afterwards."""
    called: list[str] = []

    def watched(name: str) -> Attention:
        attend = BACKENDS[name]

        def run(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
            called.append(name)
            return attend(q, k, v, documents)

        return run

    for name in ("sdpa", "reference"):
        monkeypatch.setitem(BACKENDS, name, watched(name))
    model, tokens = make_decoder().eval(), random_tokens(2, 20)
    model.set_attention_backend("sdpa")
    model.eager_attention = "reference"
    layers = len(model.blocks())
    with torch.no_grad():
        outside = model(tokens)
        with force_eager():
            inside = model(tokens)
            with force_eager():
                pass
            model(tokens)
        again = model(tokens)
        copied = model.with_weights(model.state_dict())
    assert called == ["sdpa"] * layers + ["reference"] * (2 * layers) + ["sdpa"] * layers
    assert torch.equal(outside, again)
    torch.testing.assert_close(inside, outside, atol=1e-5, rtol=1e-5)
    assert (copied.attention, copied.eager_attention) == ("sdpa", "reference")
