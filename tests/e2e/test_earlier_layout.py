"""Runs and builds that a version with other names of files wrote: each command says so, and changes nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fledge
from fledge.cli import main
from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.report import write_report
from fledge.run import Console
from tests.support import tiny_run

EARLIER = {"result.json": "done.json", "compute.json": "machine.json", "data/data_report.json": "data/account.json"}


@pytest.fixture(params=sorted(EARLIER))
def earlier_run(finished: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A finished run in which one kind of file has its earlier name."""
    run = tmp_path / "runs" / finished.name
    shutil.copytree(finished, run, symlinks=True)
    for stage in ("pretrain", "sft", "dpo"):
        file = run / stage / request.param
        file.rename(run / stage / EARLIER[request.param])
    return run


@pytest.mark.parametrize(
    "use",
    [
        lambda run: fledge.Run(run),
        lambda run: fledge.load(run),
        lambda run: fledge.load(run / "sft"),
        lambda run: write_report(run),
    ],
    ids=["Run", "load of the run", "load of a stage", "report"],
)
def test_python_raises_an_error_that_names_the_file_and_a_model_to_load(
    use: Callable[[Path], object], earlier_run: Path
) -> None:
    before = {file: file.read_bytes() for file in sorted(earlier_run.rglob("*")) if file.is_file()}
    with pytest.raises(FledgeError, match="an earlier version of fledge wrote this") as caught:
        use(earlier_run)
    assert caught.value.hint is not None
    model = Path(caught.value.hint.rpartition(": ")[2])
    assert fledge.load(model).generate("A cat", max_new_tokens=1) is not None
    assert {file: file.read_bytes() for file in sorted(earlier_run.rglob("*")) if file.is_file()} == before


def test_commands_exit_with_2_and_the_cause(
    earlier_run: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["report"], ["chat"], ["data", "account"], ["data", "show"]):
        assert main([*words, str(earlier_run)]) == 2
        assert "an earlier version of fledge wrote this" in capsys.readouterr().err
    assert main(["quickstart", "--name", earlier_run.name, "--output", str(earlier_run.parent), "--resume"]) == 2
    assert "an earlier version of fledge wrote this" in capsys.readouterr().err
    tree = tiny_run.tree(world, earlier_run.parent, name=earlier_run.name)
    with pytest.raises(FledgeError, match="an earlier version of fledge wrote this"):
        Pipeline(recipe_from_dict(tree), Console(quiet=True)).run()
