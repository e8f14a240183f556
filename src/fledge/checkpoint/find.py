"""Finding checkpoints: which ones are whole, which one training goes on from, and which ones are removed.

A checkpoint that cannot be read is not a damaged one: an error of the system ends the search with its cause, so that training
never goes back to an earlier state because of a permission or a disk that is away for a moment.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from fledge.checkpoint.state import TrainState
from fledge.errors import FledgeError
from fledge.run.directory import READABLE_HINT, checkpoint_paths
from fledge.run.file_hash import hash_files
from fledge.run.text_files import read_json

WRITING, REPLACED, REMOVED = ".writing-", ".replaced-", ".removed-"  # prefixes of what a killed process may leave
DAMAGED = "damaged-"  # prefix of a checkpoint that was not whole when training was resumed
ON_REQUEST = "on_request"  # in a manifest: the checkpoint was written because a run had to stop, at no time of its schedule
STATE_FILE = "state/trainer.json"
Found = tuple[Path, TrainState]


def step_name(step: int) -> str:
    """Name of the checkpoint directory of a step."""
    return f"step-{step:08d}"


def step_number(name: str) -> int | None:
    """The step of a file or directory that `step_name` named; None for other names, such as that of a copy."""
    digits = name.removeprefix("step-")
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() else None


def _unreadable(path: Path, error: OSError) -> FledgeError:
    return FledgeError(f"this checkpoint cannot be read: {error.strerror}", where=str(path), hint=READABLE_HINT)


def verify(path: Path) -> str | None:
    """None if the checkpoint is whole, else the first problem, as a sentence. Raises FledgeError for a file that exists and
    cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["xxh3"])) for name, entry in manifest["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return "it has no manifest"
    except OSError as error:
        raise _unreadable(path / "manifest.json", error) from None
    except RecursionError:
        return "its manifest is damaged: nested too deeply"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"its manifest is damaged: {error}"
    if STATE_FILE not in files:
        return f"its manifest is damaged: it does not list {STATE_FILE}"
    problems = (_file_problem(path / name, name, size, digest) for name, (size, digest) in files.items())
    return next((problem for problem in problems if problem is not None), None)


def _file_problem(file: Path, name: str, size: int, digest: str) -> str | None:
    """Why a file is not the one of the manifest; None if it is."""
    try:
        found = file.stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes, its manifest says {size:,}"
        return None if hash_files(file) == digest else f"{name} does not have the hash of its manifest"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except OSError as error:
        raise _unreadable(file, error) from None


def read_state(path: Path) -> TrainState:
    """The training state of a whole checkpoint. Raises FledgeError if it is not a state of that step, or if another version of
    fledge wrote it."""
    file = path / STATE_FILE
    values = read_json(file, TrainState, f"move {path} away: training then goes on from the checkpoint before it")
    if step_name(values.get("step", 0)) != path.name:
        raise FledgeError(f"damaged: this is the state of step {values.get('step', 0):,}", where=str(file))
    try:
        return TrainState(**values)
    except TypeError as error:
        raise FledgeError(
            f"another version of fledge wrote this checkpoint: {error}",
            where=str(path),
            hint="resume with the version in the run's environment.json",
        ) from None


def first_whole(paths: Iterable[Path], on_damaged: Callable[[Path, str], None] | None = None) -> Found | None:
    """The first whole checkpoint with its state; those before it are passed to `on_damaged` with their problems."""
    for path in paths:
        problem = verify(path)
        if problem is None:
            return path, read_state(path)
        if on_damaged:
            on_damaged(path, problem)
    return None


def latest_checkpoint(
    folder: Path, on_damaged: Callable[[Path, str], None] | None = None, before: int | None = None
) -> Found | None:
    """Path and state of the newest whole checkpoint, of a step below `before` if given; None if there is none.

    Each newer checkpoint that is damaged is passed to `on_damaged` with its problem. Raises FledgeError if one cannot be read.
    """
    paths = [path for path in checkpoint_paths(folder) if before is None or path.name < step_name(before)]
    return first_whole(reversed(paths), on_damaged)


def checkpoint_to_resume(folder: Path, on_damaged: Callable[[Path, str], None]) -> Found | None:
    """The checkpoint that training goes on from; None if nothing was saved yet.

    Raises FledgeError if checkpoints exist and none is whole: training never starts over by itself.
    """
    problems: list[str] = []

    def note(path: Path, problem: str) -> None:
        problems.append(f"{path.name}: {problem}")
        on_damaged(path, problem)

    found = latest_checkpoint(folder, note)
    if found is None and problems:
        raise FledgeError(
            "none of the checkpoints of this stage is whole:" + "".join(f"\n  {problem}" for problem in problems),
            where=str(folder),
            hint=f"put whole copies back; or start the stage over: move {folder} away, then run the same command again",
        )
    return found


def latest_before(folder: Path, since: int) -> Found | None:
    """The newest whole checkpoint of a step below `since`; if there is none, the oldest whole checkpoint.

    Checkpoints on request are passed over where there are others, so that a run that was stopped and resumed goes back to the
    same state as one that was never stopped."""
    paths = checkpoint_paths(folder)
    scheduled = [path for path in paths if not is_on_request(path)]
    earlier = [path for path in paths if path.name < step_name(since)]
    first_choice = [path for path in scheduled if path.name < step_name(since)]
    return first_whole([*reversed(first_choice), *reversed(earlier), *scheduled, *paths])


def is_on_request(path: Path) -> bool:
    """Whether a checkpoint was written because the run had to stop; False if its manifest cannot be read."""
    try:
        return bool(json.loads((path / "manifest.json").read_text(encoding="utf-8")).get(ON_REQUEST))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def update_symlink(folder: Path, name: str, target: Path) -> None:
    """Make the symbolic link `name` (`best` or `last`) point to a checkpoint, atomically."""
    tmp_path = folder / f".{name}"
    tmp_path.unlink(missing_ok=True)
    tmp_path.symlink_to(target.name)
    tmp_path.replace(folder / name)


def set_aside_later(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints beyond `step`, which were not whole when training was resumed from `step`, so that they neither
    count nor are removed. Returns their new paths."""
    renamed = []
    for path in checkpoint_paths(folder):
        if path.name > step_name(step):
            names = (f"{DAMAGED}{path.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 1000))))
            target = next(folder / name for name in names if not (folder / name).exists())
            renamed.append(path.replace(target))
    return renamed


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, renamed first: a kill while its files are removed leaves none that looks damaged."""
    removed = path.with_name(f"{REMOVED}{path.name}")
    shutil.rmtree(removed, ignore_errors=True)
    path.replace(removed)
    shutil.rmtree(removed)


def prune(folder: Path, keep: int, best_step: int | None, step: int, keep_first: bool = False) -> None:
    """Remove all checkpoints except the newest `keep` up to `step`, that of `step` and the best one, and the remains of killed
    processes. `keep_first`: keep that of step 0 as well.

    Checkpoints beyond `step` are of an attempt that was rolled back. Those on request do not count among the newest.
    """
    paths = checkpoint_paths(folder)
    scheduled = [path.name for path in paths if path.name <= step_name(step) and not is_on_request(path)]
    kept = {*scheduled[-keep:], step_name(step)}
    kept |= {step_name(best_step)} if best_step is not None else set()
    kept |= {step_name(0)} if keep_first else set()
    for path in reversed(paths):
        if path.name not in kept:
            remove_checkpoint(path)
    for prefix in (WRITING, REPLACED, REMOVED):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)
