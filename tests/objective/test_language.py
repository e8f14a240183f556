"""Next-token prediction: sums inside, one division outside, so the micro-batch is nobody's business."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fledge.data import Batch, PackedDataset
from fledge.model.decoder import Decoder
from fledge.model.linear_cross_entropy import CHUNK, _softmax_grad_chunk
from fledge.objective import CausalLMObjective, Ratio
from tests.support.decoders import VOCAB, assert_same_gradients, gradients, make_decoder
from tests.support.packed import Sequence, pack, random_sequences

LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]


def _eight_rows() -> tuple[list[Sequence], PackedDataset]:
    sequences = random_sequences(LENGTHS)
    data = pack(sequences, packed_length=40)
    assert len(data) == 8
    filled = {data.batch(row, 1).num_tokens for row in range(8)}
    assert len(filled) > 3 and min(filled) < 40  # unequal lengths, and padding
    return sequences, data


def _window(model: Decoder, objective: CausalLMObjective, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The gradients of an accumulation window, divided once by its weight."""
    for batch in batches:
        objective(model, batch).loss.backward()
    total = sum(objective.normalizer(batch) for batch in batches)
    return {name: gradient / total for name, gradient in gradients(model).items()}


def _plain_window(model: Decoder, sequences: list[Sequence], smoothing: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the sequences one at a time, without packing, by the plain formula."""
    loss, total = torch.zeros(()), torch.zeros(())
    for sequence in sequences:
        logits = model.logits(model(sequence.tokens[None, :-1]))[0]
        each = F.cross_entropy(logits, sequence.tokens[1:], reduction="none", label_smoothing=smoothing)
        loss, total = loss + (each * sequence.weights[1:]).sum(), total + sequence.weights[1:].sum()
    (loss / total).backward()
    return (loss / total).detach(), gradients(model)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kernel", [None, _softmax_grad_chunk], ids=["own", "passed"])
def test_every_split_into_micro_batches_gives_the_gradient_of_the_whole_window(smoothing: float, kernel: object) -> None:
    sequences, data = _eight_rows()
    model, objective = make_decoder(), CausalLMObjective(smoothing, kernel)  # type: ignore[arg-type]
    expected = _plain_window(model, sequences, smoothing)[1]
    for micro in (8, 1, 2):
        batches = [data.batch(row, micro) for row in range(0, 8, micro)]
        assert_same_gradients(_window(model, objective, batches), expected, atol=1e-6, rtol=1e-5)


def test_the_mean_of_micro_batch_means_differs_from_the_loss() -> None:
    _, data = _eight_rows()
    model, objective = make_decoder(), CausalLMObjective()
    expected = _window(model, objective, [data.batch(0, 8)])
    for row in range(8):
        batch = data.batch(row, 1)
        (objective(model, batch).loss / objective.normalizer(batch) / 8).backward()
    means = gradients(model)
    assert max(float((expected[name] - means[name]).abs().max()) for name in expected) > 1e-4


def test_a_partial_last_window_divides_by_what_is_in_it() -> None:
    sequences, data = _eight_rows()
    model, objective = make_decoder(), CausalLMObjective()
    batches = [data.batch(row, 3, stop=8) for row in (0, 3, 6)]  # the last row of the last batch is empty
    assert_same_gradients(_window(model, objective, batches), _plain_window(model, sequences, 0.0)[1], atol=1e-6, rtol=1e-5)


def test_an_empty_micro_batch_adds_zero_and_can_be_differentiated() -> None:
    _, data = _eight_rows()
    model, empty = make_decoder(), data.batch(8, 2, stop=8)
    outcome = CausalLMObjective()(model, empty)
    outcome.loss.backward()
    assert outcome.loss.item() == 0 and CausalLMObjective().normalizer(empty) == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_the_loss_is_a_sum_and_equals_the_plain_one() -> None:
    sequences, data = _eight_rows()
    model = make_decoder()
    for smoothing in (0.0, 0.3):
        objective, batch = CausalLMObjective(smoothing), data.batch(0, 8)
        mean = objective(model, batch).loss / objective.normalizer(batch)
        torch.testing.assert_close(mean, _plain_window(model, sequences, smoothing)[0], atol=1e-5, rtol=1e-5)
    assert batch.weight == pytest.approx(sum(float(s.weights[1:].sum()) for s in sequences), rel=1e-6)


def test_evaluation_equals_the_plain_computation() -> None:
    sequences = random_sequences([90] * 30)
    data = pack(sequences, packed_length=200)
    model = make_decoder(max_position_embeddings=200)
    batch = data.batch(0, len(data))
    assert batch.num_target_tokens > 2 * CHUNK
    nll, correct, total, num_bytes = 0.0, 0.0, 0.0, 0.0
    token_bytes = torch.arange(VOCAB) % 5 + 1.0
    with torch.no_grad():
        for sequence in sequences:
            logits, weights = model.logits(model(sequence.tokens[None, :-1]))[0].double(), sequence.weights[1:].double()
            nll += float((F.cross_entropy(logits, sequence.tokens[1:], reduction="none") * weights).sum())
            correct += float(((logits.argmax(-1) == sequence.tokens[1:]) * weights).sum())
            total += float(weights.sum())
            num_bytes += float((token_bytes[sequence.tokens[1:]] * weights).sum())
    metrics = CausalLMObjective(0.3, token_bytes=token_bytes).evaluate(model, batch)  # an evaluation is never smoothed
    assert metrics["loss"] == Ratio(pytest.approx(nll, rel=1e-5), pytest.approx(total, rel=1e-5))
    values = {name: ratio.value for name, ratio in metrics.items()}
    expected = {
        "loss": nll / total,
        "perplexity": math.exp(nll / total),
        "token_accuracy": correct / total,
        "tokens": int(total),
        "bits_per_byte": nll / math.log(2) / num_bytes,
    }
    assert values == pytest.approx(expected, rel=1e-5) and list(values) == list(expected)
    assert isinstance(values["tokens"], int) and 0 < correct < total
    assert "bits_per_byte" not in CausalLMObjective().evaluate(model, batch)


def test_evaluation_switches_dropout_off_and_training_on_again() -> None:
    _, data = _eight_rows()
    batch = data.batch(0, 8)
    model = make_decoder(dropout=0.5).train()
    assert CausalLMObjective().evaluate(model, batch) == CausalLMObjective().evaluate(make_decoder(), batch)
    assert model.training and not any(p.grad is not None for p in model.parameters())


def test_evaluation_of_an_empty_batch_adds_nothing() -> None:
    _, data = _eight_rows()
    empty, batch = data.batch(8, 1, stop=8), data.batch(0, 4)
    objective, model = CausalLMObjective(token_bytes=torch.ones(VOCAB)), make_decoder()
    nothing, metrics = objective.evaluate(model, empty), objective.evaluate(model, batch)
    assert nothing["loss"] == Ratio(0.0, 0.0) and nothing["bits_per_byte"].count == 0.0
    assert {name: ratio + nothing[name] for name, ratio in metrics.items()} == {
        **metrics,
        "tokens": replace(metrics["tokens"], count=2.0),
    }
    assert batch.sequences_per_example == empty.sequences_per_example == 1


def test_a_few_steps_learn_the_next_token_and_not_its_neighbours() -> None:
    model = make_decoder(vocab=10, initializer_range=0.05).train()
    cycle = torch.arange(61) * 3 % 10  # the next token is always three more
    data = pack([Sequence(cycle[i : i + 31], torch.ones(31)) for i in range(10)], packed_length=60)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        batch = data.batch(0, len(data))
        (CausalLMObjective()(model, batch).loss / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert CausalLMObjective().evaluate(model, batch)["token_accuracy"].value > 0.95
    with torch.no_grad():
        logits = model.eval().logits(model(cycle[None]))[0]
    losses = [float(F.cross_entropy(logits[: 61 - offset], cycle[offset:])) for offset in (0, 1, 2)]
    assert losses[1] < 0.3 < min(losses[0], losses[2])
