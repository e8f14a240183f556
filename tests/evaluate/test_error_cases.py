"""Error cases of a stage: the rows with the highest losses, as scoring each row alone has them, and broken rules."""

import json
from pathlib import Path

import pytest

from fledge.distributed.context import DistributedContext
from fledge.evaluate.error_cases import (
    MAX_FAILING,
    MAX_TEXT,
    MAX_WORST,
    WorstRow,
    loss_cases,
    rule_cases,
    worst_rows,
    write_error_cases,
)
from fledge.evaluate.records import ItemResult, SetResult
from fledge.generation.scoring import score_tokens
from fledge.objective import CausalLMObjective
from fledge.tokenizer import train_tokenizer
from fledge.training.validation import ValidationSet
from tests.support.decoders import make_decoder
from tests.support.packed import pack, random_sequences

SEQUENCES = random_sequences([5 + number % 13 for number in range(MAX_WORST + 14)], seed=4)
VALIDATION = ValidationSet(pack(SEQUENCES, packed_length=40), CausalLMObjective(), 999)


@pytest.mark.parametrize("micro", [1, 4])
def test_the_worst_rows_are_those_that_score_worst_alone(micro: int) -> None:
    model = make_decoder()
    logps = score_tokens(model, [sequence.tokens.tolist() for sequence in SEQUENCES])
    alone = {}
    for number, (sequence, scores) in enumerate(zip(SEQUENCES, logps, strict=True)):
        targets = [-logp for logp, weight in zip(scores, sequence.weights[1:].tolist(), strict=True) if weight > 0]
        alone[number] = sum(targets) / len(targets) if targets else 0.0
    rows = worst_rows(model, VALIDATION, micro, DistributedContext())
    expected = sorted(alone, key=lambda number: -alone[number])[:MAX_WORST]
    assert [row.example for row in rows] == expected
    assert [row.loss for row in rows] == pytest.approx([alone[number] for number in expected], rel=1e-4)
    for row in rows:
        sequence = SEQUENCES[row.example]
        assert list(row.tokens) == sequence.tokens.tolist()
        assert list(row.targets) == sequence.tokens[1:][sequence.weights[1:] > 0].tolist()


def test_cases_are_decoded_located_grouped_and_bounded(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["A cat is an animal."] * 20, 300)
    long = tuple(tokenizer.encode("A cat is an animal. " * 400))
    rows = [WorstRow(float("inf"), 3, tuple(tokenizer.encode("A cat")), (5,)), WorstRow(2.5, 1, long, long)]
    cases = loss_cases(rows, VALIDATION, tokenizer, lambda number: f"v.jsonl:{number}")
    assert [(case["loss"], case["where"]) for case in cases] == [(None, "v.jsonl:3"), (2.5, "v.jsonl:1")]
    assert cases[0]["text"] == "A cat" and "characters more)" in cases[1]["text"] and len(cases[1]["text"]) < MAX_TEXT + 40
    items = tuple(
        ItemResult(id=str(number), group="ab"[number % 2], prompt="q", given="\ud800", failures=("must hold x",) * (number > 0))
        for number in range(MAX_FAILING + 60)
    )
    result = SetResult(name="rules", kind="prompts", fingerprint="f", metrics={}, items=items)
    file = tmp_path / "errors.jsonl"
    write_error_cases(file, [*rule_cases([result]), *cases])
    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [case["kind"] for case in written] == ["loss"] * 2 + ["rule"] * MAX_FAILING
    groups = [case["group"] for case in written[2:]]
    assert groups == sorted(groups) and set(groups) == {"rules/a", "rules/b"}
    assert all(case["failures"] == ["must hold x"] for case in written[2:])
