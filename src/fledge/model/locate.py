"""The directory of a model that a user names: a run, a stage, a checkpoint, a directory, a GGUF file, or a model of the hub."""

from pathlib import Path

from fledge.model.hub import hub_copy, is_hub_name, parse_hub_name
from fledge.run import Log, resolve_model_path, silent

GGUF, MAGIC = ".gguf", b"GGUF"
SOURCE = "fledge_source.json"  # in a converted directory: the file that it was made of


def locate_model(location: str, log: Log = silent) -> Path:
    """The model directory of a path to a run, stage, checkpoint or model directory, of a GGUF file, which is converted once, or
    of `hub:owner/name`, which is downloaded once. Raises FledgeError where there is no model, or one that cannot be read."""
    path = Path(location).expanduser()
    found = locate_named(path, log)
    return resolve_model_path(location) if found == path else found


def locate_named(path: Path, log: Log = silent) -> Path:
    """The model directory of a GGUF file or of a model of the hub; any other path as it is. FledgeError as `locate_model`."""
    if is_hub_name(str(path)):
        return hub_copy(parse_hub_name(str(path)), log=log).folder
    if _is_gguf(path):
        from fledge.model.gguf.directory import gguf_directory  # it loads torch

        return gguf_directory(path, log)
    return path


def _is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name or, as the files of some programs have other names, by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == GGUF:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
