"""A tokenizer's folder, which appears complete or not at all."""

import shutil
from pathlib import Path

from fledge.tokenizer.tokenizer import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, replace: bool = False) -> None:
    """Save a tokenizer into a folder, which appears complete or not at all. A saved tokenizer stays as it is, unless `replace`:
    then it is one that a killed process has left, perhaps of another recipe."""
    if (folder / "tokenizer_config.json").exists() and not replace:
        return
    tmp_path = folder.with_name(f".{folder.name}")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tokenizer.save(tmp_path)
    shutil.rmtree(folder, ignore_errors=True)
    tmp_path.replace(folder)
