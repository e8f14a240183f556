"""`fledge plan`: its arguments and its action."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fledge.errors import FledgeError
from fledge.escaping import escaped, escaped_json
from fledge.localization import localized

PROBE_STEPS = 20


def add_plan(commands: argparse._SubParsersAction, epilog: str) -> None:
    """Add `fledge plan`."""
    command = commands.add_parser(
        "plan",
        help="memory, hours and money of a recipe, before it runs, here or on a card that is not at hand",
        epilog=epilog,
        allow_abbrev=False,
        usage="fledge plan RECIPE... [options] [--key.of.recipe VALUE]...",
    )
    command.add_argument("recipe", type=os.path.expanduser, nargs="+", help="YAML files; later ones override earlier ones")
    command.add_argument(
        "--device", action="append", default=[], metavar="NAME",
        help="a card, such as T4, 2xT4 or 'RTX 4090'; may be repeated (default: this machine)",
    )  # fmt: skip
    command.add_argument("--here", action="store_true", help="this machine beside the cards of --device")
    command.add_argument(
        "--probe", type=int, nargs="?", const=PROBE_STEPS, metavar="STEPS",
        help=f"train each stage for some steps on this machine, and measure (default {PROBE_STEPS})",
    )  # fmt: skip
    command.add_argument(
        "--price", action="append", default=[], metavar="PRICE",
        help="price of one card: 2.5/h (in ¥), '1.9 USD/h' or 'own:6000/8000h+0.35kW*1' (default: hire, from the table)",
    )  # fmt: skip
    command.add_argument(
        "--tokens", action="append", default=[], metavar="N",
        help="plan without the data: tokens of an epoch, such as 256M or sft=20M",
    )  # fmt: skip
    command.add_argument("--strict", action="store_true", help="exit code 2 if there is a warning")
    command.add_argument("--json", action="store_true", help="print JSON")


def run_plan(options: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int | None:
    """Print the forecast of a recipe. 2 if a stage does not fit on any device, and with --strict if there is a warning."""
    from fledge.forecast.planning import plan_recipe
    from fledge.forecast.text import lines_of
    from fledge.recipe import load_recipe
    from fledge.run import Console

    if options.probe is not None and options.tokens:
        raise FledgeError(
            "a probe trains on the data, which --tokens leaves out", where="--probe", hint="leave one of them out"
        )
    recipe = load_recipe(options.recipe, overrides)
    with tempfile.TemporaryDirectory(prefix="fledge-plan-") as folder:
        forecast = plan_recipe(
            recipe,
            Console(quiet=options.json),
            Path(folder),
            devices=options.device,
            here=options.here or not options.device,
            probe_steps=options.probe,
            tokens=options.tokens,
            prices=options.price,
        )
    if options.json:
        print(escaped_json(json.dumps(forecast.as_dict(), ensure_ascii=False, indent=1)))
    else:
        print(escaped("\n".join(localized(line) for line in lines_of(forecast))))
    warned = any(finding.severity != "info" for finding in forecast.findings)
    return 2 if not forecast.fits_somewhere or (options.strict and warned) else None
