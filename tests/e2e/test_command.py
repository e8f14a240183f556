"""The `fledge` command in a process of its own: its results, and its messages for wrong input."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import tiny_run
from tests.support.command import assert_error, fledge


def test_help_is_quick_and_imports_neither_torch_nor_pydantic() -> None:
    script = (
        "import sys, fledge.cli\ntry: fledge.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert result.stdout.endswith("False\n") and "quickstart" in result.stdout
    assert min(seconds) < 0.3


def test_generate_and_chat_answer_from_a_run(finished: Path) -> None:
    one = fledge("generate", finished, "你是谁？", "--max-new-tokens", 5)
    assert one.returncode == 0 and one.stdout.endswith("\n")
    again = fledge("generate", finished / "dpo", "你是谁？", "--max-new-tokens", 5)
    assert again.stdout == one.stdout
    talk = fledge("chat", finished, "--max-new-tokens", 4, text="你是谁？\n/new\nhello\n/quit\n")
    assert talk.returncode == 0 and talk.stdout.count("› ") == 4
    assert_error(fledge("generate", finished, "x", "--top-p", "0"), "--top-p: must be above 0, and at most 1")
    assert_error(fledge("chat", finished / "nothing"), "there is no such run or model")


def test_data_show_marks_the_trained_tokens(world: Path, tmp_path: Path) -> None:
    file = tiny_run.write(tmp_path / "r.yaml", tiny_run.tree(world, tmp_path))
    shown = fledge("data", "show", file, "--stage", "dpo", "--limit", 1)
    assert shown.returncode == 0, shown.stderr
    assert "chosen" in shown.stdout and "rejected" in shown.stdout and "<|im_end|>" in shown.stdout
    assert_error(fledge("data", "show", file, "--stage", "sftt"), "no stage 'sftt'", "it has pretrain, sft, dpo")


def test_five_mistakes_are_reported_together_with_their_lines(world: Path, tmp_path: Path) -> None:
    text = """\
name: bad
sed: 3
model: {hidden_sise: 64}
stages:
  pretrain:
    data: {train: a.txt}
    duration: three epochs
    optimizer: {learning_rate: -1}
    schedule: {nam: wsd}
"""
    (tmp_path / "bad.yaml").write_text(text)
    result = fledge("train", tmp_path / "bad.yaml")
    assert_error(
        result, "5 problems", "bad.yaml:2: unknown key 'sed'; did you mean 'seed'?",
        "bad.yaml:3: unknown key 'model.hidden_sise'; did you mean 'hidden_size'?",
        "bad.yaml:7: stages.pretrain.duration", "bad.yaml:8: stages.pretrain.optimizer.learning_rate",
        "bad.yaml:9: unknown key 'stages.pretrain.schedule.nam'; did you mean 'name'?",
    )  # fmt: skip


def test_broken_rows_are_counted_and_named_and_the_others_are_trained(world: Path, tmp_path: Path) -> None:
    good = (world / "sft.jsonl").read_text(encoding="utf-8").splitlines()[:30]
    bad = ['{"messages": [', "[1, 2]", '{"messages": 5}', '{"messages": [{"role": "user", "content": "hi"}]}',
           json.dumps({"prompt": "a", "response": "  "})]  # fmt: skip
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes("\n".join([*good[:10], *bad, *good[10:]]).encode() + b'\n{"prompt": "\xff\xfe", "response": "x"}\n')
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"sft": {**tree["stages"]["sft"], "duration": "2 steps"}}
    tree["stages"]["sft"]["data"] = {"train": str(rows), "max_seq_len": 64, "validation": 0.1}
    result = fledge("train", tiny_run.write(tmp_path / "r.yaml", tree))
    assert result.returncode == 0, result.stderr
    assert "36 rows, 30 used" in result.stderr and "6 dropped" in result.stderr
    for reason in ("invalid JSON", "not an object", "wrong type", "no answer", "empty answer", "undecodable"):
        assert f"1 × {reason}, first at {rows}:" in result.stderr, reason
    account = json.loads((tmp_path / "tiny" / "sft" / "data_report.json").read_text())["sources"][0]
    assert account["rows"] == 36 == account["used_rows"] + sum(account["dropped"].values())


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("missing.jsonl", None, ("stages.sft.data.train.0", "there is no file")),
        ("empty.jsonl", "", ("stages.sft.data.train.0", "holds no rows")),
        ("all.jsonl", '{"prompt": "a", "response": ""}\n' * 3, ("none of the 3 rows", "3 empty answer", "all.jsonl:1")),
        ("array.json", "[{]", ("array.json:1", "the array does not end")),
        ("what.xyz", "hello", ("cannot read", "extension is not one of")),
    ],
)
def test_unusable_files_are_errors(world: Path, tmp_path: Path, name: str, content: str | None, messages: tuple) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"sft": tree["stages"]["sft"]}
    tree["stages"]["sft"]["data"] = {"train": str(tmp_path / name), "max_seq_len": 64}
    assert_error(fledge("train", tiny_run.write(tmp_path / "r.yaml", tree)), *messages)


def test_a_full_disk_stops_the_run_and_it_can_be_resumed(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"]}
    file = tiny_run.write(tmp_path / "r.yaml", tree)
    assert_error(fledge("train", file, limit=60_000), "cannot write the checkpoint of step 0", "no checkpoint is saved yet")
    result = fledge("train", file, "--resume")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "tiny" / "pretrain" / "result.json").exists()


def test_unknown_options_and_missing_values_are_errors(world: Path, tmp_path: Path) -> None:
    file = tiny_run.write(tmp_path / "r.yaml", tiny_run.tree(world, tmp_path))
    assert_error(fledge("train", file, "--seed"), "--seed needs a value")
    assert_error(
        fledge("train", file, "--stages.sft.optimizer.learning_rat", "1"),
        "--stages.sft.optimizer.learning_rat",
        "did you mean 'learning_rate'?",
    )
    assert_error(fledge("train", tmp_path / "none.yaml"), "this recipe does not exist")
    assert_error(fledge("report", tmp_path / "none"), "there is no such run")


def test_a_mixture_of_experts_is_planned_with_its_active_parameters(world: Path, tmp_path: Path) -> None:
    model = {**tiny_run.MODEL, "moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}}
    file = tiny_run.write(tmp_path / "r.yaml", tiny_run.tree(world, tmp_path, model=model))
    planned = fledge("train", file, "--dry-run")
    assert planned.returncode == 0 and "active for a token" in planned.stdout


def test_packages_import_only_from_the_layers_below() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([script, "--no-logo"], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert " 0 broken" in result.stdout, result.stdout
