"""The arguments of `fledge doctor`: its parser."""

import argparse
import os
from collections.abc import Sequence

DEPTHS = ("curves", "data", "probes")  # as fledge.doctor.options has them, which is not loaded for the help
PROOF_MINUTES = 5.0
BENCH = "bench"  # as the target: `fledge doctor bench`; a folder of that name is ./bench


def add_doctor(commands: argparse._SubParsersAction) -> None:
    """Add `fledge doctor`."""
    command = commands.add_parser(
        "doctor",
        help="what is wrong with a training run, of fledge or of another trainer, and what to change",
        allow_abbrev=False,
        epilog="`fledge doctor bench` measures how often the doctor is right; a folder of that name is ./bench.",
    )
    command.add_argument(
        "target", type=os.path.expanduser, metavar="TARGET",
        help="a run or stage of fledge, or a log file or output folder of another trainer",
    )  # fmt: skip
    command.add_argument("--stage", help="one stage (default: all of them)")
    command.add_argument(
        "--config", "--recipe", dest="config", type=os.path.expanduser, metavar="FILE",
        help="the settings of the run: a recipe, TrainingArguments, a YAML file of another trainer, a Python file",
    )  # fmt: skip
    command.add_argument(
        "--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN",
        help="which column of the log a figure is, such as train/loss=my_loss",
    )  # fmt: skip
    command.add_argument(
        "--given", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="settings that no file says, such as parameters=26M kind=sft",
    )  # fmt: skip
    command.add_argument(
        "--data", nargs="+", action="extend", default=[], type=os.path.expanduser, metavar="FILE",
        help="training rows of another trainer's run; with --tokenizer",
    )  # fmt: skip
    command.add_argument("--tokenizer", type=os.path.expanduser, metavar="DIR", help="its tokenizer")
    command.add_argument(
        "--start", type=os.path.expanduser, metavar="DIR", help="the model directory that another trainer's run started from"
    )
    command.add_argument("--depth", choices=DEPTHS, help="how deep to look at most (default: as deep as the target allows)")
    command.add_argument("--schemes", action="store_true", help="three ways to act, with what each one costs")
    command.add_argument(
        "--prove", action="store_true", help="try the first change in short paired runs; with --schemes: step by step"
    )
    command.add_argument("--minutes", type=float, help=f"with --prove: time for all its runs (default {PROOF_MINUTES:g})")
    command.add_argument("--quick", action="store_true", help="smaller samples and less time for probes")
    command.add_argument(
        "--plots", type=os.path.expanduser, metavar="DIR", help="write the evidence of each finding as a picture"
    )
    command.add_argument("--strict", action="store_true", help="exit code 2 if something is wrong")
    command.add_argument("--json", action="store_true", help="print JSON")


def bench_arguments(argv: Sequence[str]) -> list[str] | None:
    """The arguments of `fledge doctor bench`, which has a parser of its own; None for any other command."""
    words = [argument for argument in argv if argument != "--debug"]
    return words[2:] if words[:2] == ["doctor", BENCH] else None
