"""The arguments of `fledge runs`: the parsers of its actions."""

import argparse
import os

RUNS = "runs"  # as fledge.runs.read has it, which is not loaded for the help


def add_runs(commands: argparse._SubParsersAction) -> None:
    """Add `fledge runs` with its actions."""
    command = commands.add_parser("runs", help="list, show, compare, prune runs; the verdict for scripts", allow_abbrev=False)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the runs in a folder", allow_abbrev=False)
    listing.add_argument("folder", type=os.path.expanduser, nargs="?", default=RUNS, help=f"folder of runs (default {RUNS})")
    subject = "run, stage (RUN/STAGE), step of a stage (RUN/STAGE@step-N), or folder of results of `fledge eval`"
    show = actions.add_parser("show", help="what a run has trained and reached, and the verdict", allow_abbrev=False)
    show.add_argument("run", type=os.path.expanduser, help=subject)
    compare = actions.add_parser("compare", help="recipes, metrics and answers, with paired tests", allow_abbrev=False)
    compare.add_argument("run", type=os.path.expanduser, nargs="+", help=f"two or more, compared with the first: {subject}")
    verdict = actions.add_parser(
        "verdict", help="the verdict; exit code 0 release, 10 keep training, 11 roll back", allow_abbrev=False
    )
    verdict.add_argument("run", type=os.path.expanduser, help="run, or stage (RUN/STAGE)")
    prune = actions.add_parser("prune", help="remove checkpoints that nothing goes on from", allow_abbrev=False)
    prune.add_argument("run", type=os.path.expanduser, nargs="+", help="runs")
    prune.add_argument("--yes", action="store_true", help="remove them; without it they are only told")
    for action in (listing, show, compare, verdict, prune):
        action.add_argument("--json", action="store_true", help="print JSON")
