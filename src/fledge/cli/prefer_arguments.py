"""The arguments of `fledge prefer`: the parsers of its actions."""

import argparse
import os
from collections.abc import Callable

PREFER_RATERS = ("rules", "judge", "reward-model", "person")  # as fledge.prefer has them, which is not loaded for the help
TEMPERATURES = (0.3, 0.7, 1.0)


def add_prefer(commands: argparse._SubParsersAction, adapter: str) -> None:
    """Add `fledge prefer` with its actions. `adapter`: the help of `--adapter`."""
    command = commands.add_parser("prefer", help="collect pairs of answers for preference tuning", allow_abbrev=False)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_sample(actions, adapter)
    _add_rank(actions)
    _add_pairs(actions)
    agreement = actions.add_parser("agreement", help="how far raters agree, beyond chance", allow_abbrev=False)
    agreement.add_argument("ratings", type=os.path.expanduser, nargs="+", help="files of `fledge prefer rank`, one a rater")
    agreement.add_argument("--json", action="store_true", help="print JSON")


def _add_sample(actions: argparse._SubParsersAction, adapter: str) -> None:
    sample = actions.add_parser("sample", help="several answers of a model to each prompt", allow_abbrev=False)
    sample.add_argument("model", type=os.path.expanduser, help="run, stage, checkpoint, model directory or GGUF file")
    sample.add_argument("prompts", type=os.path.expanduser, help="file or folder of rows of any kind, without their answers")
    _add_out(sample, "file of answers; an interrupted call goes on")
    sample.add_argument("--n", type=int, default=4, help="answers to each prompt (default 4)")
    shown = ",".join(f"{one:g}" for one in TEMPERATURES)
    sample.add_argument(
        "--temperatures", type=_list_of(float), default=TEMPERATURES, metavar="X,X,…",
        help=f"temperatures that the answers to a prompt take in turn (default {shown})",
    )  # fmt: skip
    sample.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: all")
    sample.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this total probability")
    sample.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: avoid tokens already there")
    sample.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the answers")
    sample.add_argument("--adapter", type=os.path.expanduser, metavar="DIR", help=adapter)
    sample.add_argument("--system", help="system prompt of prompts without one")
    sample.add_argument("--limit", type=int, help="first prompts to ask, at most (default: all)")


def _add_rank(actions: argparse._SubParsersAction) -> None:
    rank = actions.add_parser("rank", help="rate the answers, by rules, a model or a person", allow_abbrev=False)
    rank.add_argument("answers", type=os.path.expanduser, nargs="+", help="files of `fledge prefer sample`")
    rank.add_argument("--by", choices=PREFER_RATERS, required=True, help="who rates")
    _add_out(rank, "file of ratings; an interrupted call goes on")
    rank.add_argument("--rater", metavar="NAME", help="name of the rater (default: that of its kind)")
    rank.add_argument("--rule", action="append", default=[], metavar="RULE", help="rules: a reward as in a recipe; repeatable")
    rank.add_argument("--timeout", type=float, default=60.0, help="rules: seconds that one may take at once (default 60)")
    rank.add_argument(
        "--model",
        type=os.path.expanduser,
        metavar="MODEL",
        help="judge, reward-model: run, stage, checkpoint, model directory or, of a judge, GGUF file",
    )
    rank.add_argument(
        "--question", type=os.path.expanduser, metavar="FILE", help="judge: its question, with {conversation}, {a}, {b}"
    )
    rank.add_argument("--comparisons", type=int, help="judge, person: pairs of each prompt, at most (default: all; person 1)")
    rank.add_argument("--repeat", type=float, help="person: share of pairs that come a second time (default 0.1)")
    rank.add_argument("--seed", type=int, default=0, help="judge, person: which pairs, in which order")


def _add_pairs(actions: argparse._SubParsersAction) -> None:
    pairs = actions.add_parser("pairs", help="write the pairs that a preference stage reads", allow_abbrev=False)
    pairs.add_argument("ratings", type=os.path.expanduser, nargs="+", help="files of `fledge prefer rank`, one a rater")
    _add_out(pairs, "file of pairs; those that are held out and a report stand beside it")
    pairs.add_argument(
        "--answers", type=os.path.expanduser, action="append", default=[], metavar="FILE",
        help="the answers that were rated, if they are elsewhere; may be repeated",
    )  # fmt: skip
    pairs.add_argument(
        "--per-prompt", type=_number_or_all, default=1, metavar="N", help="clearest pairs of a prompt; or all (default 1)"
    )
    pairs.add_argument(
        "--min-margin", type=_shares, default={}, metavar="X",
        help="smallest margin that counts; or RATER=X,… for some raters (default 0)",
    )  # fmt: skip
    pairs.add_argument("--keep-cut", action="store_true", help="also pairs whose chosen answer was cut before its end")
    pairs.add_argument(
        "--human", type=os.path.expanduser, action="append", default=[], metavar="FILE",
        help="rows of pairs that people have made; may be repeated",
    )  # fmt: skip
    pairs.add_argument(
        "--mix", type=_shares, default={}, metavar="human=X,model=X", help="shares of pairs by people and by models"
    )
    pairs.add_argument("--validation", type=float, default=0.0, help="share of the prompts to hold out (default 0)")
    pairs.add_argument("--seed", type=int, default=0, help="seed of every choice among pairs")
    pairs.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_out(action: argparse.ArgumentParser, text: str) -> None:
    action.add_argument("--out", type=os.path.expanduser, required=True, metavar="FILE", help=text)


def _list_of(read: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    def numbers(text: str) -> tuple[float, ...]:
        try:
            return tuple(read(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"write numbers with commas between them, not '{text}'") from None

    return numbers


def _number_or_all(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"write a number, or all, not '{text}'") from None


def _shares(text: str) -> dict[str, float]:
    """`a=0.3,b=0.7` by name; a number alone has the name ""."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise argparse.ArgumentTypeError(f"write NAME=NUMBER,…, not '{text}'") from None
        if name in found:
            raise argparse.ArgumentTypeError(f"'{name}' is named twice")
        found[name] = value
    return found
