"""`fledge export`: write a model for other programs, and compare what they compute with it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fledge.errors import FledgeError
from fledge.export.model_card import model_card
from fledge.export.source import load_source, model_name
from fledge.export.targets import chosen_target
from fledge.export.weight_types import chosen_type
from fledge.model.locate import locate_model
from fledge.run.console import Log
from fledge.run.text_files import write_and_verify


def export_model(location: str, *, to: str, weight_type: str | None, out: str | None, log: Log) -> tuple[Path, list[str]]:
    """Export the model of a run, stage, checkpoint, model directory or GGUF file.

    `to`: a key of `TARGETS`. `weight_type`: a type of the target, None for its default. `out`: a new or empty folder. Returns
    the folder and lines about what is in it and how it compares. Raises FledgeError for a model that the target cannot hold,
    and for files that compute or tokenise otherwise than the model; then nothing is written.
    """
    target = chosen_target(to)
    kind = chosen_type(weight_type, target.types)
    target.check_libraries()
    folder = locate_model(location, log)
    destination = Path(out or f"exports/{model_name(folder)}-{to}-{kind.name}")
    _check_destination(destination)
    source = load_source(location, log, merge=target.merges)
    if target.needs_adapter and not source.has_adapter:
        raise FledgeError("this model has no adapter", where=location, hint="export the model itself with --to hf")
    with _complete_or_absent(destination) as partial:
        lines = target.write(source, kind, partial, log)
        write_and_verify(partial / "README.md", model_card(source, target.library, kind, lines))
    return destination, lines


def _check_destination(destination: Path) -> None:
    """FledgeError for a destination that holds something already."""
    hint = "name another folder with --out: nothing is overwritten"
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise FledgeError("this is a file or link, not a folder", where=str(destination), hint=hint)
    try:
        taken = next(destination.iterdir(), None) if destination.exists() else None
    except OSError as error:
        raise FledgeError(f"cannot be read: {error.strerror}", where=str(destination)) from None
    if taken is not None:
        raise FledgeError(f"this folder is not empty: it holds {taken.name}", where=str(destination), hint=hint)


@contextmanager
def _complete_or_absent(destination: Path) -> Iterator[Path]:
    """A folder beside the destination that becomes it at the end, or is removed after an error. FledgeError for what the disk
    refuses."""
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except OSError as error:
        raise FledgeError(
            f"cannot write: {error.strerror or error}", where=str(destination), hint="nothing was written"
        ) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(partial)
