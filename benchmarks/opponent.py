"""Shared by the benchmarks against other trainers: a clock, the fastest of several ways, turns, speeds, and peak memory."""

import gc
import importlib
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol, TypeVar

from measure import ratios

LIBRARIES = ("torch._inductor.compile_fx", "datasets", "transformers", "peft", "trl")


class Timed(Protocol):
    """The work of some steps."""

    @property
    def speed(self) -> float:
        """How much a second."""
        ...


W = TypeVar("W", bound=Timed)
Contender = TypeVar("Contender", bound=Callable[[], Timed])


def clock(seconds: list[float]) -> Any:
    """A callback of the library's trainer that adds the seconds of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *positional: object, **named: object) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *positional: object, **named: object) -> None:
            seconds[-1] += time.perf_counter()

    return Clock()


def fastest(
    ways: Mapping[str, Callable[[], Contender]], unit: str, digits: int | None = None, trials: int = 2
) -> tuple[str, Contender, dict[str, float | str]]:
    """The fastest way that works here, and the speed of each way in the last of its trials. `unit`: of a speed, shown with
    `digits`."""
    tried: dict[str, float | str] = {}
    best: tuple[float, str, Contender] | None = None
    for name, make in ways.items():
        try:
            contender = make()
            speed = [contender().speed for _ in range(trials)][-1]
        except Exception as error:  # a way that torch.compile or the library does not support here is reported and not used
            tried[name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        else:
            tried[name] = round(speed, digits)
            if best is None or speed > best[0]:
                best = (speed, name, contender)
        print(f"TRL, {name}: {tried[name]} {unit}", flush=True)
    if best is None:
        raise RuntimeError(f"TRL trains in none of these ways here: {tried}")
    return best[1], best[2], tried


def take_turns(contenders: Mapping[str, Callable[[], W]], rounds: int, unit: str, digits: int = 0) -> dict[str, list[W]]:
    """The work of each contender in each round; contenders take turns. `unit`: of a speed, shown with `digits`."""
    works: dict[str, list[W]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            works[name].append(run())
            print(f"round {number + 1}/{rounds} {name}: {works[name][-1].speed:.{digits}f} {unit}", flush=True)
    return works


def comparison(works: Mapping[str, Sequence[Timed]]) -> dict[str, Any]:
    """The ratios of fledge's speed to that of TRL as it ships and at its best."""
    speeds = {name: [work.speed for work in those] for name, those in works.items()}
    against = {name: ratios(speeds["fledge"], speeds[name]) for name in ("as_shipped", "best")}
    return {
        "ratio_as_shipped": against["as_shipped"]["median"],
        "ratio_best": against["best"]["median"],
        "ranges": against,
    }


# -- memory ---------------------------------------------------------------------------------------------------------------


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def resident_at_start() -> int:
    """VmRSS of this process with the libraries of both contenders loaded; VmHWM begins anew."""
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def load_libraries_aside() -> None:
    """Start a process that loads the libraries of both contenders while this one works; `memories` forks it, so that its
    own processes need not load them."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(LIBRARIES))
    forkserver.ensure_running()


def memories(measure: Callable[..., int], whose: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """For each name the bytes that `measure` returns of these arguments, in a process of its own. Two run at a time: sizes do
    not depend on it."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        running = {name: pool.submit(measure, *arguments) for name, arguments in whose.items()}
        return {name: one.result() for name, one in running.items()}
