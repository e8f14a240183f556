"""Every attention backend is the written-out definition, forward and backward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fledge.model.attention import (
    BACKENDS,
    QUERY_BLOCK,
    BlockedMetadata,
    avoid_cudnn_attention,
    causal_document_mask,
    reference_attention,
    sdpa,
    sdpa_mask,
)
from fledge.model.cuda_attention import (
    FLEX_BLOCK,
    ON_CUDA,
    attention_metadata,
    backend,
    flex_metadata,
    unavailable,
    varlen_metadata,
)
from fledge.model.segment_attention import ON_CPU
from fledge.model.segments import segment_room, segment_starts
from tests.support.decoders import assert_same_gradients, gradients, make_decoder, random_tokens

FAST = sorted(set(BACKENDS) - {"reference"} | set(ON_CPU))


def _inputs(length: int, heads: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    q = torch.randn(2, heads, length, 8)
    k, v = torch.randn(2, kv_heads, length, 8), torch.randn(2, kv_heads, length, 8)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def _documents(length: int, cuts: tuple[int, ...] = (3, 100, 129)) -> Tensor:
    """Document numbers from 1 in two rows with different boundaries; the second row ends in padding (0)."""
    positions = torch.arange(length)
    first = 1 + sum((positions >= cut).long() for cut in cuts)
    second = 1 + sum((positions >= cut + 2).long() for cut in cuts)
    second[length - length // 5 :] = 0
    return torch.stack((torch.as_tensor(first), torch.as_tensor(second)))


def _value_and_gradients(backend: str, tensors: tuple[Tensor, ...], documents: Tensor | None) -> list[Tensor]:
    q, k, v = tensors
    out = {**BACKENDS, **ON_CPU}[backend](q, k, v, documents)
    upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), (q, k, v))]


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("length", [1, 7, 129, 256, 300])
@pytest.mark.parametrize("backend", FAST)
def test_each_backend_equals_the_reference_forward_and_backward(backend: str, length: int, packed: bool) -> None:
    documents = _documents(length) if packed else None
    for heads, kv_heads in ((4, 2), (4, 4), (6, 1)):
        tensors = _inputs(length, heads, kv_heads)
        expected = _value_and_gradients("reference", tensors, documents)
        got = _value_and_gradients(backend, tensors, documents)
        for name, left, right in zip(("out", "q", "k", "v"), got, expected, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_reference_is_the_published_formula_for_each_query() -> None:
    q, k, v = (t.detach() for t in _inputs(5, 4, 2))
    out = reference_attention(q, k, v, None)
    for head in range(4):
        for t in range(5):
            scores = [float(q[0, head, t] @ k[0, head // 2, s]) / math.sqrt(8) for s in range(t + 1)]
            total = sum(map(math.exp, scores))
            expected = sum(math.exp(score) / total * v[0, head // 2, s] for s, score in enumerate(scores))
            torch.testing.assert_close(out[0, head, t], expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=15)
@given(data=st.data(), length=st.integers(1, 2 * QUERY_BLOCK + 3), backend=st.sampled_from(FAST))
def test_no_backend_sees_later_positions_or_other_documents(data: st.DataObject, length: int, backend: str) -> None:
    q, k, v = (t.detach() for t in _inputs(length, 2, 1))
    cut = data.draw(st.integers(0, length))
    changed = data.draw(st.integers(0, length - 1))
    documents = (1 + (torch.arange(length) >= cut).long()).expand(2, length)
    before = {**BACKENDS, **ON_CPU}[backend](q, k, v, documents)
    k[:, :, changed] += 3.0
    v[:, :, changed] -= 5.0
    moved = ({**BACKENDS, **ON_CPU}[backend](q, k, v, documents) - before).abs().amax(dim=(0, 1, 3)) > 1e-6
    positions = torch.arange(length)
    may_see = (positions >= changed) & (documents[0] == documents[0, changed])
    assert not moved[~may_see].any()
    assert moved[changed]


def test_the_mask_of_a_block_of_queries_is_causal_inside_each_document() -> None:
    documents = torch.tensor([[1, 1, 2, 2]])
    expected = [[False, False, True, False], [False, False, True, True]]
    assert causal_document_mask(documents, 2, 4, torch.device("cpu"))[0, 0].tolist() == expected
    assert causal_document_mask(None, 1, 3, torch.device("cpu")).tolist() == [[True, True, False], [True, True, True]]


# -- what exists on CUDA only: its preparation is tested everywhere, its kernels where there is a device ---------------

CPU = torch.device("cpu")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@settings(deadline=None, max_examples=25)
@given(
    length=st.integers(1, 3 * FLEX_BLOCK + 5),
    cuts=st.lists(st.integers(1, 3 * FLEX_BLOCK), max_size=6),
    padding=st.integers(0, 200),
)
def test_the_block_mask_lists_every_block_that_holds_a_visible_pair_and_few_others(
    length: int, cuts: list[int], padding: int
) -> None:
    positions = torch.arange(length)
    documents = torch.as_tensor(1 + sum((positions >= cut).long() for cut in cuts)).repeat(2, length if not cuts else 1)
    documents[1, length - min(length, padding) :] = 0
    mask = flex_metadata(documents, 2, length, CPU).mask
    n = -(-length // FLEX_BLOCK)
    pairs = torch.zeros(2, n * FLEX_BLOCK, n * FLEX_BLOCK, dtype=torch.bool)
    pairs[:, :length, :length] = causal_document_mask(documents, 0, length, CPU)[:, 0]
    by_block = pairs.view(2, n, FLEX_BLOCK, n, FLEX_BLOCK)
    needed, complete = by_block.any(4).any(2), by_block.all(4).all(2)
    listed = mask.to_dense()[:, 0].bool()
    assert torch.equal(listed, needed)
    assert not (_whole_blocks(mask, n) & ~complete)[:, : length // FLEX_BLOCK].any()


def _whole_blocks(mask: object, n: int) -> Tensor:
    """The blocks that the kernel computes without looking at the mask."""
    counts, indices = mask.full_kv_num_blocks[:, 0], mask.full_kv_indices[:, 0]  # type: ignore[attr-defined]
    chosen = torch.zeros(2, n, n, dtype=torch.bool)
    for b in range(2):
        for row in range(n):
            chosen[b, row, indices[b, row, : counts[b, row]].long()] = True
    return chosen


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_flex_attention_with_the_block_mask_equals_the_reference(packed: bool) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (t.detach() for t in _inputs(300, 4, 2))
    documents = _documents(300) if packed else None
    mask = flex_metadata(documents, 2, 300, CPU).mask
    torch.testing.assert_close(
        flex_attention(q, k, v, block_mask=mask, enable_gqa=True), reference_attention(q, k, v, documents), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("length", [1, 7, 129, 300])
def test_attention_inside_each_varlen_segment_equals_the_reference(length: int) -> None:
    q, k, v = (t.detach() for t in _inputs(length, 4, 2))
    for documents in (_documents(length), None):
        starts, longest, *_ = varlen_metadata(documents, 2, length, CPU)
        assert starts.dtype == torch.int32 and longest == length and starts[-1] == 2 * length
        flat = [x.transpose(1, 2).reshape(2 * length, -1, 8) for x in (q, k, v)]
        segments = []
        for start, stop in zip(starts.tolist(), starts.tolist()[1:], strict=False):
            if stop > start:
                one = (x[start:stop].transpose(0, 1)[None] for x in flat)
                segments.append(reference_attention(*one, None)[0].transpose(0, 1))
        got = torch.cat(segments).view(2, length, 4, 8).transpose(1, 2)
        torch.testing.assert_close(got, reference_attention(q, k, v, documents), atol=1e-5, rtol=1e-5)


def test_the_number_of_varlen_segments_is_rounded_up_to_few_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for cuts in range(0, 100, 7):
        begins = torch.zeros(4, 512, dtype=torch.long)
        begins[:, torch.randperm(511, generator=generator)[:cuts] + 1] = 1
        sizes.add(len(varlen_metadata(1 + begins.cumsum(1), 4, 512, CPU).starts) - 1)
    assert sizes <= {64, 96, 128, 192, 256, 384, 512}


@given(segments=st.integers(1, 10_000))
def test_room_for_segments_wastes_at_most_half_and_has_two_sizes_an_octave(segments: int) -> None:
    room = segment_room(segments)
    assert segments <= room <= max(64, 1.5 * segments)
    assert room % 32 == 0 and (room // 32).bit_count() <= 2


def test_starts_that_came_with_the_batch_are_used() -> None:
    documents = _documents(40)
    starts = segment_starts(documents)
    assert varlen_metadata(documents, 2, 40, CPU, starts).starts is starts
    assert torch.equal(varlen_metadata(documents, 2, 40, CPU).starts, starts)


@pytest.mark.parametrize("backend", ["sdpa", "blocked"])
@pytest.mark.parametrize("length", [7, 300])
def test_the_mask_made_once_for_all_layers_gives_the_bits_of_the_documents(length: int, backend: str) -> None:
    tensors, documents = _inputs(length, 4, 2), _documents(length)
    mask = attention_metadata(backend, documents, 2, length, CPU)
    made = mask.added if isinstance(mask, BlockedMetadata) else mask
    assert made.shape == (2, 1, length, length) and attention_metadata(backend, None, 2, length, CPU) is None
    upstream = torch.linspace(-1, 1, 2 * 4 * length * 8).view(2, 4, length, 8)
    results = []
    for fourth in (documents, mask):
        out = BACKENDS[backend](*tensors, fourth)
        results.append([out.detach(), *torch.autograd.grad(out, tensors, upstream)])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_layers_share_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks, sdpa = make_decoder(num_hidden_layers=3), [], BACKENDS["sdpa"]
    monkeypatch.setitem(BACKENDS, "sdpa", lambda q, k, v, mask: (masks.append(mask), sdpa(q, k, v, mask))[1])
    model(random_tokens(2, 40), None, _documents(40))
    assert len(masks) == 3 and masks[0].dim() == 4 and all(mask is masks[0] for mask in masks)


def test_cudnn_attention_is_off_once_a_model_computes_on_a_gpu() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    avoid_cudnn_attention(CPU)
    assert torch.backends.cuda.cudnn_sdp_enabled(), "a CPU has no reason to touch the setting"
    try:
        avoid_cudnn_attention(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_uncompiled_flex_equals_sdpa_on_packed_documents() -> None:
    model, tokens = make_decoder(), random_tokens(2, 40)
    documents = (1 + (torch.arange(40) >= 23).long()).expand(2, 40)
    expected = model(tokens, None, documents)
    model.set_attention_backend("flex")
    torch.testing.assert_close(model(tokens, None, documents), expected)


def test_a_backend_that_cannot_train_gives_the_reason() -> None:
    assert all("CUDA only" in str(unavailable(name, "cpu", torch.bfloat16, True)) for name in ON_CUDA)
    assert "CPU" in str(unavailable("segments", "cuda", torch.float32, True))
    assert unavailable("segments", "cpu", torch.float32, True) is None
    assert "16" in str(unavailable("varlen", "cuda", torch.float32, True))
    assert "compile" in str(unavailable("flex", "cuda", torch.bfloat16, False))
    assert all(unavailable(name, "cuda", torch.bfloat16, True) is None for name in (*ON_CUDA, *BACKENDS))
    assert "8.0" in str(unavailable("varlen", "cuda", torch.float16, True, (7, 5)))
    assert unavailable("varlen", "cuda", torch.float16, True, (8, 0)) is None


@on_cuda
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("length", [129, 512])
@pytest.mark.parametrize(
    ("name", "dtype"), [("flex", "bfloat16"), ("flex", "float32"), ("varlen", "bfloat16"), ("sdpa", "bfloat16")]
)
def test_each_cuda_backend_equals_the_reference(name: str, dtype: str, length: int, packed: bool) -> None:
    """The bound of bf16 is 2 % of the norm: its own rounding of three significant digits, summed over keys."""
    wide = getattr(torch, dtype)
    documents = _documents(length).cuda() if packed else None
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, length, 64, device="cuda", dtype=wide).requires_grad_() for heads in (4, 2, 2)]
    function = torch.compile(backend(name), dynamic=False) if name == "flex" else backend(name)
    metadata = attention_metadata(name, documents, 2, length, torch.device("cuda"), dtype=wide)
    out, expected = function(*tensors, metadata), reference_attention(*tensors, documents)
    upstream = torch.randn_like(out)
    bound = 2e-2 if wide == torch.bfloat16 else 2e-3
    got = [out.detach(), *torch.autograd.grad(out, tensors, upstream)]
    for left, right in zip(got, [expected.detach(), *torch.autograd.grad(expected, tensors, upstream)], strict=True):
        assert (left - right).float().norm() <= bound * right.float().norm()


@on_cuda
@pytest.mark.slow
def test_a_compiled_decoder_gets_equal_gradients_from_every_cuda_backend() -> None:
    documents = (1 + (torch.arange(60) >= 23).long()).expand(2, 60).cuda()
    gradients_by_backend = {}
    for name in ("sdpa", *ON_CUDA):
        model = make_decoder().cuda()
        model.set_attention_backend(name)
        model.compute_dtype = torch.bfloat16
        for block in model.blocks():
            block.compile(dynamic=False)
        model(random_tokens(2, 60).cuda(), None, documents).float().pow(2).mean().backward()
        gradients_by_backend[name] = gradients(model)
    for name in ON_CUDA:
        assert_same_gradients(gradients_by_backend[name], gradients_by_backend["sdpa"], atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_on_a_cpu_keep_one_mask_for_the_backward_pass(dtype: torch.dtype) -> None:
    documents = torch.tensor([[0] * 10 + [1] * 22, [0] * 32])
    mask = sdpa_mask(documents, dtype)
    assert mask is not None and mask.dtype == dtype
    kept: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() == mask.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    x = torch.randn(2, 4, 32, 4, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for _ in range(3):
            x = sdpa(x, x, x, mask)
        assert kept == {mask.untyped_storage().data_ptr()}
