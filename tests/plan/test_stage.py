"""The plan of a stage says what its reports need, so that they know no kind of stage by name."""

from pathlib import Path

import pytest

from fledge.model.cost import ModelCost
from fledge.plan import plan_stage
from fledge.recipe import ModelConfig
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
