"""The actions of `fledge runs`: each calls one function and shows its result."""

import argparse
import json
from pathlib import Path
from typing import Any

from fledge.escaping import escaped_json
from fledge.localization import shown


def run_runs(options: argparse.Namespace) -> int | None:
    """Run the action that the options name; returns the exit code of `verdict`, None for 0."""
    return ACTIONS[options.action](options)


def _list(options: argparse.Namespace) -> None:
    from fledge.runs.listing import as_json, list_runs

    runs = list_runs(Path(options.folder))
    if options.json:
        return _print_json(as_json(runs))
    if not runs:
        print(shown(f"{options.folder}: no run here"))
        return
    from fledge.runs.tables import print_list

    print_list(runs)


def _show(options: argparse.Namespace) -> None:
    from fledge.runs.read import find_subject
    from fledge.runs.show import show

    shown = show(find_subject(options.run))
    if options.json:
        return _print_json(shown)
    from fledge.runs.tables import print_shown
    from fledge.runs.verdict import reason_lines

    print_shown(shown, {name: reason_lines(one["verdict"]) for name, one in shown["stages"].items() if one["verdict"]})


def _compare(options: argparse.Namespace) -> None:
    from fledge.runs.compare import compare

    found = compare(options.run)
    if options.json:
        return _print_json(found.as_dict())
    from fledge.runs.tables import print_comparison

    print_comparison(found)


def _verdict(options: argparse.Namespace) -> int:
    from fledge.runs.read import find_subject
    from fledge.runs.verdict import run_verdict, verdict_lines

    found = run_verdict(find_subject(options.run))
    if options.json:
        _print_json(found.as_dict())
    else:
        for line in verdict_lines(found):
            print(shown(line))
    return found.exit_code


def _prune(options: argparse.Namespace) -> None:
    from fledge.runs.prune import prune_runs
    from fledge.runs.tables import print_pruned

    found = prune_runs(options.run, remove=options.yes)
    if options.json:
        stages = [{"stage": str(one.stage), "removed": one.removed, "kept": one.kept, "skipped": one.skipped} for one in found]
        return _print_json({"removed": options.yes, "bytes": sum(one.bytes for one in found), "stages": stages})
    print_pruned(found, removed=options.yes)


def _print_json(value: Any) -> None:
    from fledge.run.events import nan_to_none

    print(escaped_json(json.dumps(nan_to_none(value), ensure_ascii=False, indent=1)))


ACTIONS = {"list": _list, "show": _show, "compare": _compare, "verdict": _verdict, "prune": _prune}
