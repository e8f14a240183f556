"""Losses and metrics of packed pairs and labelled answers equal those of TRL's trainers on the same model and batch.

TRL is not among the development packages: the tests run where it is installed, such as by `pip install trl==1.16.0`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fledge.objective import DPOObjective, KTOObjective, RewardObjective
from fledge.tokenizer import Tokenizer
from tests.support.decoders import make_decoder
from tests.support.packed import Pair, dpo, pack_answers, pack_pairs, pack_ranked, random_answers, random_pairs

pytest.importorskip("trl", exc_type=ImportError)
KL_ABOVE_0 = {False: True, True: False}  # by whether policy and reference are swapped
PAIRS, ANSWERS = random_pairs(6, seed=3), random_answers(7, seed=3)


def _models(folder: Path) -> tuple[Any, Any, Any, Any]:
    """Policy and reference: as native decoders, and as models of transformers."""
    natives, others = [], []
    for seed in (1, 0):
        native = make_decoder(seed)
        native.save_pretrained(folder / str(seed), bos=1, eos=[2], pad=0)
        natives.append(native)
        others.append(transformers.AutoModelForCausalLM.from_pretrained(folder / str(seed)))
    return *natives, *others


def _padded(sequences: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """(prompt, completion) as rows padded on the right."""
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids, attended, completed = (torch.zeros(len(sequences), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, completion) in enumerate(sequences):
        ids[row, : len(prompt + completion)] = torch.tensor(prompt + completion)
        attended[row, : len(prompt + completion)] = 1
        completed[row, len(prompt) : len(prompt + completion)] = 1
    return {"input_ids": ids, "attention_mask": attended, "completion_mask": completed}


def _arguments(folder: Path, **more: Any) -> dict[str, Any]:
    return {"output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "report_to": [],
            "gradient_checkpointing": False, **more}  # fmt: skip


def _tokenizer(folder: Path, chatml: Tokenizer) -> Any:
    chatml.save(folder / "tokenizer")
    return transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")


def _metrics(trainer: Any) -> dict[str, float]:
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}


def _whole(objective: DPOObjective, policy: Any) -> tuple[float, dict[str, float]]:
    data = pack_pairs(PAIRS)
    output = objective(policy, data.batch(0, len(data)))
    metrics = {name: float(ratio.value) for name, ratio in output.metrics.items()}
    return float(output.loss.detach()) / len(PAIRS), metrics


@pytest.mark.parametrize(
    ("loss_type", "beta", "smoothing"),
    [("sigmoid", 0.1, 0.0), ("sigmoid_norm", 0.7, 0.0), ("hinge", 0.3, 0.0), ("ipo", 0.4, 0.0), ("robust", 0.2, 0.1)],
)
def test_losses_of_pairs_equal_the_dpo_trainer(
    loss_type: str, beta: float, smoothing: float, tmp_path: Path, chatml: Tokenizer
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference, model, ref_model = _models(tmp_path)
    arguments = DPOConfig(**_arguments(tmp_path, loss_type=[loss_type], beta=beta, label_smoothing=smoothing))
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = DPOTrainer(model, ref_model, arguments, train_dataset=rows, processing_class=_tokenizer(tmp_path, chatml))
    batch = _padded([(p.prompt, p.chosen) for p in PAIRS] + [(p.prompt, p.rejected) for p in PAIRS])
    trainer.model.train()
    expected = float(trainer._compute_loss(trainer.model, batch, return_outputs=False).detach())
    loss, metrics = _whole(dpo(reference, beta, loss_type, label_smoothing=smoothing), policy)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)
    theirs = _metrics(trainer)
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ):
        assert metrics[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_simpo_equals_the_cpo_trainer(gamma: float, tmp_path: Path, chatml: Tokenizer) -> None:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, _, model, _ = _models(tmp_path)
    more = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": gamma, "cpo_alpha": 0.0}
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    arguments = CPOConfig(**_arguments(tmp_path, **more, max_length=64))
    trainer = CPOTrainer(model, arguments, train_dataset=rows, processing_class=_tokenizer(tmp_path, chatml))
    expected, theirs = trainer.get_batch_loss_metrics(trainer.model.train(), _sides(), train_eval="train")
    loss, metrics = _whole(dpo(None, 2.0, "simpo", simpo_gamma=gamma), policy)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert metrics[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name


def test_the_odds_ratio_of_orpo_equals_the_orpo_trainer(tmp_path: Path, chatml: Tokenizer) -> None:
    """TRL's likelihood term counts the tokens of the prompts, too: it is compared on pairs whose prompt is one token, the first
    one of a row, which is no target."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    policy, _, model, _ = _models(tmp_path)
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    arguments = ORPOConfig(**_arguments(tmp_path, beta=0.3, max_length=64))
    trainer = ORPOTrainer(model, arguments, train_dataset=rows, processing_class=_tokenizer(tmp_path, chatml))
    expected, theirs = trainer.get_batch_loss_metrics(trainer.model.train(), _sides(), train_eval="train")
    loss, metrics = _whole(dpo(None, 0.3, "orpo"), policy)
    assert metrics["log_odds"] == pytest.approx(theirs["log_odds_chosen"], rel=1e-5, abs=1e-5)
    odds = float(expected.detach()) - theirs["nll_loss"]
    assert loss - metrics["sft_loss"] == pytest.approx(odds, rel=1e-5, abs=1e-5)
    for name in ("rewards/chosen", "rewards/margins", "rewards/accuracies"):
        assert metrics[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
    one = [Pair(pair.prompt[:1], pair.chosen[:1] * 3, pair.rejected) for pair in PAIRS]
    expected, theirs = trainer.get_batch_loss_metrics(trainer.model, _sides(one), train_eval="train")
    data = pack_pairs(one)
    output = dpo(None, 0.3, "orpo")(policy, data.batch(0, len(data)))
    assert float(output.loss.detach()) / len(one) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)


def _sides(pairs: list[Pair] = PAIRS) -> dict[str, Tensor]:
    """Pairs as the collator of TRL's older trainers pads them: each side by itself."""
    batch = {}
    for side in ("chosen", "rejected"):
        padded = _padded([(pair.prompt, getattr(pair, side)) for pair in pairs])
        batch[f"{side}_input_ids"] = padded["input_ids"]
        batch[f"{side}_attention_mask"] = padded["attention_mask"]
        batch[f"{side}_labels"] = padded["input_ids"].masked_fill(padded["completion_mask"] == 0, -100)
    return batch


@pytest.mark.parametrize(("weights", "swapped"), [((1.0, 1.0), False), ((0.8, 1.5), True)])
def test_kto_equals_the_kto_trainer(weights: tuple[float, float], swapped: bool, tmp_path: Path, chatml: Tokenizer) -> None:
    """The KL estimate changes its sign with policy and reference swapped, so it is above 0 in one of the cases."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    policy, reference, model, ref_model = _models(tmp_path)
    if swapped:
        policy, reference, model, ref_model = reference, policy, ref_model, model
    more = {"beta": 0.3, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    rows = Dataset.from_list([{"prompt": "a", "completion": "b", "label": number % 2 == 0} for number in range(8)])
    arguments = KTOConfig(**_arguments(tmp_path, **more, train_sampling_strategy="sequential"))
    trainer = KTOTrainer(model, ref_model, arguments, train_dataset=rows, processing_class=_tokenizer(tmp_path, chatml))
    batch = _padded([(one.prompt, one.answer) for one in ANSWERS])
    unrelated = _padded([(one.prompt, one.unrelated) for one in ANSWERS])
    batch |= {f"KL_{name}": tensor for name, tensor in unrelated.items()}
    batch["label"] = torch.tensor([one.desirable for one in ANSWERS])
    trainer.model.train()
    expected = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    theirs = _metrics(trainer)
    assert (theirs["kl"] > 0.1) == KL_ABOVE_0[swapped]
    data = pack_answers(ANSWERS)
    whole = data.batch(0, len(data))
    objective = KTOObjective(labels=batch["label"], reference=reference, **more)
    objective = objective.in_window(policy, lambda: [(whole, True)], list)
    output = objective(policy, whole)
    assert float(output.loss.detach()) / len(ANSWERS) == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
    for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert float(output.metrics[name].value) == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(("coefficient", "with_margins"), [(None, False), (0.01, False), (0.05, True)])
def test_the_loss_of_a_reward_model_equals_the_reward_trainer(
    coefficient: float | None, with_margins: bool, tmp_path: Path, chatml: Tokenizer
) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    native = make_decoder(3)
    native.become_reward_model(3)
    native.save_pretrained(tmp_path / "model", bos=1, eos=[2], pad=0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    arguments = RewardConfig(**_arguments(tmp_path, center_rewards_coefficient=coefficient))
    rows = Dataset.from_list([{"chosen_ids": [3, 4], "rejected_ids": [3, 5]}])
    trainer = RewardTrainer(model, arguments, train_dataset=rows, processing_class=_tokenizer(tmp_path, chatml))
    trainer.model.config.pad_token_id = 0
    margins = [0.3 * number for number in range(len(PAIRS))] if with_margins else [0.0] * len(PAIRS)
    padded = _padded([(p.prompt, p.chosen) for p in PAIRS] + [(p.prompt, p.rejected) for p in PAIRS])
    batch = {name: padded[name] for name in ("input_ids", "attention_mask")}
    given = {**batch, "margin": torch.tensor(margins)} if with_margins else batch
    expected = float(trainer.compute_loss(trainer.model.train(), given).detach())
    data = pack_ranked(PAIRS, margins)
    objective = RewardObjective(margins=torch.tensor(margins), pad=0, center_rewards_coefficient=coefficient or 0.0)
    output = objective(native, data.batch(0, len(data)))
    assert float(output.loss.detach()) / len(PAIRS) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    theirs, ours = _metrics(trainer), {name: float(ratio.value) for name, ratio in output.metrics.items()}
    assert ours["rewards/accuracies"] == pytest.approx(theirs["accuracy"])
    assert ours["rewards/margins"] == pytest.approx(theirs["margin"], rel=1e-5, abs=1e-5)
    mean = (ours["rewards/chosen"] + ours["rewards/rejected"]) / 2
    assert mean == pytest.approx(theirs["mean_reward"], rel=1e-5, abs=1e-5)
