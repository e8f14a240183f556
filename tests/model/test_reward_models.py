"""Reward models: directories and adapters of transformers and PEFT in both directions, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.adapter_files import SCORE, read_adapter_config, write_adapter
from fledge.model.adapters import adapter_weights, attach_adapter
from fledge.model.decoder import Decoder
from fledge.model.loading import describe_model, is_reward_model, load_model
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import AdapterConfig
from tests.support.adapters import scatter
from tests.support.decoders import make_decoder, random_tokens
from tests.support.transformers_models import write_classifier, write_model

SIZES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": "qkv"},
    "norms": {"qk_norm": True},
    "experts": {"qk_norm": True, "moe": {"num_experts": 4, "num_experts_per_tok": 2}},
}


def _tokens() -> Tensor:
    """Two texts of ten tokens without the padding token 0."""
    return random_tokens(2, 10) % 96 + 1


def _reward_model(seed: int = 1, **changes: Any) -> Decoder:
    model = make_decoder(seed, **changes)
    model.become_reward_model(seed)
    return model.eval()


@torch.no_grad()
def _rewards(model: LanguageModel) -> Tensor:
    return model.rewards(model(_tokens())[:, -1])


@torch.no_grad()
def _theirs(model: Any) -> Tensor:
    """The scores of transformers, of one padded batch: the second text is longer than the first by padding tokens."""
    padded = torch.cat((_tokens(), torch.zeros(2, 3, dtype=torch.long)), dim=1)
    return model(input_ids=padded, attention_mask=(padded != 0).long()).logits[:, 0]


@pytest.mark.parametrize("kind", SIZES)
def test_transformers_gives_the_rewards_of_what_we_write(tmp_path: Path, kind: str) -> None:
    model = _reward_model(**SIZES[kind])
    model.save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification") and config["pad_token_id"] == 0
    loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.num_labels == 1
    torch.testing.assert_close(_theirs(loaded.eval()), _rewards(model), atol=1e-4, rtol=1e-4)
    again = load_model(tmp_path, purpose="rewards")
    assert torch.equal(_rewards(again), _rewards(model))


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_we_give_the_rewards_of_what_transformers_writes(tmp_path: Path, architecture: str) -> None:
    sizes = {"sliding_window": None} if architecture == "Mistral" else {}
    theirs = write_classifier(tmp_path, architecture, **sizes)
    model = load_model(tmp_path, purpose="rewards")
    assert model.implementation == "native" and is_reward_model(tmp_path)
    torch.testing.assert_close(_rewards(model), _theirs(theirs), atol=1e-4, rtol=1e-4)


def test_the_cost_of_a_reward_model_is_that_of_its_parameters(tmp_path: Path) -> None:
    for kind in ("plain", "tied"):
        model = _reward_model(**SIZES[kind])
        model.save_pretrained(tmp_path / kind, bos=1, eos=[2], pad=0)
        described = describe_model(tmp_path / kind, purpose="any").cost
        language = make_decoder(**SIZES[kind]).cost
        for cost in (model.cost, described, language.of_reward_model()):
            assert cost.parameters().total == sum(parameter.numel() for parameter in model.parameters())
            assert cost.body_flops(10) == language.body_flops(10)
            assert cost.head_flops() == 2 * model.config.hidden_size
            assert cost.with_vocabulary(cost.vocab_size + 5).parameters().total == cost.parameters().total + 5 * 32


def test_the_new_head_is_a_function_of_the_seed_and_the_rest_stays() -> None:
    before = dict(make_decoder(1).named_parameters())
    one, same, other = _reward_model(1), _reward_model(1), make_decoder(1)
    other.become_reward_model(2)
    assert one.score is not None and same.score is not None and other.score is not None
    assert torch.equal(one.score.weight, same.score.weight) and not torch.equal(one.score.weight, other.score.weight)
    assert set(dict(one.named_parameters())) == set(before) - {"lm_head.weight"} | {"score.weight"}
    assert one.parameter_role("score.weight") == "head"
    with pytest.raises(AssertionError, match="a reward model has no head for tokens"):
        one.logits(torch.zeros(1, 32))
    copy = one.with_weights(one.state_dict())
    assert torch.equal(_rewards(copy), _rewards(one))


def test_rewards_of_activations_in_bf16_keep_the_precision_of_their_sum() -> None:
    """A reward that is rounded to bf16 is equal for answers that differ a little, and none of the two is better then."""
    model, hidden = _reward_model(), torch.randn(200, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert model.score is not None
    exact = hidden.double() @ model.score.weight.detach().double()[0]
    torch.testing.assert_close(model.rewards(hidden).detach().double(), exact, rtol=1e-5, atol=1e-6)


def test_a_model_of_the_other_purpose_is_refused_with_what_to_do(tmp_path: Path) -> None:
    reward, language = tmp_path / "reward", tmp_path / "language"
    _reward_model().save_pretrained(reward, bos=1, eos=[2], pad=0)
    make_decoder().save_pretrained(language, bos=1, eos=[2], pad=0)
    with pytest.raises(FledgeError, match="this is a reward model: it gives a number for an answer, and writes none") as caught:
        load_model(reward)
    assert caught.value.where == str(reward) and "--reward-model" in (caught.value.hint or "")
    with pytest.raises(FledgeError, match="this is a language model and no reward model") as caught:
        load_model(language, purpose="rewards")
    assert "a stage of kind reward" in (caught.value.hint or "")
    with pytest.raises(FledgeError, match="this is a reward model"):
        describe_model(reward)
    write_classifier(tmp_path / "three", "Llama", labels=3)
    with pytest.raises(FledgeError, match="tells 3 classes apart, and a reward model gives one number"):
        load_model(tmp_path / "three", purpose="any")


def test_a_model_that_transformers_computes_becomes_no_reward_model(tmp_path: Path) -> None:
    write_model(tmp_path, "Llama", mlp_bias=True)
    model = load_model(tmp_path)
    with pytest.raises(FledgeError, match="a reward model needs fledge's own decoder"):
        model.become_reward_model(0)


def test_a_directory_without_the_head_is_not_loaded(tmp_path: Path) -> None:
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FledgeError, match=r"the weights do not fit the configuration: missing \['score.weight'\]"):
        load_model(tmp_path, purpose="rewards")


# -- adapters -------------------------------------------------------------------------------------------------------------


def _adapted(base: Path) -> LanguageModel:
    """The reward model of a language model, with an adapter and a head that have learned something."""
    model = load_model(base).eval()
    model.become_reward_model(4)
    config = AdapterConfig(r=4, lora_alpha=6, modules_to_save=[SCORE])
    attach_adapter(model, Adapter(config, base, weights_hash(base)), seed=1)
    scatter(adapter_weights(model))
    return model


def test_peft_gives_the_rewards_of_an_adapter_that_we_write(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_decoder().save_pretrained(base, bos=1, eos=[2], pad=0)
    model = _adapted(base)
    write_adapter(adapter, model)
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    theirs = peft.PeftModel.from_pretrained(theirs, adapter).eval()
    torch.testing.assert_close(_theirs(theirs), _rewards(model), atol=1e-4, rtol=1e-4)
    again = load_model(adapter, purpose="rewards").eval()
    assert torch.equal(_rewards(again), _rewards(model))
    with pytest.raises(FledgeError, match="this is a reward model"):
        load_model(adapter)


def test_we_give_the_rewards_of_an_adapter_that_peft_writes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_decoder().save_pretrained(base, bos=1, eos=[2], pad=0)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "up_proj"])
    theirs = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(adapter)
    assert read_adapter_config(adapter).config.modules_to_save == [SCORE]
    torch.testing.assert_close(
        _rewards(load_model(adapter, purpose="rewards").eval()), _theirs(theirs.eval()), atol=1e-4, rtol=1e-4
    )
