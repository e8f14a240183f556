"""`fledge rate`: its arguments and its actions. Each action calls one function and shows its result."""

import argparse
import os

from fledge.localization import shown


def add_rate(commands: argparse._SubParsersAction) -> None:
    """Add `fledge rate` with its actions."""
    command = commands.add_parser("rate", help="people rate answers, blind, and agree or not", allow_abbrev=False)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    sheet = actions.add_parser("sheet", help="a CSV sheet to fill in", allow_abbrev=False)
    ask = actions.add_parser("ask", help="rate in the terminal", allow_abbrev=False)
    for action, text in ((sheet, "CSV file"), (ask, "file of ratings; an interrupted call goes on")):
        action.add_argument(
            "answers", type=os.path.expanduser, nargs="+", help="files of `fledge prefer sample` or `fledge eval`"
        )
        action.add_argument("--out", type=os.path.expanduser, required=True, metavar="FILE", help=text)
        action.add_argument("--rater", metavar="NAME", help="name of the rater (default: that of the file)")
        action.add_argument("--seed", type=int, default=0, help="seed of the order of the answers")
    report = actions.add_parser("report", help="means by model, differences, agreement of raters", allow_abbrev=False)
    report.add_argument("ratings", type=os.path.expanduser, nargs="+", help="filled sheets and files of ratings, one a rater")
    report.add_argument(
        "--answers", type=os.path.expanduser, action="append", required=True, metavar="FILE",
        help="the answers that were rated; may be repeated",
    )  # fmt: skip
    report.add_argument("--json", action="store_true", help="print JSON")


def run_rate(options: argparse.Namespace) -> None:
    """Run the action that the options name."""
    ACTIONS[options.action](options)


def _sheet(options: argparse.Namespace) -> None:
    from pathlib import Path

    from fledge.prefer.quality import write_sheet

    out = Path(options.out)
    _print(write_sheet(options.answers, out, options.seed, options.rater or out.stem))


def _ask(options: argparse.Namespace) -> None:
    from pathlib import Path

    from fledge.prefer.quality_person import rate
    from fledge.run import Console

    out = Path(options.out)
    _print(rate(options.answers, out, rater=options.rater or out.stem, seed=options.seed, console=Console()))


def _report(options: argparse.Namespace) -> None:
    from fledge.prefer.quality_report import report

    report(options.ratings, options.answers, as_json=options.json)


def _print(lines: list[str]) -> None:
    for line in lines:
        print(shown(line))


ACTIONS = {"sheet": _sheet, "ask": _ask, "report": _report}
