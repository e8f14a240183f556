"""`fledge init`: its arguments and its action."""

import argparse
import os
from pathlib import Path

from fledge.errors import FledgeError
from fledge.localization import shown

MINUTES = 10.0  # of training
LEAST_MINUTES = 0.05


def add_init(commands: argparse._SubParsersAction) -> None:
    """Add `fledge init`."""
    command = commands.add_parser(
        "init", help="look at files of data, and write a recipe that trains on them", allow_abbrev=False
    )
    command.add_argument(
        "files", metavar="FILE", type=os.path.expanduser, nargs="+", help="files and folders of texts, conversations or pairs"
    )
    command.add_argument(
        "--out", type=os.path.expanduser, default="my-model.yaml", metavar="FILE", help="recipe (default my-model.yaml)"
    )
    command.add_argument("--name", help="name of the run (default: that of the recipe)")
    command.add_argument("--minutes", type=float, default=MINUTES, help=f"training time to aim at (default {MINUTES:g})")


def run_init(options: argparse.Namespace) -> None:
    """Write the recipe and say what comes next."""
    from fledge.new_recipe import create_recipe
    from fledge.run import Console

    if not LEAST_MINUTES <= options.minutes < float("inf"):
        raise FledgeError(f"it must be a number of at least {LEAST_MINUTES:g}", where="--minutes")
    for line in create_recipe(options.files, Path(options.out), options.name, options.minutes, Console().log):
        print(shown(line))
