"""The arguments of the command: its parsers, and overrides of recipe keys such as `--seed 7`."""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from fledge.cli.completion import add_completion
from fledge.cli.doctor_arguments import add_doctor
from fledge.cli.evaluation import add_eval
from fledge.cli.init import add_init
from fledge.cli.mistyped_arguments import check_words, option_hint, repeated_option, usage_hint
from fledge.cli.plan import add_plan
from fledge.cli.prefer_arguments import add_prefer
from fledge.cli.rate import add_rate
from fledge.cli.runs_arguments import add_runs
from fledge.cli.search_arguments import add_search
from fledge.export.targets import TARGETS as TARGETS_OF_EXPORT
from fledge.localization import LANGUAGES
from fledge.version import __version__

DESCRIPTION = """fledge raises small language models: raw text -> tokenizer -> pretrain -> SFT -> DPO -> a model to talk to.

Start here:
  fledge quickstart                          a bilingual model from nothing, in minutes
  fledge chat runs/quickstart                talk to it
  fledge init MY_DATA                        a recipe for your own data, with reasons
  fledge train RECIPE.yaml                   train as a recipe says (docs/recipes.md)
"""
MINUTES, SEED = 5.8, 7  # of the quickstart
ROWS = 4000  # of `data make`
TASKS = ("vehicle", "columns", "world")  # as fledge.tasks and fledge.world have them, which are not loaded for the help
MAX_RESTARTS = 3  # of all processes of a run
PLOT_FORMATS = ("svg", "png", "pdf")  # as fledge.report.plots has them, which is not loaded for the help
Overrides = list[tuple[str, str]]
RENAMED_OPTIONS = {
    "--allow": "--allow-change", "--restarts": "--max-restarts", "--slurm": "--slurm-option", "--first": "--offset",
    "--count": "--limit", "--built": "--built_dataset",
}  # fmt: skip
OVERRIDES = "Any key of the recipe can be set on the command line: --stages.sft.optimizer.learning_rate 1e-4, --seed 7."
SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
ADAPTER = "an adapter for the model: its run, stage, checkpoint or directory"
TARGETS = {
    "stats": "recipe (YAML), or files and folders of rows",
    "check": "recipe (YAML; later files override earlier ones)",
    "account": "run directory, built directory, or recipe",
    "show": "recipe, run directory or built directory",
    "build": "recipe (YAML; later files override earlier ones)",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors say what was probably meant."""

    def error(self, message: str) -> NoReturn:
        hint = usage_hint(message, self.prog)
        super().error(f"{message}\n  → {hint}" if hint else message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands and their options."""
    parser = _Parser(
        prog="fledge", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fledge {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--language", choices=LANGUAGES, help="language of all messages, anywhere on the line (default: that of LANG)"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_quickstart(commands)
    add_init(commands)
    add_plan(commands, OVERRIDES)
    _add_train(commands)
    add_search(commands, OVERRIDES)
    add_doctor(commands)
    _add_data(commands)
    for name, text in (("generate", "answer one prompt, or all of a file"), ("chat", "talk to a model")):
        _add_generation(commands, name, text)
    _add_score(commands)
    add_eval(commands)
    add_prefer(commands, ADAPTER)
    add_rate(commands)
    add_runs(commands)
    _add_export(commands)
    _add_report(commands)
    add_completion(commands)
    return parser


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="write a run's report.html again, or compare runs", allow_abbrev=False)
    report.add_argument("run", type=os.path.expanduser, nargs="+", help="run directory; several are compared on one page")
    report.add_argument(
        "--out", type=os.path.expanduser, metavar="FILE", help="page that compares runs (default comparison.html)"
    )
    report.add_argument(
        "--plots", type=os.path.expanduser, metavar="DIR", help="write the figures of the run as files instead of the page"
    )
    report.add_argument("--format", choices=PLOT_FORMATS, help="with --plots: format of the files (default svg)")


def _add_quickstart(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("quickstart", help="raise a bilingual model from nothing on this machine", allow_abbrev=False)
    command.add_argument("--minutes", type=float, help=f"training time to aim at on this machine (default {MINUTES:g})")
    command.add_argument("--seed", type=int, help=f"seed of the world and of the run (default {SEED})")
    command.add_argument("--name", default="quickstart", help="name of the run (default quickstart)")
    command.add_argument("--output", type=os.path.expanduser, default="runs", help="folder of runs (default runs)")
    command.add_argument("--resume", action="store_true", help="resume an interrupted run")
    command.add_argument("--quiet", action="store_true", help="print only the result")


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train",
        help="run the stages of a recipe",
        epilog=OVERRIDES,
        allow_abbrev=False,
        usage="fledge train RECIPE... [options] [--key.of.recipe VALUE]...",
    )
    command.add_argument("recipe", type=os.path.expanduser, nargs="+", help="YAML files; later ones override earlier ones")
    command.add_argument("--dry-run", action="store_true", help="print the plan with memory and time, and stop")
    command.add_argument("--full", action="store_true", help="with --dry-run: print the recipe with all defaults too")
    command.add_argument(
        "--resume", action="store_true", help="resume an interrupted run (a run of this name is also resumed without it)"
    )
    command.add_argument(
        "--allow-change", metavar="KEY", action="append", default=[], help="resume although this key of the recipe has changed"
    )
    command.add_argument(
        "--processes", "--nproc-per-node", type=int, help="processes on this machine, or on each node (default 1)"
    )
    command.add_argument(
        "--max-restarts", dest="restarts", type=int, help=f"restarts of all processes when one is lost (default {MAX_RESTARTS})"
    )
    command.add_argument("--cluster", choices=("slurm", "ray"), help="run on a Slurm or Ray cluster instead of here")
    command.add_argument("--nodes", type=int, help="machines of the cluster (default 1)")
    command.add_argument(
        "--slurm-option",
        dest="slurm",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the Slurm job, e.g. partition=gpu",
    )
    command.add_argument("--quiet", action="store_true", help="print only the result")


def _add_data(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("data", help="look at data before training on it", allow_abbrev=False)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    stats = _add_data_action(actions, "stats", "lengths, languages, duplicates, mixture and answers of each source")
    kinds = ("pretrain", "sft", "preference", "kto", "reward")
    stats.add_argument("--kind", choices=kinds, help="stage kind of files of rows (default: guessed)")
    stats.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        metavar="DIR",
        help="tokenizer to count with (default: the recipe's, or trained now)",
    )
    stats.add_argument("--page", type=os.path.expanduser, metavar="FILE", help="also write one HTML page with plots")
    check = _add_data_action(
        actions, "check", "checks for data that would make training meaningless; exit code 2 if there is some"
    )
    check.add_argument(
        "--with-model",
        type=os.path.expanduser,
        metavar="DIR",
        help="also score the pairs of preference stages by this model, such as the one that the stage starts from",
    )
    account = _add_data_action(actions, "account", "every row and what was done with it: used, changed or dropped, and why")
    account.add_argument("--source", help="only sources with this in their name or path")
    account.add_argument("--reason", help="rows with this in their reason")
    account.add_argument("--state", help="rows that were dropped, truncated, shortened, split, changed or noticed")
    account.add_argument("--limit", type=int, default=20, help="most rows to print for each stage (default 20)")
    show = _add_data_action(actions, "show", "examples token by token, coloured by weight")
    show.add_argument("--limit", type=int, default=3, help="examples to show (default 3)")
    show.add_argument("--offset", type=int, default=0, help="number of the first example (default 0)")
    _add_build(actions)
    _add_make(actions)
    for action in (stats, check, account):
        action.add_argument("--json", action="store_true", help="print JSON")
    for action in (account, show):
        action.add_argument("--row", metavar="FILE:LINE", help="one row, by its file and line")


def _add_build(actions: argparse._SubParsersAction) -> None:
    build = _add_data_action(actions, "build", "read, clean, tokenise and pack once, to train from with built_dataset: DIR")
    build.add_argument(
        "--out",
        type=os.path.expanduser,
        metavar="DIR",
        required=True,
        help="directory to build into; an interrupted build is resumed",
    )
    build.add_argument(
        "--executor", choices=("processes", "ray", "slurm"), default="processes", help="what processes the shards"
    )
    build.add_argument("--workers", type=int, help="processes, or most Slurm jobs at a time (default: one a core; 64 jobs)")
    build.add_argument(
        "--slurm-option",
        dest="slurm",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the Slurm jobs, e.g. partition=cpu",
    )


def _add_make(actions: argparse._SubParsersAction) -> None:
    make = actions.add_parser(
        "make",
        help="rows of a task with a test of names that training never shows, or the world of the quickstart",
        allow_abbrev=False,
    )
    make.add_argument("task", choices=TASKS, help="which rows")
    make.add_argument("--out", type=os.path.expanduser, metavar="DIR", required=True, help="folder of the files")
    make.add_argument("--rows", type=int, default=ROWS, help=f"training rows (default {ROWS})")
    make.add_argument("--seed", type=int, default=SEED, help=f"seed of the rows and of what is held out (default {SEED})")


def _add_data_action(actions: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """An action of `fledge data` on targets, with a stage and overrides of the recipe."""
    action = actions.add_parser(
        name,
        help=text,
        epilog=OVERRIDES,
        allow_abbrev=False,
        usage=f"fledge data {name} TARGET... [options] [--key.of.recipe VALUE]...",
    )
    action.add_argument("target", type=os.path.expanduser, nargs="+", metavar="TARGET", help=TARGETS[name])
    action.add_argument("--stage", help="name of the stage (default: all of them)")
    return action


def _add_generation(commands: argparse._SubParsersAction, name: str, text: str) -> None:
    command = commands.add_parser(name, help=text, allow_abbrev=False)
    command.add_argument("model", type=os.path.expanduser, help="run, stage, checkpoint, model directory or GGUF file")
    if name == "generate":
        command.add_argument("prompt", nargs="?", help="what to answer")
        command.add_argument("--file", type=os.path.expanduser, help="answer all prompts of this file, folder or glob instead")
        command.add_argument("--out", type=os.path.expanduser, metavar="FILE", help="the .jsonl file for their answers")
        command.add_argument("--resume", action="store_true", help="go on with the answers that --out has already")
        command.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
        _add_json_schema(command)
        command.add_argument("--adapter", type=os.path.expanduser, metavar="DIR", help=ADAPTER)
    else:
        _add_adapters(command, f"{ADAPTER}; may be repeated, /adapter NAME switches")
    command.add_argument("--system", help="system prompt")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    command.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: all")
    command.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this total probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: avoid tokens already there")
    command.add_argument("--max-new-tokens", type=int, default=256)
    command.add_argument("--seed", type=int, default=0)


def _add_adapters(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--adapter", type=os.path.expanduser, metavar="DIR", action="append", default=[], help=text)


def _add_score(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("score", help="compare a model's answers with the answers of a file", allow_abbrev=False)
    command.add_argument("file", type=os.path.expanduser, help="conversations that end with the right answer")
    command.add_argument(
        "model",
        type=os.path.expanduser,
        nargs="+",
        help="run, stage, checkpoint, model directory or GGUF file; several are compared",
    )
    _add_adapters(command, f"{ADAPTER}, to score it with; may be repeated; none: the model alone")
    command.add_argument(
        "--errors", type=os.path.expanduser, metavar="FILE", help="write the wrong answers, one JSON object a line"
    )
    command.add_argument("--max-new-tokens", type=int, default=256)
    command.add_argument(
        "--best-of", type=int, metavar="N", help="draw N answers to each question; --reward-model chooses one of them"
    )
    command.add_argument(
        "--reward-model",
        type=os.path.expanduser,
        metavar="DIR",
        help="with --best-of: run, stage, checkpoint or directory of a reward model",
    )
    command.add_argument("--temperature", type=float, help="with --best-of: of the draws (default 1)")
    command.add_argument("--seed", type=int, help="with --best-of: of the draws (default 0)")
    _add_json_schema(command)
    command.add_argument("--bleu", action="store_true", help="BLEU-4 too, by sacrebleu")
    command.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="further metrics, such as chrf, rouge_l, refusal, off_topic"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_json_schema(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json-schema", type=os.path.expanduser, metavar="FILE", help="answers follow the JSON schema in this file"
    )


def _add_export(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("export", help="write a model for other programs", allow_abbrev=False)
    command.add_argument("model", type=os.path.expanduser, help="run, stage, checkpoint, model directory or GGUF file")
    command.add_argument("--to", required=True, metavar="TARGET", help=f"what to write: {', '.join(TARGETS_OF_EXPORT)}")
    types = "; ".join(f"{name}: {', '.join(target.types)}" for name, target in TARGETS_OF_EXPORT.items())
    command.add_argument("--type", metavar="TYPE", help=f"type of the weights ({types}; the first is the default)")
    command.add_argument(
        "--out", type=os.path.expanduser, metavar="DIR", help="new or empty folder (default exports/NAME-TARGET-TYPE)"
    )


def split_overrides(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], Overrides]:
    """Split the arguments of a command that has a recipe: those of the command, and the overrides `--a.b value`, `--a.b=value`.

    An option that the command's own parser knows stays; every other one is a key of the recipe.
    """
    parsers, has_recipe = _command_parsers(argv, parser)
    own = {option: action for command in parsers for option, action in command._option_string_actions.items()}

    def name_of(option: str) -> str | None:
        action = own.get(option)
        if action is None:
            return option if has_recipe else None
        return action.dest if isinstance(action, argparse._StoreAction) else None

    if problem := repeated_option(argv, name_of):
        parser.error(problem)
    if not has_recipe:
        return list(argv), []
    kept, pairs, remaining = [], [], list(argv)
    if problem := check_words(argv, own):
        parser.error(problem)
    while remaining:
        argument = remaining.pop(0)
        key, equals, value = argument.partition("=")
        if not argument.startswith("--") or argument == "--" or key in own:
            kept.append(argument)
            continue
        if key in RENAMED_OPTIONS:
            parser.error(f"{key} is now {RENAMED_OPTIONS[key]}")
        if problem := option_hint(key, remaining):
            parser.error(problem)
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                parser.error(f"{key} needs a value; {OVERRIDES}")
            value = remaining.pop(0)
        pairs.append((key[2:], value))
    return kept, pairs


def _command_parsers(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[argparse.ArgumentParser], bool]:
    """The parsers of the command that `argv` names, of one with actions that of its action (of all actions if none is named);
    and whether the command has a recipe."""
    command = next((argument for argument in argv if not argument.startswith("-")), None)
    chosen = _subparsers(parser).get(command or "")
    if chosen is None:
        return [], False
    actions, has_recipe = _subparsers(chosen), command in ("train", "plan", "data", "sweep", "tune")
    if not actions:
        return [chosen], has_recipe
    action = next((argument for argument in argv if argument in actions), None)
    return list(actions.values()) if action is None else [actions[action]], has_recipe


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below a parser, by name."""
    found = (dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next(found, {})
