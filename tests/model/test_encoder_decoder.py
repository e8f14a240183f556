"""Encoder–decoders of transformers behind `LanguageModel`: losses and gradients of packed rows are the library's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from fledge.errors import FledgeError
from fledge.model.encoder_decoder import EncoderDecoderModel, SplitRows
from fledge.model.loading import describe_model, load_model
from fledge.model.new import new_model
from fledge.objective import CausalLMObjective, DPOObjective
from fledge.objective.preference import sequence_log_probabilities
from fledge.recipe.schema import RuntimeConfig
from fledge.tokenizer import train_tokenizer
from tests.conftest import TEXTS
from tests.support.encoder_decoders import (
    END,
    FAMILIES,
    START,
    VOCAB,
    pack_answers,
    random_answers,
    sequence,
    write_config,
    write_encoder_decoder,
)
from tests.support.packed import pack

SIZES = [(9, 4), (3, 12), (14, 2), (1, 1), (6, 6), (2, 9), (11, 8)]


def load(folder: Path) -> EncoderDecoderModel:
    """The model in a folder, in evaluation mode."""
    model = load_model(folder)
    assert isinstance(model, EncoderDecoderModel)
    return model.eval()


def library_loss(theirs: Any, source: list[int], answer: list[int]) -> torch.Tensor:
    """Σ cross-entropy of one answer, as the library computes it."""
    return theirs(input_ids=torch.tensor([source]), labels=torch.tensor([answer])).loss * len(answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_packed_rows_is_that_of_transformers(tmp_path: Path, family: str) -> None:
    theirs, pairs = write_encoder_decoder(tmp_path, family), random_answers(SIZES)
    model, data = load(tmp_path), pack_answers(pairs)
    batch = data.batch(0, len(data))
    assert int(batch.documents.max()) > 1 and (batch.documents == 0).any()
    loss = CausalLMObjective()(model, batch).loss
    expected = sum(library_loss(theirs, *pair) for pair in pairs)
    assert batch.weight == sum(len(answer) for _, answer in pairs)
    assert abs(float(loss.detach() - expected.detach())) / batch.weight < 1e-5
    loss.backward()
    expected.backward()
    own = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        gradient = own[f"causal_lm.{name}"].grad
        assert gradient is not None and parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@settings(max_examples=15)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=6),
    length=st.integers(30, 70),
    seed=st.integers(0, 9),
)
def test_neither_padding_nor_neighbours_change_the_loss_of_a_row(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], length: int, seed: int
) -> None:
    pairs, model = random_answers(sizes, seed), _shared(tmp_path_factory)
    data = pack_answers(pairs, length, seed)
    batch = data.batch(0, len(data) + 1, stop=len(data))  # the last row is empty
    with torch.no_grad():
        packed, _ = sequence_log_probabilities(model, batch)
        for number, example in enumerate(batch.examples):
            alone, _ = sequence_log_probabilities(model, pack_answers([pairs[example]], length + 7).batch(0, 1))
            assert float(packed[number] - alone[0]) == pytest.approx(0, abs=1e-4)


_MODELS: list[EncoderDecoderModel] = []


def _shared(tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoderModel:
    """One model for all examples."""
    if not _MODELS:
        folder = tmp_path_factory.mktemp("model")
        write_encoder_decoder(folder)
        _MODELS.append(load(folder))
    return _MODELS[0]


def test_rows_are_divided_into_sources_and_answers() -> None:
    tokens = torch.tensor([[5, 1, 0, 7, 6, 1, 0, 8, 0], [4, 1, 0, 9, 9, 9, 9, 9, 9]])
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 0], [1] * 9])
    rows = SplitRows.of(tokens, documents, start=0)
    assert rows.source[0].tolist() == [5, 1, 6, 1] and rows.source[1, :2].tolist() == [4, 1]
    assert rows.target[0, :4].tolist() == [0, 7, 0, 8] and rows.target[1].tolist() == [0, 9, 9, 9, 9, 9, 9]
    assert rows.is_target.sum(dim=1).tolist() == [4, 7]
    assert rows.cross_mask[0, 0, :4].tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    assert rows.target_mask[0, 0, 3, :4].tolist() == [False, False, True, True]
    assert all(mask.any(dim=-1).all() for mask in (rows.source_mask, rows.target_mask, rows.cross_mask))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_in_transformers_and_in_fledge(tmp_path: Path, family: str) -> None:
    theirs = write_encoder_decoder(tmp_path / "a", family)
    model = load(tmp_path / "a")
    model.save_pretrained(tmp_path / "b", bos=None, eos=[END], pad=START)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "b").eval()
    inputs = {"input_ids": torch.tensor([[5, 6, END]]), "decoder_input_ids": torch.tensor([[START, 7, 8]])}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, theirs(**inputs).logits)
    tokens = torch.tensor([[5, 6, END, START, 7, 8]])
    for other in (load(tmp_path / "b"), model.with_weights(model.state_dict()).eval()):
        torch.testing.assert_close(other.logits(other(tokens)), model.logits(model(tokens)), atol=0, rtol=0)
    saved = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert saved["decoder_start_token_id"] == START and saved["pad_token_id"] == START
    assert describe_model(tmp_path / "b").decoder_start == START
    assert describe_model(tmp_path / "b").cost.parameters() == model.cost.parameters()


def test_checkpointed_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path, dropout_rate=0.0)
    gradients = []
    for every in (0, 1, 2):
        model = load(tmp_path).train()
        model.activation_checkpoint_every = every
        data = pack_answers(random_answers(SIZES))
        CausalLMObjective()(model, data.batch(0, len(data))).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4)


def test_half_precision_stays_close(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path)
    model, data = load(tmp_path), pack_answers(random_answers(SIZES))
    batch = data.batch(0, len(data))
    exact = CausalLMObjective()(model, batch).loss
    model.compute_dtype = torch.bfloat16
    rounded = CausalLMObjective()(model, batch).loss
    assert float((rounded - exact).detach().abs() / exact.detach()) < 0.02


def test_only_the_first_layer_of_each_stack_is_benchmarked(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path)
    model = load(tmp_path)
    assert len(model.blocks()) == 5 and model.config.num_hidden_layers == 3
    with model.only_first_block():
        assert len(model.blocks()) == 2
    assert len(model.blocks()) == 5


def test_preferences_compare_answers_to_one_source(tmp_path: Path) -> None:
    theirs, model = write_encoder_decoder(tmp_path), load(tmp_path)
    pairs = random_answers([(7, 5), (3, 9)])
    others = [answer for _, answer in random_answers([(1, 8), (1, 3)], seed=5)]
    sequences = [
        sequence(source, one) for (source, answer), other in zip(pairs, others, strict=True) for one in (answer, other)
    ]
    data = pack(sequences, 60, sequences_per_example=2)
    batch = data.batch(0, len(data))
    with torch.no_grad():
        sums, _ = sequence_log_probabilities(model, batch)
        for number, example in enumerate(batch.examples):
            source, chosen = pairs[example]
            for place, answer in enumerate((chosen, others[example])):
                assert float(sums[2 * number + place]) == pytest.approx(-float(library_loss(theirs, source, answer)), abs=1e-4)
    objective = DPOObjective(loss_type="sigmoid", beta=0.1, reference=load(tmp_path))
    assert float(objective(model, batch).loss.detach()) / 2 == pytest.approx(0.6931, abs=1e-3)


def test_new_weights_follow_configuration_tokenizer_and_seed(tmp_path: Path) -> None:
    folder, tokenizer = write_config(tmp_path, vocab_size=9999), train_tokenizer(TEXTS, 400, "seq2seq")
    first, again, other = (new_model(folder, tokenizer, seed, "auto", lambda line: None) for seed in (1, 1, 2))
    assert first.vocab_size == tokenizer.vocab_size and first.decoder_start == tokenizer.decoder_start
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head_weight, other.lm_head_weight)


def test_more_tokens_give_more_rows(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path)
    model = load(tmp_path)
    model.grow_vocabulary(VOCAB + 3)
    assert model.lm_head_weight.shape[0] == model.vocab_size == VOCAB + 3
    assert model(torch.tensor([[VOCAB + 2, END, START, VOCAB + 1]])).isfinite().all()


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 60,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    BartForConditionalGeneration(BartConfig(**sizes, **heads)).save_pretrained(tmp_path / "bart")
    with pytest.raises(FledgeError, match="does not keep the documents of a packed row apart"):
        load_model(tmp_path / "bart")
    write_encoder_decoder(tmp_path / "t5")
    description = describe_model(tmp_path / "t5")
    with pytest.raises(FledgeError, match="is not compiled"):
        description.check_runtime(RuntimeConfig(compile=True))
    with pytest.raises(FledgeError, match="are not sharded"):
        description.check_runtime(RuntimeConfig(parallelism="fsdp"))
    with pytest.raises(FledgeError, match="cannot compute attention by 'blocked'"):
        description.check_runtime(RuntimeConfig(attention="blocked"))
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    config["decoder_start_token_id"] = config["pad_token_id"] = None
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FledgeError, match="needs decoder_start_token_id"):
        describe_model(tmp_path / "t5")
