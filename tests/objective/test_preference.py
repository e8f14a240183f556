"""DPO on packed pairs is DPO on padded pairs, by the formula."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.data import Batch
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, sequence_log_probabilities
from fledge.objective.base import CORRELATED, Ratio, with_derived
from fledge.objective.preference import by_pair, chosen_only, compute_ref_log_probs
from tests.support.decoders import VOCAB, assert_same_gradients, gradients, make_decoder
from tests.support.packed import Pair, dpo, pack, pack_pairs, random_pairs, random_sequences

CPU = torch.device("cpu")
PAIRS = random_pairs(7)


def _whole(pairs: list[Pair]) -> Batch:
    data = pack_pairs(pairs)
    batch = data.batch(0, len(data))
    assert 1 < len(data) < len(pairs) and int(batch.documents.max()) > 2  # several rows, several pairs in a row
    assert sorted(batch.examples) == list(range(len(pairs))) and list(batch.examples) != list(range(len(pairs)))
    return batch


def _padded_log_probabilities(model: Decoder, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """The sum of log-probabilities of each completion, computed as in TRL: one row each, padded on the right."""
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens, mask = torch.zeros(len(prompts), longest, dtype=torch.long), torch.zeros(len(prompts), longest)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        mask[row, len(prompt) : len(prompt) + len(answer)] = 1
    logps = (model(tokens) @ model.lm_head_weight.t()).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return (logps * mask[:, 1:]).sum(-1)


def _plain(policy: Decoder, reference: Decoder, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pc, pr, rc, rr: the four summed log-probabilities of each pair."""
    prompts, chosen, rejected = ([getattr(p, name) for p in pairs] for name in ("prompt", "chosen", "rejected"))
    with torch.no_grad():
        rc, rr = (_padded_log_probabilities(reference, prompts, answers) for answers in (chosen, rejected))
    pc, pr = (_padded_log_probabilities(policy, prompts, answers) for answers in (chosen, rejected))
    return pc, pr, rc, rr


def test_at_step_0_the_loss_is_ln_2_and_nothing_is_preferred() -> None:
    model = make_decoder()
    outcome = dpo(deepcopy(model))(model, _whole(PAIRS))
    assert outcome.loss.item() / 7 == pytest.approx(0.693147, abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert outcome.metrics[name].value.item() == 0.0, name


def test_a_precomputed_reference_gives_the_identical_loss_and_gradient() -> None:
    policy, reference = make_decoder(1), make_decoder(0, dropout=0.5).train()
    data = pack_pairs(PAIRS)
    batches = [data.batch(row, 1) for row in range(len(data))]
    table = compute_ref_log_probs(reference, batches, len(PAIRS), CPU)
    for batch in reversed(batches):
        live, precomputed = dpo(reference)(policy, batch), dpo(table)(policy, batch)
        assert torch.equal(live.loss, precomputed.loss)
        assert live.metrics.keys() == precomputed.metrics.keys()
        for name, ratio in live.metrics.items():
            torch.testing.assert_close(ratio.value, precomputed.metrics[name].value, rtol=0, atol=0, equal_nan=True)
        live.loss.backward()
        by_live = gradients(policy)
        precomputed.loss.backward()
        assert_same_gradients(by_live, gradients(policy), atol=0)
    assert reference.training and not any(p.grad is not None for p in reference.parameters())


def test_the_table_is_in_the_order_of_the_examples_for_any_batches() -> None:
    reference = make_decoder(0)
    data = pack_pairs(PAIRS)
    table = compute_ref_log_probs(reference, [data.batch(0, 2), data.batch(2, len(data) - 2)], len(PAIRS), CPU)
    _, _, rc, rr = _plain(reference, reference, PAIRS)
    torch.testing.assert_close(table, torch.stack((rc, rr), -1), atol=1e-4, rtol=1e-5)


def test_a_pair_missing_from_all_batches_is_an_error() -> None:
    data = pack_pairs(PAIRS)
    with pytest.raises(AssertionError, match="not scored"):
        compute_ref_log_probs(make_decoder(), [data.batch(0, 1)], len(PAIRS), CPU)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_and_gradient_equal_the_formula_on_padded_pairs(beta: float) -> None:
    policy, reference = make_decoder(1), make_decoder(0)
    outcome, objective = dpo(reference, beta)(policy, _whole(PAIRS)), dpo(reference, beta)
    assert objective.normalizer(_whole(PAIRS)) == 7
    (outcome.loss / 7).backward()
    got = gradients(policy)
    pc, pr, rc, rr = _plain(policy, reference, PAIRS)
    expected = -F.logsigmoid(beta * ((pc - rc) - (pr - rr))).mean()
    expected.backward()
    torch.testing.assert_close(outcome.loss / 7, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(got, gradients(policy), atol=1e-5, rtol=1e-4)


def test_micro_batches_of_pairs_give_the_gradient_of_the_whole_batch() -> None:
    policy, objective = make_decoder(1), dpo(make_decoder(0), sft_loss_weight=0.3)
    data = pack_pairs(PAIRS)
    objective(policy, data.batch(0, len(data))).loss.backward()
    expected = gradients(policy)
    for row in range(len(data) + 1):  # the last one is empty
        objective(policy, data.batch(row, 1, stop=len(data))).loss.backward()
    assert_same_gradients(expected, gradients(policy), atol=1e-5, rtol=1e-4)


def test_metrics_equal_their_formulas_per_pair() -> None:
    policy, reference = make_decoder(1), make_decoder(0)
    metrics = dpo(reference, 0.2)(policy, _whole(PAIRS)).metrics
    pc, pr, rc, rr = (t.detach() for t in _plain(policy, reference, PAIRS))
    expected = {
        "rewards/chosen": 0.2 * (pc - rc).sum(),
        "rewards/rejected": 0.2 * (pr - rr).sum(),
        "rewards/margins": 0.2 * ((pc - rc) - (pr - rr)).sum(),
        "rewards/accuracies": ((pc - rc) > (pr - rr)).float().sum(),
        "logps/chosen": pc.sum(),
        "logps/rejected": pr.sum(),
    }
    rest = {"log_odds", "sft_loss", "lengths/chosen", "lengths/rejected", "drift/chosen", "drift/rejected"}
    rest |= {"rewards/accuracies_shorter"}
    assert {name for name in metrics if not name.startswith(CORRELATED)} == expected.keys() | rest
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name].total, value, atol=1e-4, rtol=1e-5)
        assert metrics[name].count == 7 and not metrics[name].value.requires_grad
    assert 0 < metrics["rewards/accuracies"].total < 7


def test_drift_log_odds_lengths_and_their_correlation_with_margins_equal_their_formulas() -> None:
    policy, reference, data = make_decoder(1), make_decoder(0), pack_pairs(PAIRS)
    pc, pr, rc, rr = (t.detach() for t in _plain(policy, reference, PAIRS))
    chosen, rejected = (torch.tensor([float(len(getattr(p, name))) for p in PAIRS]) for name in ("chosen", "rejected"))
    totals: dict[str, Ratio] = {}
    for row in range(len(data)):  # as micro-batches add up
        for name, ratio in dpo(reference, 0.2)(policy, data.batch(row, 1)).metrics.items():
            totals[name] = totals[name] + ratio if name in totals else ratio
    values = with_derived({name: ratio.value for name, ratio in totals.items()})
    odds = [(logps / lengths).exp() / (1 - (logps / lengths).exp()) for logps, lengths in ((pc, chosen), (pr, rejected))]
    margins = 0.2 * ((pc - rc) - (pr - rr))
    expected = {
        "drift/chosen": (pc - rc).sum() / chosen.sum(),
        "drift/rejected": (pr - rr).sum() / rejected.sum(),
        "log_odds": (odds[0] / odds[1]).log().mean(),
        "sft_loss": -(pc / chosen).mean(),
        "lengths/chosen": chosen.mean(),
        "rewards/accuracies_shorter": (margins > 0)[chosen < rejected].float().mean(),
        "length_correlation": torch.corrcoef(torch.stack((margins, chosen - rejected)))[0, 1],
    }
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


def test_swapping_chosen_and_rejected_flips_every_sign() -> None:
    policy, reference = make_decoder(1), make_decoder(0)
    original = dpo(reference)(policy, _whole(PAIRS))
    swapped = dpo(reference)(policy, _whole([pair.swapped() for pair in PAIRS]))
    forth, reverse = ({name: ratio.total for name, ratio in one.metrics.items()} for one in (original, swapped))
    torch.testing.assert_close(reverse["rewards/margins"], -forth["rewards/margins"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reverse["rewards/chosen"], forth["rewards/rejected"], atol=1e-4, rtol=1e-4)
    assert reverse["rewards/accuracies"] == 7 - forth["rewards/accuracies"]
    pc, pr, rc, rr = _plain(policy, reference, PAIRS)
    torch.testing.assert_close(swapped.loss, F.softplus(0.1 * ((pc - rc) - (pr - rr))).sum(), atol=1e-4, rtol=1e-5)


def test_label_smoothing_is_cdpo() -> None:
    policy, reference = make_decoder(1), make_decoder(0)
    outcome = dpo(reference, 0.1, label_smoothing=0.2)(policy, _whole(PAIRS))
    pc, pr, rc, rr = _plain(policy, reference, PAIRS)
    delta = 0.1 * ((pc - rc) - (pr - rr))
    expected = (0.8 * -F.logsigmoid(delta) + 0.2 * -F.logsigmoid(-delta)).sum()
    torch.testing.assert_close(outcome.loss, expected, atol=1e-4, rtol=1e-5)


def test_sft_loss_weight_adds_the_mean_loss_of_the_chosen_answers_tokens() -> None:
    policy, reference = make_decoder(1), make_decoder(0)
    plain, more = (dpo(reference, sft_loss_weight=weight)(policy, _whole(PAIRS)).loss for weight in (0.0, 0.7))
    pc, *_ = _plain(policy, reference, PAIRS)
    lengths = torch.tensor([len(pair.chosen) for pair in PAIRS])
    torch.testing.assert_close(more - plain, 0.7 * -(pc / lengths).sum(), atol=1e-4, rtol=1e-5)
    more.backward()
    got = gradients(policy)
    pc, pr, rc, rr = _plain(policy, reference, PAIRS)
    (-F.logsigmoid(0.1 * ((pc - rc) - (pr - rr))) - 0.7 * pc / lengths).sum().backward()
    assert_same_gradients(got, gradients(policy), atol=1e-4, rtol=1e-4)


def test_log_probabilities_are_summed_over_each_completion_alone() -> None:
    model, batch = make_decoder(), _whole(PAIRS)
    sums, counts = sequence_log_probabilities(model, batch)
    assert sums.shape == counts.shape == (14,)
    for index, example in enumerate(batch.examples):
        pair = PAIRS[example]
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            alone = _padded_log_probabilities(model, [pair.prompt], [answer])[0]
            torch.testing.assert_close(sums[2 * index + side], alone, atol=1e-5, rtol=1e-5)
            assert counts[2 * index + side] == len(answer)


def test_log_probabilities_are_multiplied_by_the_weights_of_their_tokens() -> None:
    model, sequences = make_decoder(), random_sequences([9, 14, 20, 5, 11, 30])
    data = pack(sequences, packed_length=40)
    batch = data.batch(0, len(data))
    sums, counts = sequence_log_probabilities(model, batch)
    for index, example in enumerate(batch.examples):
        tokens, weights = sequences[example].tokens, sequences[example].weights[1:]
        logps = -F.cross_entropy(model.logits(model(tokens[None, :-1]))[0], tokens[1:], reduction="none")
        torch.testing.assert_close(sums[index], (logps * weights).sum(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(counts[index], weights.sum())


def test_an_evaluation_gives_each_metric_its_own_denominator() -> None:
    """Loss and rewards per pair, likelihoods per token of the chosen answers, with dropout off and without gradients."""
    policy, reference, batch = make_decoder(1, dropout=0.5).train(), make_decoder(0), _whole(PAIRS)
    metrics = dpo(reference, 0.2, token_bytes=torch.full((VOCAB,), 2.0)).evaluate(policy, batch)
    pc, pr, rc, rr = (t.detach() for t in _plain(make_decoder(1), reference, PAIRS))
    tokens = sum(len(pair.chosen) for pair in PAIRS)
    values = {name: ratio.value for name, ratio in metrics.items()}
    expected = {
        "loss": float(-F.logsigmoid(0.2 * ((pc - rc) - (pr - rr))).mean()),
        "perplexity": math.exp(-float(pc.sum()) / tokens),
        "tokens": tokens,
        "bits_per_byte": -float(pc.sum()) / math.log(2) / (2 * tokens),
        "pairs": 7,
        "rewards/chosen": 0.2 * float((pc - rc).mean()),
        "logps/rejected": float(pr.mean()),
        "logps/accuracies": float((pc > pr).float().mean()),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    alone = CausalLMObjective().evaluate(policy, pack_pairs([Pair(p.prompt, p.chosen, p.chosen) for p in PAIRS]).batch(0, 9))
    assert values["token_accuracy"] == pytest.approx(alone["token_accuracy"].value)
    assert policy.training and not any(p.grad is not None for p in policy.parameters())
    assert all(isinstance(value, float) for ratio in metrics.values() for value in (ratio.total, ratio.count))


def test_chosen_only_keeps_the_targets_of_the_chosen_answers() -> None:
    batch = _whole(PAIRS)
    half = chosen_only(batch)
    lengths = torch.zeros(batch.num_sequences).index_add(
        0, batch.sequence_ids.flatten()[half.target_index], half.loss_weights.flatten()[half.target_index]
    )
    expected = torch.tensor([[float(len(PAIRS[example].chosen)), 0.0] for example in batch.examples])
    torch.testing.assert_close(by_pair(lengths, batch), expected)


def test_without_a_reference_only_the_log_probabilities_of_the_policy_count() -> None:
    policy = make_decoder(1)
    absent, zeros = (dpo(reference)(policy, _whole(PAIRS)) for reference in (None, torch.zeros(7, 2)))
    assert torch.equal(absent.loss, zeros.loss)
    assert absent.metrics["rewards/chosen"] == zeros.metrics["rewards/chosen"]


def test_a_few_steps_make_every_chosen_answer_preferred() -> None:
    policy = make_decoder().train()
    objective, batch = dpo(deepcopy(policy)), _whole(PAIRS)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = objective(policy, batch).loss / objective.normalizer(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    outcome = objective(policy, batch)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and outcome.loss.item() / 7 < 0.5
    assert outcome.metrics["rewards/accuracies"].value == 1
