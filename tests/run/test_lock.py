"""One lock for one folder, whatever path leads to it."""

from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.run import exclusive_lock


@pytest.mark.parametrize("link", ["folder", "parent"])
def test_two_paths_to_one_folder_are_one_lock(tmp_path: Path, link: str) -> None:
    real = tmp_path / "runs" / "r"
    real.mkdir(parents=True)
    (tmp_path / "other").symlink_to(tmp_path / "runs" if link == "parent" else real)
    other = tmp_path / "other" / "r" if link == "parent" else tmp_path / "other"
    with exclusive_lock(real), pytest.raises(FledgeError, match="another process is writing here"), exclusive_lock(other):
        pass
    with exclusive_lock(other):
        pass


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(FledgeError, match=r"loop|cannot write"), exclusive_lock(tmp_path / "a"):
        pass
