"""The arguments of `fledge sweep` and `fledge tune`: their parsers."""

import argparse
import os

SAMPLERS = ("tpe", "random", "grid")  # as fledge.sweep has them, which is not loaded for the help
TUNED = ("lr", "batch", "duration")  # as fledge.tune has them
DEFAULT_TRIALS = 20


def add_search(commands: argparse._SubParsersAction, overrides: str) -> None:
    """Add `fledge sweep` and `fledge tune`. `overrides`: the sentence on keys of the recipe as options."""
    _add_sweep(commands, overrides)
    _add_tune(commands, overrides)


def _add_sweep(commands: argparse._SubParsersAction, overrides: str) -> None:
    command = commands.add_parser(
        "sweep",
        help="search the best values of keys of a recipe",
        epilog=overrides,
        allow_abbrev=False,
        usage="fledge sweep RECIPE... --search KEY=VALUES [options] [--key.of.recipe VALUE]...",
    )
    command.add_argument("recipe", type=os.path.expanduser, nargs="+", help="YAML files; later ones override earlier ones")
    command.add_argument(
        "--search", metavar="KEY=VALUES", action="append", default=[],
        help="a key and its values: log:1e-4..1e-2, 0.0..0.2, int:2..8, logint:64..512, or a,b,c; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--space", type=os.path.expanduser, metavar="FILE", action="append", default=[], help="a YAML file of such keys"
    )
    command.add_argument("--out", type=os.path.expanduser, metavar="DIR", help="folder of the sweep (default sweeps/NAME)")
    command.add_argument(
        "--trials", type=int, help=f"settings to try (default {DEFAULT_TRIALS}, or as many as --minutes allow)"
    )
    command.add_argument("--minutes", type=float, help="time for the whole sweep, checked by the planner first")
    command.add_argument("--seeds", type=int, default=1, help="runs of each trial, with different seeds (default 1)")
    command.add_argument("--processes", type=int, default=1, help="trials at a time (default 1)")
    command.add_argument("--stage", help="the stage whose result counts (default: the last one)")
    command.add_argument("--metric", help="metric on validation data, or SET/METRIC (default loss; of grpo stages reward)")
    command.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="how values are proposed (default tpe)")
    command.add_argument("--sampler-seed", type=int, default=0, help="seed of the proposals (default 0)")
    command.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    command.add_argument("--keep-checkpoints", action="store_true", help="keep the models of all trials, not only the best's")
    command.add_argument("--quiet", action="store_true", help="print only the table")


def _add_tune(commands: argparse._SubParsersAction, overrides: str) -> None:
    command = commands.add_parser(
        "tune",
        help="find the learning rate or the batch of a stage by short runs",
        epilog=overrides,
        allow_abbrev=False,
        usage="fledge tune RECIPE... --what lr|batch|duration [options] [--key.of.recipe VALUE]...",
    )
    command.add_argument(
        "recipe", type=os.path.expanduser, nargs="+", help="YAML files; later ones override earlier ones; batch: or a run"
    )
    command.add_argument("--what", choices=TUNED, required=True, help="what to find")
    command.add_argument("--stage", help="the stage (default: the last one)")
    command.add_argument("--out", type=os.path.expanduser, metavar="DIR", help="folder of the runs (default tuning/NAME-WHAT)")
    command.add_argument("--width", type=int, help="lr: find it on a model of this hidden_size, and transfer it")
    command.add_argument("--processes", type=int, default=1, help="runs at a time (default 1)")
    command.add_argument("--quiet", action="store_true", help="print only the result")
