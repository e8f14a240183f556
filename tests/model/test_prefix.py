"""Prefix tuning: the outputs of PEFT in both directions, packed documents, generation, training, and what is refused."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.generation import Engine, SamplingParams, score_tokens
from fledge.model.adapter_files import write_adapter
from fledge.model.adapters import attach_adapter, merge_adapter, trained_parameters
from fledge.model.loading import load_model, load_switch
from fledge.model.protocol import Adapter
from fledge.optim.build import build_optimizers
from fledge.recipe.schema import AdapterConfig, OptimizerConfig
from fledge.training.start_adapter import start_adapter
from tests.support.adapters import adapted_model, logits, scatter, train_a_little, write_adapted
from tests.support.decoders import make_decoder, random_tokens
from tests.support.transformers_models import write_kind, write_model

PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5}
SIZES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "wide heads": {"head_dim": 16, "qk_norm": True, "tie_word_embeddings": True},
    "biases": {"attention_bias": "qkv"},
}


def _base(folder: Path, **changes: Any) -> Path:
    make_decoder(**changes).save_pretrained(folder, bos=1, eos=[2], pad=0)
    return folder


@torch.no_grad()
def _peft_logits(base: Path, adapter: Path) -> Tensor:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    library = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(library, adapter).eval()(input_ids=random_tokens(2, 10)).logits


@pytest.mark.parametrize("name", SIZES)
def test_peft_gives_the_outputs_of_a_prefix_that_we_write(name: str, tmp_path: Path) -> None:
    base = _base(tmp_path / "base", **SIZES[name])
    model = adapted_model(base, **PREFIX)
    write_adapter(tmp_path / "adapter", model)
    ours = logits(model)
    assert (ours - logits(load_model(base))).abs().max() > 0.01
    torch.testing.assert_close(_peft_logits(base, tmp_path / "adapter"), ours, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(load_model(tmp_path / "adapter").eval()), ours)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
def test_a_prefix_of_peft_is_read(architecture: str, projection: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    library = write_model(tmp_path / "base", architecture)
    more = {"encoder_hidden_size": 8, "prefix_projection": True} if projection else {}
    wrapped = peft.get_peft_model(library, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **more)).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "../base"}))
    with torch.no_grad():
        expected = wrapped(input_ids=random_tokens(2, 10)).logits
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter").eval()), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("every", [0, 1])
def test_every_packed_document_sees_the_prefix_and_no_other_document(every: int, tmp_path: Path) -> None:
    model = adapted_model(_base(tmp_path / "base"), **PREFIX)
    model.activation_checkpoint_every = every
    tokens, lengths = random_tokens(1, 12), (5, 4, 3)
    documents = torch.tensor([[number for number, length in enumerate(lengths, 1) for _ in range(length)]])
    positions = torch.tensor([[position for length in lengths for position in range(length)]])
    for backend in ("sdpa", "blocked"):
        model.set_attention_backend(backend)
        packed = model(tokens, positions, documents)
        alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def _peft_directory(folder: Path, library: Any, **settings: Any) -> Tensor:
    """A prefix of PEFT in a directory beside `base`; the logits that the library computes with it."""
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        library, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **settings)
    ).eval()
    scatter(dict(wrapped.prompt_encoder.state_dict()))
    wrapped.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "../base"}))
    with torch.no_grad():
        return wrapped(input_ids=random_tokens(2, 10)).logits


@pytest.mark.parametrize("kind", ["llama", "smollm3", "gpt2", "mixtral"])
def test_a_bridged_model_with_a_prefix_computes_what_peft_does_in_both_directions(kind: str, tmp_path: Path) -> None:
    expected = _peft_directory(tmp_path / "theirs", write_kind(tmp_path / "base", kind))
    model = load_model(tmp_path / "theirs", "transformers").eval()
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
    assert (expected - logits(load_model(tmp_path / "base", "transformers").eval())).abs().max() > 0.01
    write_adapter(tmp_path / "ours", model)
    torch.testing.assert_close(_peft_logits(tmp_path / "base", tmp_path / "ours"), expected, atol=2e-5, rtol=1e-4)


def test_a_bridged_prefix_is_that_of_the_native_decoder_packed_generating_and_learning(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    base = _base(tmp_path / "base")
    native, bridged = (adapted_model(base, implementation, **PREFIX) for implementation in ("auto", "transformers"))
    tokens, lengths = random_tokens(2, 12), (5, 4, 3)
    documents = torch.tensor([[number for number, length in enumerate(lengths, 1) for _ in range(length)], [1] * 9 + [0] * 3])
    positions = torch.tensor([[p for length in lengths for p in range(length)], [*range(9), 0, 1, 2]])
    real = documents > 0
    with torch.no_grad():
        expected, ours = (model(tokens, positions, documents)[real] for model in (native, bridged))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    prompts = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8]]
    answers = [
        [answer.tokens for answer in Engine(model).generate(prompts, SamplingParams(max_new_tokens=6))]
        for model in (native, bridged)
    ]
    assert answers[0] == answers[1]
    losses = [train_a_little(model.train(), 5) for model in (native, bridged)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_a_bridged_model_with_sliding_windows_refuses_a_prefix_and_stays_as_it_was(kind: str, tmp_path: Path) -> None:
    write_kind(tmp_path, kind)
    model = load_model(tmp_path, "transformers").eval()
    before = logits(model)
    with pytest.raises(FledgeError, match="not all of its layers attend to every earlier position"):
        attach_adapter(model, Adapter(AdapterConfig(**PREFIX), None, None), seed=1)
    assert model.adapter is None and model.prefix is None and torch.equal(logits(model), before)


def test_a_bridged_prefix_is_refused_where_layers_are_computed_again(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = adapted_model(_base(tmp_path / "base"), "transformers", **PREFIX)
    model.activation_checkpoint_every = 1
    with pytest.raises(FledgeError, match="would be computed without the prefix"):
        model(random_tokens(1, 4))


def test_the_engine_answers_as_full_passes_do_also_in_a_batch(tmp_path: Path) -> None:
    model = adapted_model(_base(tmp_path / "base"), **PREFIX)
    prompts = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8]]
    answers = Engine(model).generate(prompts, SamplingParams(max_new_tokens=6, logprobs=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                tokens.append(int(model.logits(model(torch.tensor([tokens]))[:, -1]).argmax()))
        assert list(answer.tokens) == tokens[len(prompt) :]
    (scores,) = score_tokens(model, [[*prompts[0], *answers[0].tokens]])
    assert scores[2:] == pytest.approx(answers[0].logprobs, abs=1e-4)
    with pytest.raises(FledgeError, match="59 positions"):
        Engine(model).generate([[1] * 60], SamplingParams(max_new_tokens=1))


def test_only_the_prefix_is_trained_and_it_is_counted(tmp_path: Path) -> None:
    model = load_model(_base(tmp_path / "base"))
    attach_adapter(model, Adapter(AdapterConfig(**PREFIX), None, None), seed=1)
    model.train()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert trained_parameters(model)[0] == 5 * model.cost.kv_bytes(1, size=1) == 5 * 2 * 2 * 2 * 8
    (start,) = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    config = OptimizerConfig(name="muon", learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    optimizers = build_optimizers(model, config)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model.logits(model(random_tokens(2, 8))).flatten(0, 1), random_tokens(16))
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items()) and losses[-1] < losses[0]
    assert bool((parameters["prefix.prompt_embeddings"] != start).all())


def test_a_prefix_and_low_rank_adapters_are_switched_on_one_base(tmp_path: Path) -> None:
    base = _base(tmp_path / "base")
    paths = {"prefix": write_adapted(tmp_path / "p", base, **PREFIX), "lora": write_adapted(tmp_path / "l", base, r=2)}
    alone = {name: logits(load_model(path)) for name, path in paths.items()}
    switch, plain = load_switch(base, paths), logits(load_model(base))
    for name in ("prefix", "lora", None, "prefix", None):
        switch.use(name)
        assert torch.equal(logits(switch.model), plain if name is None else alone[name])


def test_what_a_prefix_cannot_do_is_refused(tmp_path: Path) -> None:
    base = _base(tmp_path / "base")
    model = adapted_model(base, **PREFIX)
    with pytest.raises(FledgeError, match="a prefix cannot be merged"):
        merge_adapter(model)
    for length in (60, 59):
        context = pytest.raises(FledgeError, match="59 positions behind the 5 virtual tokens") if length > 59 else nullcontext()
        with context:
            start_adapter(
                model, AdapterConfig(**PREFIX), folder=base, vocab_size=97, max_seq_len=length, seed=0, log=lambda text: None
            )
    with pytest.raises(ValueError, match="r belongs to peft_type: LORA, and this one is PREFIX_TUNING"):
        AdapterConfig(r=3, **PREFIX)
    with pytest.raises(ValueError, match="num_virtual_tokens belongs to peft_type: PREFIX_TUNING"):
        AdapterConfig(num_virtual_tokens=3)
    write_adapter(tmp_path / "adapter", model)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_virtual_tokens": 6}))
    with pytest.raises(FledgeError, match=r"prompt_embeddings is \[5, 64\], expected \[6, 64\]"):
        load_model(tmp_path / "adapter")
