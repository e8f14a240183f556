"""`fledge eval`: its arguments, and the call of the function that does it."""

import argparse
import os
from pathlib import Path

from fledge.errors import FledgeError


def add_eval(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser's commands."""
    command = commands.add_parser("eval", help="ask models evaluation sets, and compare them", allow_abbrev=False)
    command.add_argument(
        "model",
        type=os.path.expanduser,
        nargs="+",
        help="run, stage, checkpoint, model directory or GGUF file; several are compared with the first one",
    )
    command.add_argument(
        "--set",
        dest="sets",
        metavar="FILE",
        action="append",
        required=True,
        help="file or folder of items; KIND=FILE names its kind, lm_eval=TASK a task; a YAML file: prompts, or sets with all "
        "their settings; may be repeated",
    )
    command.add_argument("--max-samples", type=int, metavar="N", help="items of each set, at most, spread evenly")
    command.add_argument("--out", type=os.path.expanduser, metavar="DIR", help="write the results of every item to this folder")
    command.add_argument("--json", action="store_true", help="print JSON")


def run_eval(options: argparse.Namespace) -> None:
    """Evaluate the models that the options name."""
    from fledge.eval import evaluate_models
    from fledge.run import Console

    if options.max_samples is not None and options.max_samples < 1:
        raise FledgeError(f"must be 1 or more, not {options.max_samples}", where="--max-samples")
    evaluate_models(
        options.model,
        options.sets,
        max_samples=options.max_samples,
        out=None if options.out is None else Path(options.out),
        as_json=options.json,
        console=Console(),
    )
