"""Compiled code is loaded only from a folder into which nobody else can write."""

import os
import stat
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.run.code_cache import VARIABLES, check_private, code_cache_folder, private_code_cache, set_by_user, set_code_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder, and no variable set."""
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def mode(folder: Path) -> int:
    """The permissions of a folder."""
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_the_folder_is_private_whatever_the_umask(umask: int) -> None:
    before = os.umask(umask)
    try:
        set_code_cache()
        assert mode(private_code_cache()) == 0o700
    finally:
        os.umask(before)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(code_cache_folder())
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == code_cache_folder()
    assert not any(set_by_user(name, code_cache_folder()) for name in VARIABLES)


@pytest.mark.parametrize("permissions", [0o770, 0o777, 0o720, 0o702])
def test_a_folder_that_others_can_write_is_refused(permissions: int) -> None:
    code_cache_folder().mkdir(parents=True)
    code_cache_folder().chmod(permissions)
    with pytest.raises(FledgeError, match="the cache of compiled code would be executed, and other users can write") as caught:
        private_code_cache()
    assert caught.value.where == str(code_cache_folder()) and "remove it" in str(caught.value.hint)


def test_a_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = private_code_cache()
    monkeypatch.setattr(os, "getuid", lambda: owner.stat().st_uid + 1)
    with pytest.raises(FledgeError, match="it belongs to another user"):
        check_private(owner, "it", "")


@pytest.mark.parametrize("name", VARIABLES)
def test_a_folder_of_the_user_is_used_if_it_is_private(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tmp_path / "chosen"
    monkeypatch.setenv(name, str(chosen))
    set_code_cache()
    assert os.environ[name] == str(chosen) and set_by_user(name, private_code_cache()) == chosen
    chosen.mkdir(mode=0o755)
    private_code_cache()
    chosen.chmod(0o775)
    with pytest.raises(FledgeError, match=f"the code in {name} would be executed"):
        private_code_cache()


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("fledge.run.code_cache._temporary", [])
    set_code_cache()
    folder = private_code_cache()
    assert mode(folder) == 0o700 and folder == private_code_cache()
    assert not any(set_by_user(name, folder) for name in VARIABLES)
