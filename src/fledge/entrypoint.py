"""`fledge train` as the command line and the workers of a cluster run it: load, join the other processes, train, report."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fledge.errors import EXIT_PEER_LOST, FledgeError, PeerLostError
from fledge.localization import localized, shown
from fledge.run.code_cache import set_code_cache
from fledge.run.stopping import SignalHandler


@dataclass(frozen=True)
class TrainCommand:
    """The arguments of `fledge train`: recipe files, overrides of their keys, keys that may change on resume."""

    recipes: tuple[str, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    allow: tuple[str, ...] = ()
    resume: bool = False
    quiet: bool = False

    def run(self, stopping: SignalHandler) -> None:
        """Train as one rank of the process group that the environment describes, or alone. The main process writes the report.

        `stopping` listens for signals.
        """
        from fledge.recipe import load_recipe
        from fledge.run import Console

        with stopping.at_once():
            from fledge.distributed.context import DistributedContext, is_peer_lost_error
            from fledge.pipeline import Pipeline

        recipe = load_recipe(list(self.recipes), list(self.overrides))
        ranks = DistributedContext.init_distributed(recipe.runtime.device)
        console = Console(quiet=self.quiet or not ranks.is_main_process)
        try:
            run = Pipeline(recipe, console, allow=self.allow, ranks=ranks).run(resume=self.resume)
        except RuntimeError as error:  # from within a sharded model
            if not ranks.is_distributed or not is_peer_lost_error(error):
                raise
            raise PeerLostError from error
        if ranks.is_main_process:
            write_report_and_summarize(run)
        ranks.destroy()


def train_in_folder(training: TrainCommand, folder: str) -> None:
    """Train as a worker of a cluster: `folder` is the directory that the recipe's paths are relative to."""
    set_code_cache()
    os.chdir(folder)
    with SignalHandler(lambda message: None, "stopped on request") as stopping:
        training.run(stopping)


def write_report_and_summarize(run: Path) -> None:
    """Write the report of a run and print its summary."""
    from fledge.model.loading import is_reward_model
    from fledge.report import stage_table, write_report
    from fledge.run import resolve_model_path
    from fledge.run.terminal import Terminal

    report = write_report(run)
    Terminal().print(stage_table(run))
    print(shown(f"report: {report}"))
    if is_reward_model(resolve_model_path(str(run))):
        print(shown(f"choose answers by it: fledge score FILE MODEL --best-of 8 --reward-model {run}"))
    else:
        print(shown(f"talk to it: fledge chat {run}"))


def to_stderr(message: str) -> None:
    """Print a message on stderr, if it can still be written."""
    with suppress(OSError):
        print(shown(f"fledge: {message}"), file=sys.stderr, flush=True)


def leave_output() -> None:
    """Send what is still to be written to nowhere, because the reader of the output has ended."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_code(
    action: Callable[[], int | None],
    debug: bool = False,
    on_interrupt: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = to_stderr,
) -> int:
    """Run `action`, log what went wrong, and return the exit code of the process.

    The code is what `action` returns (0 for None), 2 for an error that the user can mend, 128 + the signal's number (130, 143)
    after an interruption, and 3 where another process of the run has ended. `debug` prints the traceback of errors;
    `on_interrupt` is called first after an interruption.
    """
    try:
        return action() or 0
    except PeerLostError as error:
        log(error.text(localized))
        return EXIT_PEER_LOST
    except FledgeError as error:
        if debug:
            traceback.print_exc()
        log(error.text(localized))
    except KeyboardInterrupt as stop:  # a run that stopped in good order brings its message and signal
        on_interrupt()
        log(localized(getattr(stop, "text", "interrupted")))
        return 128 + getattr(stop, "number", 2)
    except BrokenPipeError:
        leave_output()
        return 0
    except OSError as error:
        if debug:
            traceback.print_exc()
        log(localized(f"{error.filename or 'a file'}: {error.strerror or error}"))
    return 2
