"""A command whose reader has gone goes on with its work, or ends without a traceback; what waits for no reader is saved."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import tiny_run
from tests.support.command import COMMAND, assert_error, fledge


def start(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The command, with pipes that this test may close."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def test_a_run_whose_console_is_closed_trains_to_the_end(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"]}
    process = start("train", tiny_run.write(tmp_path / "r.yaml", tree))
    assert process.stdout is not None and process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    process.stdout.close()
    assert process.wait(120) == 0
    assert json.loads((tmp_path / "tiny" / "pretrain" / "result.json").read_text())["model"]


@pytest.mark.parametrize("action", ["show", "stats", "account"])
def test_a_list_whose_reader_has_enough_ends_without_a_word(tmp_path: Path, action: str) -> None:
    rows = tmp_path / "chat.jsonl"
    row = {"messages": [{"role": "user", "content": "What is up? " * 40}, {"role": "assistant", "content": "The sky. " * 40}]}
    rows.write_text(f"{json.dumps(row)}\n" * 300)
    process = start("data", action, rows, *(("--limit", 300) if action == "show" else ()))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0, errors
    assert "Traceback" not in errors and "Broken pipe" not in errors


def test_a_prompt_test_that_cannot_be_checked_ends_before_the_first_step(world: Path, tmp_path: Path) -> None:
    tests = tmp_path / "tests.yaml"
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"sft": tree["stages"]["sft"]}
    rules: tuple[tuple[str, dict[str, object], str], ...] = (
        ("x " * 4000, {"contains": ["a"]}, "prompt test 'x x"), ("hello", {"json_schema": {"type": "no type"}}, "json_schema"),
        ("hello", {"regex": "("}, "regex"), ("\ud800", {"contains": ["a"]}, "tests.yaml"),
    )  # fmt: skip
    tree["stages"]["sft"]["prompt_tests"] = {"prompts": str(tests)}
    for prompt, expect, words in rules:
        tests.write_text(json.dumps([{"prompt": prompt, "expect": expect}]))
        result = fledge("train", tiny_run.write(tmp_path / "r.yaml", tree))
        assert_error(result, words)
        assert max(map(len, result.stderr.splitlines())) < 400
        assert not (tmp_path / "tiny" / "sft" / "checkpoints").exists()
