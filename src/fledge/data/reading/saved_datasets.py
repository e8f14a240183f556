"""Folders that `datasets.Dataset.save_to_disk` writes: which files hold their rows."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from fledge.errors import FledgeError

STATE, SPLITS = "state.json", "dataset_dict.json"
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", STATE, SPLITS)  # files of a folder that describe rows, but hold none


def saved_dataset_files(folder: Path, key: str) -> list[Path] | None:
    """The files of a saved dataset, in their order; None for any other folder.

    Raises FledgeError with the recipe key for a folder of several splits, and for one that lacks a file."""
    splits = _json_object(folder / SPLITS).get("splits")
    if isinstance(splits, list):
        names = [str(name) for name in splits]
        inner = folder / ("train" if "train" in names or not names else names[0])
        raise FledgeError(f"'{folder}' holds a dataset in splits: {', '.join(names)}", where=key, hint=f"write path: {inner}")
    listed = _json_object(folder / STATE).get("_data_files")
    if not isinstance(listed, list):
        return None
    names = [str(entry.get("filename")) for entry in listed if isinstance(entry, dict)]
    files = [folder / Path(name).name for name in names]
    if missing := next((file for file in files if not file.is_file()), None):
        raise FledgeError(
            f"the saved dataset '{folder}' lacks its file {missing.name}", where=key, hint="copy the whole folder"
        )
    return files


def _json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    with suppress(OSError, ValueError):
        if file.is_file():
            value = orjson.loads(file.read_bytes())
            return value if isinstance(value, dict) else {}
    return {}
