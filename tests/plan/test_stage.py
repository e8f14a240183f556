"""The plan of a stage says what its reports need, so that they know no kind of stage by name."""

from pathlib import Path

import pytest

from fledge.model.cost import ModelCost
from fledge.plan import plan_stage, with_recorded_settings
from fledge.recipe import ModelConfig
from fledge.recipe.schema import PretrainStage
from fledge.tokenizer import Tokenizer
from tests.support.sources import jsonl, prepare, stage_of

ROW = {"text": "a document of some words", "prompt": "a question", "response": "an answer", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    ("kind", "label", "loss_unit"),
    [("pretrain", "document", "nats/token"), ("sft", "conversation", "nats/token"), ("preference", "pair", "nats/pair")],
)
def test_a_plan_names_the_stage_s_examples_and_the_unit_of_its_loss(
    tmp_path: Path, chatml: Tokenizer, kind: str, label: str, loss_unit: str
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{key: f"{text} {n}" for key, text in ROW.items()} for n in range(8)])
    data = prepare(kind, file, chatml)
    plan, _, _ = plan_stage(stage_of(kind, file), data.train, ModelCost(ModelConfig(), chatml.vocab_size))
    assert (plan.label, plan.loss_unit) == (label, loss_unit)
    assert {"kind": kind, "label": label, "loss_unit": loss_unit}.items() <= plan.as_dict().items()


def test_a_resumed_stage_keeps_a_merged_micro_batch_until_the_recipe_writes_one() -> None:
    recorded = {
        "effective_batch_rows": 64, "micro_batch_size": 64, "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1,
        "select_checkpoint": "last",
    }  # fmt: skip

    def batch_of(**batch: object) -> tuple[int, int]:
        stage = PretrainStage.model_validate({"kind": "pretrain", "data": {"train": "x"}, "batch": batch})
        kept = with_recorded_settings(stage, recorded).batch
        return kept.micro_batch_rows, kept.gradient_accumulation_steps

    assert batch_of(gradient_accumulation_steps=4) == (64, 1)
    assert batch_of(micro_batch_size=16, gradient_accumulation_steps=4, merge_micro_batches=True) == (64, 1)
    assert batch_of(micro_batch_size=16, gradient_accumulation_steps=4) == (16, 4)
