"""What training compiles gives what it gives uncompiled."""

import pytest
import torch

from fledge.model.head import _loss_chunk, cross_entropy

from .conftest import assert_same_gradients, gradients, make_decoder, random_tokens


@pytest.mark.slow
def test_compiled_head_and_blocks_equal_the_eager_ones() -> None:
    model, tokens = make_decoder(qk_norm=True), random_tokens(2, 40)
    model.use_attention("blocked")
    documents = (1 + (torch.arange(40) >= 23).long()).expand(2, 40)
    targets, weights = random_tokens(80, seed=1), torch.linspace(0, 1, 80)
    losses = []

    def backward(kernel: object) -> dict[str, torch.Tensor]:
        hidden = model(tokens, None, documents).flatten(0, 1)
        loss = cross_entropy(hidden, model.head_weight, targets, weights, 0.1, kernel)  # type: ignore[arg-type]
        loss.backward()
        losses.append(loss.detach())
        return gradients(model)

    eager = backward(None)
    for block in model.blocks():
        block.compile(dynamic=False)
    compiled = backward(torch.compile(_loss_chunk, dynamic=False))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
    assert_same_gradients(compiled, eager, atol=1e-4, rtol=1e-4)
