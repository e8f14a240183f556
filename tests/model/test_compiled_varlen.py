"""Compiled `varlen` on CPU kernels: one graph for every number of documents, with the values of plain attention."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fledge.autotune.compile import reset_compiler
from fledge.model.decoder import Decoder
from fledge.model.segments import segment_starts
from tests.support import varlen_on_cpu
from tests.support.decoders import assert_same_gradients, gradients, make_decoder, random_tokens

ROWS, LENGTH = 4, 48
MIXTURE: dict[str, Any] = {"moe": {"num_experts": 4, "num_experts_per_tok": 2}}
NUMBERS_OF_DOCUMENTS = (4, 70, 97, 130, 180, 4)  # segments in rooms of 64, 96, 128, 192 and 64: four sizes


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    assert varlen_on_cpu
    reset_compiler()
    counters.clear()
    yield
    reset_compiler()


def documents_of(number: int) -> Tensor:
    """So many documents in ROWS rows, numbered from 1 in each row; the last row ends with padding."""
    generator = torch.Generator().manual_seed(number)
    begins = torch.zeros(ROWS * LENGTH, dtype=torch.long)
    inside = torch.tensor([place for place in range(ROWS * LENGTH) if place % LENGTH])
    begins[inside[torch.randperm(len(inside), generator=generator)[: number - ROWS]]] = 1
    documents = 1 + begins.view(ROWS, LENGTH).cumsum(1)
    documents[-1, -5:] = 0
    return documents


def compiled(model: Decoder, every: int = 0) -> Decoder:
    """The model in training with `varlen`, its blocks compiled as `compile_blocks` does it, but for the code generator."""
    model.set_attention_backend("varlen")
    model.activation_checkpoint_every = every
    for block in model.train().blocks():
        block.compile(dynamic=False, backend="aot_eager")
    return model


def learn(model: Decoder, documents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A number that depends on all hidden states outside padding, and its gradients."""
    tokens, starts = random_tokens(ROWS, LENGTH), segment_starts(documents)
    hidden = model(tokens, None, documents, starts)
    loss = (hidden * (documents > 0)[:, :, None]).square().mean()
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("every", [0, 1])
def test_a_new_number_of_documents_neither_compiles_again_nor_changes_values(every: int) -> None:
    plain = make_decoder().train()
    plain.set_attention_backend("reference")
    model = compiled(make_decoder(), every)
    rooms = set()
    for number in NUMBERS_OF_DOCUMENTS:
        documents = documents_of(number)
        rooms.add(len(segment_starts(documents)))
        (loss, got), (expected_loss, expected) = learn(model, documents), learn(plain, documents)
        torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
        assert_same_gradients(got, expected, atol=1e-5, rtol=1e-4)
    assert len(rooms) == 4
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_rows_without_documents_are_served_by_the_same_code() -> None:
    model, tokens = compiled(make_decoder()), random_tokens(ROWS, LENGTH)
    learn(model, documents_of(70))
    model(tokens).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("attention", ["sdpa", "blocked", "segments", "varlen"])
@pytest.mark.parametrize("changes", [{}, MIXTURE], ids=["dense", "mixture"])
def test_a_block_is_one_graph_whatever_its_attention(attention: str, changes: dict[str, Any]) -> None:
    model = compiled(make_decoder(qk_norm=True, **changes))
    model.set_attention_backend(attention)
    learn(model, documents_of(70))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_sizes_that_are_not_marked_would_be_compiled_for_each_room() -> None:
    """The tests above can fail: the same tensors without a mark are compiled once for each size."""
    from torch.nn.attention.varlen import varlen_attn

    def attend(x: Tensor, starts: Tensor) -> Any:
        return varlen_attn(x, x, x, starts, starts, LENGTH, LENGTH)

    unmarked = torch.compile(attend, dynamic=False, backend="eager")
    x = torch.randn(ROWS * LENGTH, 4, 8)
    for number in NUMBERS_OF_DOCUMENTS:
        unmarked(x, segment_starts(documents_of(number)))
    assert counters["stats"]["unique_graphs"] == 4
