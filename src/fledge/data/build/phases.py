"""The phases of a build that are done shard by shard, by any worker."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from fledge.data.build.directory import PLAN_FILE, BuildDirectory
from fledge.data.build.plan import Shard
from fledge.data.build.read_phase import run_read_phase
from fledge.data.build.tokenize_phase import run_tokenize_phase

PHASES: dict[str, Callable[[BuildDirectory, Shard], None]] = {"rows": run_read_phase, "tokens": run_tokenize_phase}


def run_shard(build: BuildDirectory, phase: str, number: int) -> None:
    """Run a phase for one shard; what every executor calls in the end."""
    PHASES[phase](build, build.plan.shards[number])


def run_shard_in(folder: Path, phase: str, number: int) -> None:
    """Run a phase for one shard of the build in a folder: for workers, which read the plan once."""
    run_shard(_open(folder, (folder / PLAN_FILE).stat().st_mtime_ns), phase, number)


@lru_cache(maxsize=4)
def _open(folder: Path, _changed: int) -> BuildDirectory:
    return BuildDirectory.open(folder)
