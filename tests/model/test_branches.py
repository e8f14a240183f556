"""Documents of a packed row that share their beginning: each is computed as if it stood alone, by every attention backend."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from fledge.autotune.compile import reset_compiler
from fledge.document_numbers import BRANCH, trunk
from fledge.model import segment_attention
from fledge.model.attention import BACKENDS, causal_document_mask, reference_attention
from fledge.model.cuda_attention import (
    FLEX_BLOCK,
    attention_metadata,
    flex_metadata,
    varlen,
    varlen_metadata,
)
from fledge.model.decoder import Decoder
from fledge.model.segment_attention import ON_CPU, QUERIES
from fledge.model.segments import BranchedSegments, segment_starts
from tests.support import varlen_on_cpu
from tests.support.decoders import assert_same_gradients, gradients, make_decoder, random_tokens

CPU = torch.device("cpu")
Tree = tuple[int, tuple[int, ...]]  # positions of a trunk and of its branches; without branches a document
TREES: list[list[Tree]] = [
    [(5, (3, 4)), (6, ()), (1, (1, 1, 7)), (4, (2, 9))],
    [(9, ()), (7, (1, 6)), (3, (4, 4))],
]


def numbers(rows: list[list[Tree]], length: int = 0) -> Tensor:
    """The documents [B, T] of rows of trees; what is left of a row is padding."""
    length = length or max(sum(size + sum(branches) for size, branches in row) for row in rows) + 2
    documents = torch.zeros(len(rows), length, dtype=torch.long)
    for filled, row in zip(documents, rows, strict=True):
        place = 0
        for number, (size, branches) in enumerate(row, 1):
            for branch, count in enumerate((size, *branches)):
                filled[place : place + count] = number + branch * BRANCH
                place += count
    return documents


def positions(documents: Tensor) -> Tensor:
    """Positions [B, T] that count up in each document, and go on from its trunk in a branch."""
    visible = causal_document_mask(documents, 0, documents.shape[1], CPU)[:, 0]
    return visible.sum(-1) - 1


def tensors(documents: Tensor, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values that require gradients."""
    generator, (B, T) = torch.Generator().manual_seed(0), documents.shape
    q, k, v = (torch.randn(B, n, T, 8, generator=generator) for n in (heads, kv_heads, kv_heads))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def with_gradients(out: Tensor, documents: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output outside padding, and the gradients of a sum of it."""
    kept = out * (documents > 0)[:, None, :, None]
    upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [kept.detach(), *torch.autograd.grad((kept * upstream).sum(), inputs)]


def test_a_position_attends_to_its_own_document_and_to_its_trunk() -> None:
    documents = numbers([[(2, (1, 2)), (1, ())]], 7)
    assert documents.tolist() == [[1, 1, 1 + BRANCH, 1 + 2 * BRANCH, 1 + 2 * BRANCH, 2, 0]]
    assert trunk(documents).tolist() == [[1, 1, 1, 1, 1, 2, 0]]
    expected = ["1......", "11.....", "111....", "11.1...", "11.11..", ".....1.", "......1"]
    mask = causal_document_mask(documents, 0, 7, CPU)[0, 0]
    assert ["".join("1" if seen else "." for seen in row) for row in mask.tolist()] == expected
    assert positions(documents).tolist() == [[0, 1, 2, 2, 3, 0, 0]]


@pytest.mark.parametrize("made_once", [False, True], ids=["documents", "metadata"])
@pytest.mark.parametrize("backend", sorted({*BACKENDS, *ON_CPU} - {"reference"}))
def test_each_backend_equals_the_reference_forward_and_backward(backend: str, made_once: bool) -> None:
    for rows in (TREES, [[(130, (40, 150)), (3, ())], [(200, (1, 90))]]):
        documents = numbers(rows)
        inputs = tensors(documents)
        B, T = documents.shape
        fourth = attention_metadata(backend, documents, B, T, CPU) if made_once else documents
        got = with_gradients({**BACKENDS, **ON_CPU}[backend](*inputs, fourth), documents, inputs)
        expected = with_gradients(reference_attention(*inputs, documents), documents, inputs)
        for left, right in zip(got, expected, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_longer_than_a_block_of_queries_equal_the_reference(dtype: torch.dtype) -> None:
    """Documents, trunks and branches of one, two and three blocks, and padding."""
    documents = numbers([[(2 * QUERIES + 60, ()), (QUERIES, (1, QUERIES + 1))], [(QUERIES + 3, (QUERIES, 7)), (5, ())]])
    inputs = tensors(documents)
    expected = with_gradients(reference_attention(*inputs, documents), documents, inputs)
    cast = tuple(x.detach().to(dtype).requires_grad_() for x in inputs)
    got = with_gradients(ON_CPU["segments"](*cast, documents).float(), documents, cast)
    for left, right in zip(got, expected, strict=True):
        error = (left.float() - right).norm() / right.norm()
        assert error < (1e-6 if dtype is torch.float32 else 1e-2)


def test_the_scores_of_a_long_document_are_never_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, scaled_scores = list[int](), segment_attention._scaled_scores

    def seen(*given: Tensor) -> Tensor:
        scores = scaled_scores(*given)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(segment_attention, "_scaled_scores", seen)
    documents = numbers([[(4 * QUERIES, ())]])
    inputs = tensors(documents)
    with_gradients(ON_CPU["segments"](*inputs, documents), documents, inputs)
    assert max(sizes) == 4 * QUERIES * 4 * QUERIES, "four heads, the queries of a block, all keys"
    assert len(sizes) == 2 * (4 + 1), "blocks of the document and its padding, forward and backward"


def test_segments_have_the_same_bits_each_time() -> None:
    documents = numbers([[(130, (40, 150)), (3, ())], [(200, (1, 90))]])
    inputs, threads = tensors(documents), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = (with_gradients(ON_CPU["segments"](*inputs, documents), documents, inputs) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_varlen_copies_the_keys_of_a_trunk_before_those_of_its_later_branches() -> None:
    assert varlen_on_cpu
    for rows in (TREES, [[(3, ()), (4, ())], [(2, (1, 1)), (5, ())]], [[(3, ())], [(4, ())]]):
        documents = numbers(rows)
        inputs, (B, T) = tensors(documents), documents.shape
        metadata = varlen_metadata(documents, B, T, CPU)
        got = with_gradients(varlen(*inputs, metadata), documents, inputs)
        expected = with_gradients(reference_attention(*inputs, documents), documents, inputs)
        for left, right in zip(got, expected, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    assert metadata.keys is None, "rows without branches need no copies"


TREE = st.tuples(st.integers(1, 90), st.lists(st.integers(1, 90), max_size=3).map(tuple))


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.lists(TREE, min_size=1, max_size=4), min_size=1, max_size=3))
def test_segments_hold_exactly_the_keys_that_their_queries_attend_to(rows: list[list[Tree]]) -> None:
    documents = numbers(rows)
    B, T = documents.shape
    found = segment_starts(documents)
    parts = found if isinstance(found, BranchedSegments) else BranchedSegments(found, found, torch.arange(B * T))
    assert len(parts.starts) == len(parts.key_starts) and parts.starts[-1] == B * T and parts.key_starts[-1] == len(parts.keys)
    visible = torch.zeros(B * T, B * T, dtype=torch.bool)
    for (first, stop), (key, end) in zip(_spans(parts.starts), _spans(parts.key_starts), strict=True):
        for query in range(first, stop):
            keys = parts.keys[key : end - (stop - 1 - query)]
            assert len(keys) == len(keys.unique())
            visible[query, keys] = True
    mask = causal_document_mask(documents, 0, T, CPU)[:, 0]
    assert torch.equal(visible, torch.block_diag(*mask.float()).bool())


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.lists(TREE, min_size=1, max_size=4), min_size=1, max_size=2))
def test_segments_in_bfloat16_equal_the_reference(rows: list[list[Tree]]) -> None:
    """Queries and keys before a block are computed with it, so that shapes repeat; nothing of them comes into a result."""
    documents = numbers(rows)
    inputs = tensors(documents)
    expected = with_gradients(reference_attention(*inputs, documents), documents, inputs)
    cast = tuple(x.detach().bfloat16().requires_grad_() for x in inputs)
    got = with_gradients(ON_CPU["segments"](*cast, documents).float(), documents, cast)
    for left, right in zip(got, expected, strict=True):
        assert (left.float() - right).norm() < 1.5e-2 * right.norm() + 2e-2  # a gradient of one position alone is 0


def test_documents_of_all_lengths_are_products_of_few_shapes() -> None:
    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.bmm.default:
                found.add(tuple(tuple(one.shape) for one in args))
            return func(*args, **(kwargs or {}))

    found: set[Any] = set()
    lengths = [(length, ()) for length in range(1, 129)]
    documents = numbers([lengths])
    cast = tuple(x.detach().bfloat16().requires_grad_() for x in tensors(documents))
    with Shapes():
        ON_CPU["segments"](*cast, documents)
    assert len(found) <= 2 * (8 + 3)  # two products of each padded length; the first documents have no room before them


def _spans(starts: Tensor) -> list[tuple[int, int]]:
    return list(zip(starts.tolist(), starts.tolist()[1:], strict=False))


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.lists(TREE, min_size=1, max_size=4), min_size=1, max_size=2))
def test_the_block_mask_of_flex_misses_no_visible_pair(rows: list[list[Tree]]) -> None:
    documents = numbers(rows)
    B, T = documents.shape
    mask, n = flex_metadata(documents, B, T, CPU).mask, -(-T // FLEX_BLOCK)
    pairs = torch.zeros(B, n * FLEX_BLOCK, n * FLEX_BLOCK, dtype=torch.bool)
    pairs[:, :T, :T] = causal_document_mask(documents, 0, T, CPU)[:, 0]
    by_block = pairs.view(B, n, FLEX_BLOCK, n, FLEX_BLOCK)
    assert not (by_block.any(4).any(2) & ~mask.to_dense()[:, 0].bool()).any()
    complete, counts, indices = by_block.all(4).all(2), mask.full_kv_num_blocks[:, 0], mask.full_kv_indices[:, 0]
    for b in range(B):
        for row in range(T // FLEX_BLOCK):
            assert complete[b, row, indices[b, row, : counts[b, row]].long()].all()


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_with_the_block_mask_equals_the_reference() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    documents = numbers([[(150, (40, 150)), (3, ())], [(200, (1, 90))]])
    q, k, v = (t.detach() for t in tensors(documents))
    mask = flex_metadata(documents, *documents.shape, CPU).mask
    got = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    expected = reference_attention(q, k, v, documents)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)  # pyright: ignore


@pytest.mark.parametrize("backend", ["reference", "sdpa", "blocked", "segments", "varlen"])
def test_the_hidden_states_of_a_branch_are_those_of_its_document_alone(backend: str) -> None:
    model, documents = make_decoder(), numbers(TREES)
    model.set_attention_backend(backend)
    tokens = random_tokens(*documents.shape)
    packed = model(tokens, positions(documents), documents)
    for row, numbers_of_row in enumerate(documents):
        for number in numbers_of_row.unique().tolist():
            seen = (numbers_of_row == number) | (numbers_of_row == trunk(number))
            alone = model(tokens[row][seen][None])[0]
            if number:
                torch.testing.assert_close(packed[row][seen][-1], alone[-1], atol=1e-5, rtol=1e-5)
                own = numbers_of_row == number
                torch.testing.assert_close(packed[row][own], alone[-int(own.sum()) :], atol=1e-5, rtol=1e-5)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    reset_compiler()
    counters.clear()
    yield
    reset_compiler()


def _learn(model: Decoder, documents: Tensor) -> dict[str, Tensor]:
    hidden = model(random_tokens(*documents.shape), positions(documents), documents, segment_starts(documents))
    (hidden * (documents > 0)[:, :, None]).square().mean().backward()
    return gradients(model)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["blocked", "sdpa", "segments", "varlen"])
def test_compiled_code_serves_every_number_of_branches(backend: str) -> None:
    model, plain = make_decoder().train(), make_decoder().train()
    model.set_attention_backend(backend)
    plain.set_attention_backend("reference")
    for block in model.blocks():
        block.compile(dynamic=False, backend="aot_eager")
    for rows in (TREES, [[(2, (1, 3)), (8, (5, 5)), (1, (6, 1))], [(9, (8, 9))]], [[(3, (1, 2))], [(30, ())]]):
        documents = numbers(rows, 40)
        assert_same_gradients(_learn(model, documents), _learn(plain, documents), atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
