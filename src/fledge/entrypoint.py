"""`fledge train`, as the command and the workers of a cluster do it: load, join the other processes, run, report."""

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fledge.errors import EXIT_PEER_LOST, FledgeError, PeerLostError
from fledge.run.stopping import SignalHandler


@dataclass(frozen=True)
class TrainCommand:
    """What the command line says about a run: recipes, keys that override theirs, and how to go on."""

    recipes: tuple[str, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    allow: tuple[str, ...] = ()
    resume: bool = False
    quiet: bool = False

    def run(self, stopping: SignalHandler) -> None:
        """Train as one of the ranks that the environment tells of, or alone; the first one writes the report.

        `stopping` listens for signals. They wait while libraries are loaded, some of which swallow whatever is raised."""
        from fledge.recipe import load_recipe
        from fledge.run import Console

        with stopping.deferred():
            from fledge.distributed.context import DistributedContext, is_peer_lost_error
            from fledge.pipeline import Pipeline

        recipe = load_recipe(list(self.recipes), list(self.overrides))
        ranks = DistributedContext.init_distributed()
        console = Console(quiet=self.quiet or not ranks.is_main_process)
        try:
            run = Pipeline(recipe, console, allow=self.allow, ranks=ranks).run(resume=self.resume)
        except RuntimeError as error:  # from within a divided model
            if ranks.alone or not is_peer_lost_error(error):
                raise
            raise PeerLostError from error
        if ranks.is_main_process:
            write_report_and_summarise(run)
        ranks.destroy()


def write_report_and_summarise(run: Path) -> None:
    """Write the report of a run, and say what came of it."""
    from rich.console import Console as Rich

    from fledge.report import stage_table, write_report

    report = write_report(run)
    Rich().print(stage_table(run))
    print(f"report: {report}")
    print(f"talk to it: fledge chat {run}")


def to_stderr(text: str) -> None:
    """For a person at a terminal."""
    print(f"fledge: {text}", file=sys.stderr)


def exit_code(
    act: Callable[[], int | None],
    debug: bool = False,
    at_end: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = to_stderr,
) -> int:
    """Do something and say what went wrong; returns 0 or what `act` gives, 2 for an error that the user can mend,
    128 + the number of the signal (130, 143) for an interruption, 3 where another process of the run has ended.

    `debug` shows the traceback of errors; `at_end` is called first after an interruption."""
    try:
        return act() or 0
    except PeerLostError as error:
        say(error.text())
        return EXIT_PEER_LOST
    except FledgeError as error:
        if debug:
            traceback.print_exc()
        say(error.text())
    except KeyboardInterrupt as stop:  # from a run: in good order
        at_end()
        say(getattr(stop, "text", "interrupted"))
        return 128 + getattr(stop, "number", 2)
    except BrokenPipeError:
        return 0
    except OSError as error:
        if debug:
            traceback.print_exc()
        say(f"{error.filename or 'a file'}: {error.strerror or error}")
    return 2
