"""`runtime.deterministic` switches what it says, on a GPU only, and refuses what would break it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fledge.autotune.compute_config import ComputeConfig
from fledge.autotune.determinism import WORKSPACE, allow_nondeterministic, use_deterministic
from fledge.errors import FledgeError
from fledge.recipe import recipe_from_dict
from fledge.run.text_files import write_json
from tests.support import tiny_run
from tests.support.decoders import make_decoder


@pytest.fixture(autouse=True)
def switched_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins and ends without the switch."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    use_deterministic(False, "cuda")
    os.environ.pop(WORKSPACE, None)


def test_the_switch_turns_on_everything_that_repeatable_bits_need() -> None:
    use_deterministic(True, "cuda")
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[WORKSPACE] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory
    use_deterministic(False, "cuda")
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory


def test_on_a_cpu_nothing_is_switched() -> None:
    ComputeConfig(
        device="cpu", precision="fp32", attention="blocked", compile=False, threads=torch.get_num_threads(), deterministic=True
    ).apply(make_decoder())
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ


@pytest.mark.parametrize("value", [":16:8", ":4096:8"])
def test_a_workspace_of_the_user_that_is_as_good_is_kept(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, value)
    use_deterministic(True, "cuda")
    assert os.environ[WORKSPACE] == value


def test_a_workspace_of_the_user_that_would_break_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(FledgeError, match="with which products are not repeatable") as error:
        use_deterministic(True, "cuda")
    assert error.value.where == "runtime.deterministic"


def test_generation_may_use_every_kernel_and_training_goes_on_strictly() -> None:
    use_deterministic(True, "cuda")
    with allow_nondeterministic():
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_configuration_of_before_reads_as_not_deterministic(tmp_path: Path) -> None:
    values = {"device": "cpu", "precision": "fp32", "attention": "blocked", "compile": False, "threads": 1}
    write_json(tmp_path / "compute.json", values)
    assert ComputeConfig.read(tmp_path / "compute.json").deterministic is False


def test_the_recipe_has_the_key(tmp_path: Path) -> None:
    tree = tiny_run.tree(tmp_path / "world", tmp_path / "runs")
    tree["runtime"]["deterministic"] = True
    assert recipe_from_dict(tree).runtime.deterministic
    tree["runtime"]["deterministic"] = "sometimes"
    with pytest.raises(FledgeError, match="deterministic"):
        recipe_from_dict(tree)
