"""Compiled parts of training give the values of the uncompiled ones."""

import pytest
import torch

from fledge.model.linear_cross_entropy import _softmax_grad_chunk, cross_entropy
from tests.support.decoders import assert_same_gradients, gradients, make_decoder, random_tokens


@pytest.mark.slow
def test_compiled_head_and_blocks_equal_the_eager_ones() -> None:
    model, tokens = make_decoder(qk_norm=True), random_tokens(2, 40)
    model.set_attention_backend("blocked")
    documents = (1 + (torch.arange(40) >= 23).long()).expand(2, 40)
    targets, weights = random_tokens(80, seed=1), torch.linspace(0, 1, 80)
    losses = []

    def backward(kernel: object) -> dict[str, torch.Tensor]:
        hidden = model(tokens, None, documents).flatten(0, 1)
        loss = cross_entropy(hidden, model.lm_head_weight, targets, weights, smoothing=0.1, kernel=kernel)  # type: ignore[arg-type]
        loss.backward()
        losses.append(loss.detach())
        return gradients(model)

    eager = backward(None)
    for block in model.blocks():
        block.compile(dynamic=False)
    compiled = backward(torch.compile(_softmax_grad_chunk, dynamic=False))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
    assert_same_gradients(compiled, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_one_compiled_graph_serves_all_layers_partial_batches_checkpointing_and_pairs() -> None:
    import torch._dynamo
    from torch._dynamo.utils import counters

    from fledge.autotune.autotune import autotune, head_kernel, warm_up
    from fledge.model.eager import force_eager
    from fledge.objective import CausalLMObjective
    from fledge.recipe.schema import RuntimeConfig
    from tests.support.packed import dpo, pack, pack_pairs, random_pairs, random_sequences

    data, pairs = pack(random_sequences([20] * 40), 48), pack_pairs(random_pairs(12))
    model = make_decoder().train()
    torch._dynamo.reset()
    counters.clear()
    config = RuntimeConfig(device="cpu", threads=1, compile=True, attention="blocked", precision="fp32")
    make = lambda kernel: CausalLMObjective(0.0, kernel)  # noqa: E731
    decision = autotune(config, model, data.batch(0, 3), make, 1)
    assert float(decision.measurements["compile_seconds"]) > 0
    decision.apply(model)
    objective = CausalLMObjective(0.0, head_kernel(decision))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2  # the block and the head's chunk
    for batch in (data.batch(0, 3), data.batch(0, 3, 1), data.batch(3, 3)):  # the second has empty rows
        objective(model, batch).loss.backward()
    model.zero_grad()
    model.eager_attention = "segments"
    with force_eager(), torch.no_grad():
        model(data.batch(0, 2).input_ids)  # a shape of validation
    dpo(torch.zeros(12, 2))(model, pairs.batch(0, 3)).loss.backward()
    model.zero_grad()
    objective(model, data.batch(0, 3)).loss.backward()
    kept = gradients(model)
    model.activation_checkpoint_every = 1
    objective(model, data.batch(0, 3)).loss.backward()
    assert_same_gradients(gradients(model), kept, atol=1e-6)
    assert warm_up(decision, model, data.batch(0, 3), make) < float(decision.measurements["compile_seconds"])
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_a_stage_that_compiles_measures_the_attention_of_its_uncompiled_passes() -> None:
    from fledge.autotune.autotune import autotune
    from fledge.objective import CausalLMObjective
    from fledge.recipe.schema import RuntimeConfig
    from tests.support.packed import pack, random_sequences

    data, model = pack(random_sequences([20] * 40), 48), make_decoder()
    config = RuntimeConfig(device="cpu", threads=1, compile=True, precision="fp32")
    decision = autotune(config, model, data.batch(0, 3), lambda kernel: CausalLMObjective(0.0, kernel), 1)
    seconds = {mode: {} for mode in ("plain", "compiled")}
    for name, value in decision.measurements.items():
        match name.split("_"):
            case ["attention", backend, mode] if mode in seconds:
                seconds[mode][backend] = value
    best = {mode: min(found, key=lambda name: float(found[name])) for mode, found in seconds.items()}
    assert decision.attention == best["compiled"]
    assert (decision.eager_attention or decision.attention) == best["plain"]
    assert (model.attention, model.eager_attention) == (decision.attention, decision.eager_attention)


@pytest.mark.slow
def test_flex_attention_compiled_for_a_cpu_accepts_new_documents_without_recompiling() -> None:
    """Forward only, because flex attention has no backward pass on a CPU."""
    from torch._dynamo.utils import counters

    from fledge.model.attention import reference_attention
    from fledge.model.cuda_attention import flex, flex_metadata

    compiled = torch.compile(flex, dynamic=False)
    counters.clear()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for cut in (40, 129, 200):
            q, k, v = (torch.randn(2, heads, 300, 16, generator=generator) for heads in (4, 2, 2))
            documents = (1 + (torch.arange(300) >= cut).long()).repeat(2, 1)
            documents[1, 250:] = 0
            got = compiled(q, k, v, flex_metadata(documents, 2, 300, q.device))
            torch.testing.assert_close(got, reference_attention(q, k, v, documents), atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
