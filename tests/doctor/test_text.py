"""The text of an examination."""

import pytest

from fledge.diagnosis import Diagnoses
from fledge.doctor.lines import Line, rendered
from fledge.doctor.sparkline import ASCII_LEVELS
from fledge.doctor.text import MOST_LINES, finding_lines, summary_lines, text_of, yaml_line
from fledge.findings import Finding
from tests.doctor.made_up import FAULTY, examination, rate_diagnosis

HEALTHY_TEXT = """\
sft: run of fledge, runs/x/sft/events.jsonl
  read: 800 records, steps 1 to 400 of 400 planned, ended; figures system/step_seconds, train/loss, train/lr
  settings: kind sft, initial trained, method full, learning_rate 0.01, warmup_steps 8, steps 400, epochs 2,
  batch_rows 32, batch_tokens 8,192, micro_batch_rows 16, accumulation_steps 2, vocab_size 6,400, hidden_size 320,
  optimizer adamw (from recipe.yaml, plan.json)
  not read: torn lines (1)
  - Two columns were guessed.
  - the last loss, 2.74 nats/token, is a perplexity of 16; a uniform guess among 6,400 tokens has ln(6,400) = 8.76

nothing wrong was found in 3 figures of the log, 1 of the data
"""
FAULTY_TEXT = """\
1. learning rate too high (learning rate, likely, error)
   the learning rate of 0.01 is 5 times above the band
   evidence: peak_lr 0.01, rate_high 0.002
     train/loss @*+==----...........____________________________ 2.72 to 6.84
                           ^^^^^^^^^^^^^
                step 1 to 400
   or: noisy answers; what decides: probe/answer_gain (loss of answers behind another example's prompt − behind their
   own, nats/token)
   → set the learning rate to about 0.0006
   → --stages.sft.optimizer.learning_rate 0.0006
   as YAML: stages: {sft: {optimizer: {learning_rate: 0.0006}}}
   proof: fledge doctor runs/x --stage sft --prove
   what follows from it:
     · the loss jumps 3 times
"""


def lines_of(*examinations) -> list[str]:
    return rendered(text_of(list(examinations), ASCII_LEVELS), 118)


def test_a_healthy_stage_says_what_was_looked_at() -> None:
    assert "\n".join(lines_of(examination())) == HEALTHY_TEXT


def test_a_finding_has_evidence_alternatives_change_and_proof() -> None:
    text = "\n".join(lines_of(examination(FAULTY)))
    assert FAULTY_TEXT in text
    assert "· end token never supervised: it needs a checkpoint and the data" in text
    assert "a higher learning rate: refuted; 0.01 is above the usual" in text


def test_a_finding_is_no_wall_of_text() -> None:
    lines = list(finding_lines(examination(FAULTY), rate_diagnosis(), 1, ASCII_LEVELS))
    assert len([line for line in lines if line.text]) - 2 <= MOST_LINES  # besides what follows from it


def test_no_line_is_wider_than_the_terminal() -> None:
    rows = rendered(text_of([examination(FAULTY)], ASCII_LEVELS), 60)
    free = [row for row in rows if not row.lstrip().startswith(("train/", "→ --", "^", "step "))]
    assert max(map(len, free)) <= 60


def test_words_without_spaces_are_broken_between_characters_of_two_columns() -> None:
    rows = rendered([Line("学习率" * 20, 2, "- ")], 30)
    assert rows[0].startswith("  - 学习率") and all(row.startswith("    ") for row in rows[1:])
    assert all(2 * sum(not c.isascii() for c in row) + sum(c.isascii() for c in row) <= 30 for row in rows)
    assert "".join(row.strip(" -") for row in rows) == "学习率" * 20


def test_a_log_of_another_trainer_gets_its_own_keys() -> None:
    foreign = examination(Diagnoses(found=(rate_diagnosis("sft"),), unexplained=(), missing={}), run=False)
    text = "\n".join(lines_of(foreign))
    assert "→ learning_rate = 0.0006 (Hugging Face)" in text
    assert "--stages" not in text and "fledge doctor runs/x" not in text
    assert "proof: train again with the change and with nothing else changed, and compare" in text


def test_what_has_no_cause_is_said_to_have_none() -> None:
    seen = Finding(check="plateau", severity="warning", message="the loss stands at 3.1", evidence={"level": 3.1})
    text = "\n".join(lines_of(examination(Diagnoses(found=(), unexplained=(seen,), missing={}))))
    assert "seen, and its cause cannot be told from this:\n   · the loss stands at 3.1\n     evidence: level 3.1" in text
    assert "nothing wrong" not in text


def test_a_stage_behind_a_faulty_one_says_so() -> None:
    later = examination()
    later.after = "pretrain"
    assert "  ! this stage started from pretrain, where something is wrong" in "\n".join(lines_of(later))


def test_the_summary_names_each_stage() -> None:
    rows = rendered(summary_lines([examination(FAULTY), examination(stage="dpo")]), 100)
    assert rows == ["sft: learning rate too high (likely)", "dpo: nothing wrong was found"]


@pytest.mark.parametrize(
    ("patch", "text"),
    [
        ({"stages.sft.duration": "3 epochs"}, "stages: {sft: {duration: 3 epochs}}"),
        ({"stages.a.batch.x": 2, "stages.a.b": True, "seed": 1}, "stages: {a: {batch: {x: 2}, b: true}}, seed: 1"),
        ({"stages.a.min_lr": "10%"}, 'stages: {a: {min_lr: "10%"}}'),
    ],
)
def test_a_patch_as_yaml(patch: dict, text: str) -> None:
    import yaml

    assert yaml_line(patch) == text
    assert isinstance(yaml.safe_load("{" + text + "}"), dict)
