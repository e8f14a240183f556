"""Runs as processes of their own: `fledge train RECIPE`, which resumes what was interrupted. They end with their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fledge.recipe import Recipe
from fledge.run import write_json
from fledge.run.directory import StageDirectory
from fledge.run.text_files import read_json
from fledge.sweep.recipes import write_recipe

COMMAND = ("-m", "fledge.cli", "train")
RETRIES = 1  # of a run whose process was killed, by the system or a person
GRACE_SECONDS = 60.0  # to save the state after SIGTERM
POLL_SECONDS = 0.1
CLOCK_SECONDS = 5.0  # between two records of the time of a run: so much of it is forgotten, at most, when a sweep is killed
MESSAGE_LINES = 12  # of a failed run's output
PR_SET_PDEATHSIG = 1  # of prctl(2): a signal for this process when its parent ends


def _die_with_parent() -> None:
    """Called in the new process: Linux kills it when the sweep's process ends, however that ends. A run that is killed loses
    nothing but its last steps."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(kw_only=True)
class RunProcess:
    """The process of one run, what it prints, and the time that it has taken, which is kept in a file beside the run."""

    recipe: Recipe
    last_stage: StageDirectory
    process: subprocess.Popen[bytes] | None = None
    retries: int = RETRIES
    _before: float = 0.0  # seconds of processes that have ended
    _started: float = 0.0
    _recorded: float = 0.0

    def __post_init__(self) -> None:
        """FledgeError if the file with the time is damaged."""
        if self.clock.exists():
            self._before = self._recorded = read_json(self.clock, dict[str, float])["seconds"]

    @property
    def clock(self) -> Path:
        """The file with the seconds of the run so far."""
        return Path(self.recipe.output) / f"{self.recipe.name}.seconds.json"

    @property
    def seconds(self) -> float:
        """Seconds of all processes of the run, those of a sweep that was interrupted too."""
        return self._before + (0.0 if self.process is None else time.monotonic() - self._started)

    @property
    def log(self) -> Path:
        """The file of what the run prints."""
        return Path(self.recipe.output) / f"{self.recipe.name}.log"

    @property
    def is_finished(self) -> bool:
        """Whether the last stage is trained to its end."""
        return self.last_stage.result_file.exists()

    def start(self) -> None:
        """Start the process, which goes on where an earlier one was interrupted."""
        file = write_recipe(self.recipe)
        environment = {**os.environ, "FLEDGE_LANGUAGE": "en"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *COMMAND, str(file), "--quiet"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends its runs in good order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self._started = time.monotonic()

    def ended(self) -> bool:
        """Whether the process has ended. One that was killed by another is started again, once."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            if self.seconds > self._recorded + CLOCK_SECONDS:
                self._record()
            return False
        self.close()
        if code < 0 and self.retries and not self.is_finished:
            self.retries -= 1
            self.start()
            return False
        return True

    def close(self) -> None:
        """Record the time of a process that has ended."""
        self._before, self.process = self.seconds, None
        self._record()

    def _record(self) -> None:
        self._recorded = self.seconds
        write_json(self.clock, {"seconds": round(self._recorded, 3)})

    def message(self) -> str:
        """What a failed run printed last."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        starts = [number for number, line in enumerate(lines) if line.startswith("fledge: ")]
        shown = lines[starts[-1] :] if starts else lines[-MESSAGE_LINES:]
        return " ".join(shown[:MESSAGE_LINES]).removeprefix("fledge: ") or "its process was killed"

    def kill(self) -> None:
        """End the process at once: its state is not needed."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.close()
        self.process = None


def stop_all(runs: Iterable[RunProcess]) -> None:
    """End all processes in good order: they save their state. One that does not in time is killed."""
    alive = [(run, run.process) for run in runs if run.process is not None and run.process.poll() is None]
    for _, process in alive:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for run, process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        run.close()
