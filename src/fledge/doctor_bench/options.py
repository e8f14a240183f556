"""The arguments of `fledge doctor bench`."""

import argparse
import os
from pathlib import Path

from fledge.doctor_bench.groups import PARTS

DEFAULT_OUT = "doctor-bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument("--quick", action="store_true", help="a look whether everything works, in less than a minute")
    parser.add_argument(
        "--group", default="dev", metavar="NAME",
        help=f"{', '.join([*PARTS, 'all'])}, or the name of one group (default dev); the others need frozen thresholds",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=_path, default=Path(DEFAULT_OUT), metavar="DIR", help=f"folder of the results (default {DEFAULT_OUT})"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="runs whose name holds this; may be repeated"
    )
    parser.add_argument(
        "--share", type=_percent, default=100, metavar="PERCENT",
        help="train only this share of the runs, drawn by a hash of their names (default 100)",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each fault on each stage at each severity (default 1)")
    parser.add_argument(
        "--effects", type=int, default=0, metavar="SEEDS",
        help="train each fault with this many seeds too, without an examination, to tell what it changes",
    )  # fmt: skip
    parser.add_argument("--judge", type=_path, metavar="DIR", help="judge the runs in a folder again, without training")
    parser.add_argument(
        "--examine-again", action="store_true", help="measure the kept models of the runs in --out again, without training"
    )
    parser.add_argument("--keep-models", action="store_true", help="keep models and data of all runs, to examine them again")
    parser.add_argument("--freeze", action="store_true", help="freeze the thresholds, so that held-out groups can be read")
    parser.add_argument("--train-only", action="store_true", help="train and measure, and judge nothing")
    parser.add_argument(
        "--markdown", type=_path, action="append", default=[], metavar="FILE",
        help="put the results into a page of the documentation; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 100")
    return int(text)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def make_parser() -> argparse.ArgumentParser:
    """A parser of its own."""
    parser = argparse.ArgumentParser(
        prog="fledge doctor bench",
        description="Train small models with injected faults and healthy ones, and count how often the doctor is right.",
        allow_abbrev=False,
    )
    add_arguments(parser)
    return parser
