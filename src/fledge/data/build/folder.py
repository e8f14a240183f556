"""The folder of a build: begun, continued, replaced, told apart from others, cleared."""

import shutil
from contextlib import suppress
from pathlib import Path

from fledge.data.build.phases import CONTAMINATION, complete
from fledge.data.build.shards import BuildPlan
from fledge.errors import FledgeError
from fledge.recipe.diff import changed_leaves
from fledge.run.text_files import write_text


def init_build(folder: Path, plan: BuildPlan) -> None:
    """A new build, or the same one again; another one's leavings go. FledgeError where the folder holds something else."""
    file = folder / "build_plan.json"
    if not file.exists() and folder.exists() and any(folder.iterdir()):
        raise FledgeError("this folder holds something else", where=str(folder), hint="move it away, or choose another folder")
    if file.exists() and not (_same(file, plan) and _has_items(folder, plan)):
        remove_build(folder)
    for half in (*folder.glob("rows/.*"), *folder.glob("tokens/.*")):
        shutil.rmtree(half, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_bytes() != plan.encoded():
        write_text(file, plan.encoded().decode())


def _same(file: Path, plan: BuildPlan) -> bool:
    """Whether a build was begun for the same data. One that cannot be read was not."""
    try:
        return BuildPlan.read(file).compared() == plan.compared()
    except FledgeError:
        return False


def _has_items(folder: Path, plan: BuildPlan) -> bool:
    """Whether the rows that were read are still there to be encoded."""
    read = [folder / "rows" / shard.folder for shard in plan.shards if complete(folder / "rows" / shard.folder)]
    return all((rows / "items.jsonl").exists() for rows in read)


def remove_build(folder: Path) -> None:
    """Remove what a build wrote into a folder, and the folder if nothing else is in it."""
    if not (folder / "build_plan.json").exists():
        return
    for name in ("rows", "keep", "tokens", "tokenizer", "jobs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CONTAMINATION, "data_report.json", "manifest.json", "build_plan.json"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def drop_items(folder: Path) -> None:
    """Remove what only serves to go on with an interrupted build, once all stages of a run are complete."""
    for name in ("items.jsonl", "signatures.safetensors"):
        for file in folder.glob(f"rows/*/{name}"):
            file.unlink()


def check_unchanged(folder: Path, plan: BuildPlan) -> None:
    """FledgeError where a complete build was made from other files or with another recipe."""
    before = BuildPlan.read(folder / "build_plan.json")
    if before.compared() == plan.compared():
        return
    files = sorted({path for path, *_ in set(before.stamps) ^ set(plan.stamps)})
    changed = [*differences(before, plan), *(f"{path}: changed since" for path in files)]
    raise FledgeError(
        "this directory was built from other data:\n  " + "\n  ".join(changed or ["sources or installed extras differ"]),
        where=str(folder),
        hint="build into another folder, or remove this one",
    )


def is_complete(folder: Path) -> bool:
    """Whether a build directory holds all its tokens."""
    return (folder / "manifest.json").exists() and (folder / "data_report.json").exists()


def differences(built: BuildPlan, asked: BuildPlan) -> list[str]:
    """One line for each thing that a build was asked for otherwise."""
    changed = changed_leaves(built.asked, asked.asked)
    return [f"{key}: built with {before!r}, asked for {after!r}" for key, before, after in changed]
