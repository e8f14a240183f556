"""The tabulator completes commands, options, choices, runs, and keys of the recipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.cli.completion import HOW_TO, SHELLS
from fledge.recipe.schema_keys import MAX_OPTIONS, option_names


def complete(line: str, folder: Path) -> list[str]:
    """What a shell is offered behind a line."""
    answer = folder / "completions"
    asked = {
        "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "fledge.cli"], env=os.environ | asked, cwd=folder, capture_output=True, timeout=60)
    return answer.read_text(encoding="utf-8").split() if answer.exists() else []


def test_commands_options_and_choices_are_completed(tmp_path: Path) -> None:
    assert complete("fledge tr", tmp_path) == ["train"]
    assert set(complete("fledge runs ", tmp_path)) >= {"list", "show", "compare", "verdict", "prune"}
    assert complete("fledge train r.yaml --dry", tmp_path) == ["--dry-run"]
    assert set(complete("fledge completion ", tmp_path)) == set(SHELLS)
    assert complete("fledge report runs/a --format p", tmp_path) == ["png", "pdf"]


def test_runs_and_their_stages_are_completed(tmp_path: Path) -> None:
    stage = tmp_path / "runs" / "mine" / "sft"
    stage.mkdir(parents=True)
    (stage / "plan.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    (tmp_path / "model-folder").mkdir()
    assert complete("fledge chat ru", tmp_path) == ["runs/mine"]
    assert complete("fledge chat runs/mine/", tmp_path) == ["runs/mine/sft"]
    assert complete("fledge chat mod", tmp_path) == ["model-folder/"]


def test_keys_of_the_recipe_are_completed_by_its_own_stages(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("stages: {tune: {kind: sft}}\n", encoding="utf-8")
    assert complete("fledge train r.yaml --stages.tune.optimizer.l", tmp_path) == ["--stages.tune.optimizer.learning_rate"]
    assert complete("fledge train r.yaml --stages.dpo.b", tmp_path) == []
    assert complete("fledge train gone.yaml --stages.sft.optimizer.l", tmp_path) == ["--stages.sft.optimizer.learning_rate"]
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    assert complete("fledge train bad.yaml --runtime.d", tmp_path)


def test_very_many_keys_are_offered_level_by_level() -> None:
    assert "--stages.sft" in option_names("--stages.", {}) and len(option_names("--", {})) <= MAX_OPTIONS
    assert "--stages.dpo.beta" in option_names("--stages.dpo.b", {"dpo": None})
    assert option_names("--no.such", {}) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_its_place_and_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# {HOW_TO[shell]}\n") and "fledge" in printed.split("\n", 1)[1] and "_ARGCOMPLETE" in printed


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="there is no bash")
def test_the_script_for_bash_can_be_read_by_bash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    subprocess.run(["/bin/bash", "-n"], input=capsys.readouterr().out, text=True, check=True, timeout=20)
