"""`fledge train`, as the command and the workers of a cluster do it: load, join the other processes, run, report."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fledge.errors import GONE, FledgeError, Gone


@dataclass(frozen=True)
class Training:
    """What the command line says about a run: recipes, keys that override theirs, and how to go on."""

    recipes: tuple[str, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    allow: tuple[str, ...] = ()
    resume: bool = False
    quiet: bool = False

    def run(self) -> None:
        """Train as one of the ranks that the environment tells of, or alone; the first one writes the report."""
        from fledge.pipeline import Pipeline
        from fledge.recipe import load_recipe
        from fledge.run import Console
        from fledge.train.ranks import Ranks

        recipe = load_recipe(list(self.recipes), list(self.overrides))
        ranks = Ranks.join()
        console = Console(quiet=self.quiet or not ranks.first)
        run = Pipeline(recipe, console, allow=self.allow, ranks=ranks).run(resume=self.resume)
        if ranks.first:
            finish(run)
        ranks.leave()


def finish(run: Path) -> None:
    """Write the report of a run, and say what came of it."""
    from rich.console import Console as Rich

    from fledge.report import stage_table, write_report

    report = write_report(run)
    Rich().print(stage_table(run))
    print(f"report: {report}")
    print(f"talk to it: fledge chat {run}")


def exit_code(act: Callable[[], int | None], debug: bool = False, at_end: Callable[[], None] = lambda: None) -> int:
    """Do something and say on stderr what went wrong; returns 0 or what `act` gives, 2 for an error that the user can mend,
    128 + the number of the signal (130, 143) for an interruption, 3 where another process of the run has ended.

    `debug` lets errors pass; `at_end` is called first after an interruption."""
    try:
        return act() or 0
    except Gone as error:
        print(f"fledge: {error.text()}", file=sys.stderr)
        return GONE
    except FledgeError as error:
        if debug:
            raise
        print(f"fledge: {error.text()}", file=sys.stderr)
    except KeyboardInterrupt as stop:  # from a run: in good order
        at_end()
        print(f"fledge: {getattr(stop, 'text', 'interrupted')}", file=sys.stderr)
        return 128 + getattr(stop, "number", 2)
    except BrokenPipeError:
        return 0
    except OSError as error:
        if debug:
            raise
        print(f"fledge: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
    return 2
