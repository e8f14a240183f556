"""The command: parse, call one function, show its result. Nothing heavy is imported before it is needed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fledge.entrypoint import TrainCommand, exit_code, to_stderr, write_report_and_summarise
from fledge.errors import FledgeError
from fledge.run.stopping import SignalHandler
from fledge.version import __version__

DESCRIPTION = """fledge raises small language models: raw text -> tokenizer -> pretrain -> SFT -> DPO -> a model to talk to.

Start here:
  fledge quickstart                          a bilingual model from nothing, in minutes
  fledge chat runs/quickstart                talk to it
  fledge train recipes/real-data.yaml        your own data, from a recipe
"""
MINUTES, SEED = 5.0, 7  # of the quickstart
MAX_RESTARTS = 3  # of all processes of a run
Overrides = list[tuple[str, str]]
RENAMED_OPTIONS = {
    "--allow": "--allow-change", "--restarts": "--max-restarts", "--slurm": "--slurm-option", "--first": "--offset",
    "--count": "--limit", "--built": "--built_dataset",
}  # fmt: skip
OVERRIDES = "Any key of the recipe can be set on the command line: --stages.sft.optimizer.learning_rate 1e-4, --seed 7."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fledge", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fledge {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _quickstart(commands)
    _train(commands)
    _data(commands)
    for name, text in (("generate", "answer one prompt"), ("chat", "talk to a model")):
        _generation(commands, name, text)
    report = commands.add_parser("report", help="write a run's report.html again", allow_abbrev=False)
    report.add_argument("run", help="run directory")
    return parser


def _quickstart(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("quickstart", help="raise a bilingual model from nothing on this machine", allow_abbrev=False)
    command.add_argument("--minutes", type=float, help=f"training time to aim at on this machine (default {MINUTES:g})")
    command.add_argument("--seed", type=int, help=f"seed of the world and of the run (default {SEED})")
    command.add_argument("--name", default="quickstart", help="name of the run (default quickstart)")
    command.add_argument("--output", default="runs", help="folder of runs (default runs)")
    command.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    command.add_argument("--quiet", action="store_true", help="say nothing but the result")


def _train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train",
        help="run the stages of a recipe",
        epilog=OVERRIDES,
        allow_abbrev=False,
        usage="fledge train RECIPE... [options] [--key.of.recipe VALUE]...",
    )
    command.add_argument("recipe", nargs="+", help="YAML files; later ones override earlier ones")
    command.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, and stop")
    command.add_argument("--resume", action="store_true", help="go on with an interrupted run (this also happens by itself)")
    command.add_argument(
        "--allow-change", dest="allow", metavar="KEY", action="append", default=[], help="resume although this key has changed"
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
        help="of the Slurm job, e.g. partition=gpu",
    )
    command.add_argument("--quiet", action="store_true", help="say nothing but the result")


def _data(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("data", help="look at data before training on it", allow_abbrev=False)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    stats = _data_action(actions, "stats", "lengths, languages, duplicates, mixture and answers of each source")
    stats.add_argument("--kind", choices=("pretrain", "sft", "preference"), help="what files of rows are (default: guessed)")
    stats.add_argument("--tokenizer", metavar="DIR", help="tokenizer to count with (default: the recipe's, or trained now)")
    stats.add_argument("--page", metavar="FILE", help="also write one HTML page with plots")
    check = _data_action(actions, "check", "whether training could mean anything; exit code 2 if not")
    account = _data_action(actions, "account", "what became of every row, and why")
    account.add_argument("--source", help="only sources with this in their name or path")
    account.add_argument("--reason", help="rows with this in their reason")
    account.add_argument("--state", help="rows that were dropped, truncated, shortened, split, changed or noticed")
    account.add_argument("--limit", type=int, default=20, help="most rows to print for each stage (default 20)")
    show = _data_action(actions, "show", "examples token by token, coloured by weight")
    show.add_argument("--limit", dest="count", type=int, default=3, help="examples to show (default 3)")
    show.add_argument("--offset", dest="first", type=int, default=0, help="number of the first example (default 0)")
    build = _data_action(actions, "build", "read, clean, tokenise and pack once, to train from with built_dataset: DIR")
    build.add_argument("--out", metavar="DIR", required=True, help="directory to build into; an interrupted build goes on")
    build.add_argument("--executor", choices=("processes", "ray", "slurm"), default="processes", help="who works on shards")
    build.add_argument("--workers", type=int, help="processes, or most Slurm jobs at a time (default: one a core; 64 jobs)")
    build.add_argument(
        "--slurm-option", dest="slurm", metavar="KEY=VALUE", action="append", default=[], help="of the jobs, e.g. partition=cpu"
    )
    for action in (stats, check, account):
        action.add_argument("--json", action="store_true", help="print JSON")
    for action in (account, show):
        action.add_argument("--row", metavar="FILE:LINE", help="one row, by its file and line")


def _data_action(actions: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """An action of `fledge data` on targets, with a stage and overrides of the recipe."""
    action = actions.add_parser(
        name,
        help=text,
        epilog=OVERRIDES,
        allow_abbrev=False,
        usage=f"fledge data {name} TARGET... [options] [--key.of.recipe VALUE]...",
    )
    action.add_argument("target", nargs="+", metavar="TARGET", help=TARGETS[name])
    action.add_argument("--stage", help="name of the stage (default: all of them)")
    return action


def _generation(commands: argparse._SubParsersAction, name: str, text: str) -> None:
    command = commands.add_parser(name, help=text, allow_abbrev=False)
    command.add_argument("model", help="run, stage, checkpoint or model directory")
    if name == "generate":
        command.add_argument("prompt", help="what to answer")
        command.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    command.add_argument("--system", help="system prompt")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    command.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: all")
    command.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this total probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: avoid tokens already there")
    command.add_argument("--max-new-tokens", type=int, default=256)
    command.add_argument("--seed", type=int, default=0)


SAMPLING_FLAGS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
TARGETS = {
    "stats": "recipe (YAML), or files and folders of rows",
    "check": "recipe (YAML; later files override earlier ones)",
    "account": "run directory, built directory, or recipe",
    "show": "recipe, run directory or built directory",
    "build": "recipe (YAML; later files override earlier ones)",
}


def _overrides(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], Overrides]:
    """Take `--a.b value` and `--a.b=value` out of the arguments of a command that has a recipe.

    An option that the command's own parser knows stays; every other one is a key of the recipe.
    """
    own = _own_options(argv, parser)
    if own is None:
        return list(argv), []
    kept, pairs, remaining = [], [], list(argv)
    while remaining:
        argument = remaining.pop(0)
        key, equals, value = argument.partition("=")
        if not argument.startswith("--") or argument == "--" or key in own:
            kept.append(argument)
            continue
        if key in RENAMED_OPTIONS:
            parser.error(f"{key} is now {RENAMED_OPTIONS[key]}")
        if not equals:
            if not remaining:
                parser.error(f"{key} needs a value; {OVERRIDES}")
            value = remaining.pop(0)
        pairs.append((key[2:], value))
    return kept, pairs


def _own_options(argv: Sequence[str], parser: argparse.ArgumentParser) -> set[str] | None:
    """The options of the command that `argv` names; None where it has no recipe."""
    words = iter(argument for argument in argv if not argument.startswith("-"))
    command = next(words, None)
    if command not in ("train", "data"):
        return None
    chosen = _subparsers(parser)[command]
    if command == "data":
        actions = _subparsers(chosen)
        return {option for action in actions.values() for option in action._option_string_actions}
    return set(chosen._option_string_actions)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below a parser, by name."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _run_quickstart(options: argparse.Namespace) -> None:
    from fledge.quickstart import quickstart
    from fledge.run import Console

    if options.resume and (options.minutes is not None or options.seed is not None):
        raise FledgeError("--resume goes on with the stored recipe", hint="leave --minutes and --seed out")
    minutes = MINUTES if options.minutes is None else options.minutes
    if not 0 < minutes < float("inf"):
        raise FledgeError("--minutes must be a number above zero")
    if not 0 < len(options.name) == len(Path(options.name).name):
        raise FledgeError(f"--name is one folder's name, not '{options.name}'")
    seed = SEED if options.seed is None else options.seed
    run = quickstart(options.name, options.output, seed, minutes, options.resume, Console(quiet=options.quiet))
    write_report_and_summarise(run)


def _run_train(options: argparse.Namespace, overrides: Overrides, argv: list[str], stopping: SignalHandler) -> int | None:
    from fledge.launch.local import is_worker_process, launch, start_watchdog
    from fledge.recipe import load_recipe
    from fledge.run import Console

    _check_process_options(options)
    training = TrainCommand(tuple(options.recipe), tuple(overrides), tuple(options.allow), options.resume, options.quiet)
    if is_worker_process():
        start_watchdog()
        return training.run(stopping)
    recipe = load_recipe(options.recipe, overrides)  # what is wrong with it is said once, not by every process
    if options.dry_run:
        from fledge.pipeline import dry_run

        print(dry_run(recipe, Console(quiet=options.quiet)))
        return 0
    if options.cluster is not None:
        return _on_cluster(options, training, Path(recipe.output) / recipe.name / "jobs")
    if options.processes is not None and options.processes > 1:
        return launch(argv, options.processes, MAX_RESTARTS if options.restarts is None else options.restarts, stopping)
    return training.run(stopping)


def _check_process_options(options: argparse.Namespace) -> None:
    """FledgeError for options that do not go together."""
    for name in ("processes", "nodes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise FledgeError("it must be at least 1", where=f"--{name}")
    if options.restarts is not None and options.restarts < 0:
        raise FledgeError("it cannot be negative", where="--max-restarts")
    several = options.processes is not None and options.processes > 1
    if options.restarts is not None and (options.cluster == "slurm" or not (several or options.cluster)):
        hint = "Slurm queues a job again by itself" if options.cluster else "add --processes"
        raise FledgeError("this is for several processes that are started here, or by Ray", where="--max-restarts", hint=hint)
    if options.cluster != "slurm" and (options.slurm or options.nodes is not None):
        name = "--slurm-option" if options.slurm else "--nodes"
        raise FledgeError("this is for Slurm jobs", where=name, hint="add --cluster slurm")


def _on_cluster(options: argparse.Namespace, training: TrainCommand, folder: Path) -> int:
    """Submit the run, or run it on Ray's workers."""
    from fledge.launch.ray import run_on_ray
    from fledge.launch.slurm import submit

    processes, nodes = options.processes or 1, options.nodes or 1
    if options.cluster == "ray":
        return run_on_ray(training, folder, processes, MAX_RESTARTS if options.restarts is None else options.restarts)
    job = submit(training, folder, nodes, processes, options.slurm)
    print(f"submitted as Slurm job {job.job_id}: {nodes * processes} processes")
    print(f"its logs: {job.paths.stdout}, {job.paths.stderr}")
    return 0


def _run_data(options: argparse.Namespace, overrides: Overrides) -> None:
    from fledge.run import Console

    log = Console().log
    if options.action == "build":
        _run_build(options, overrides)
    elif options.action == "stats":
        from fledge.inspect.stats import stats

        stats(options.target, overrides, options.stage, options.kind, options.tokenizer, options.json, options.page, log)
    elif options.action == "check":
        from fledge.inspect.check import check

        check(options.target, overrides, options.stage, options.json, log)
    elif options.action == "account":
        from fledge.inspect.account import Filter, account

        wanted = Filter(options.source, options.reason, options.state)
        account(options.target, overrides, options.stage, wanted, options.row, options.limit, options.json, log)
    else:
        from fledge.inspect.show import show

        show(options.target, overrides, options.stage, options.first, options.count, options.row, log)


def _run_build(options: argparse.Namespace, overrides: Overrides) -> None:
    from fledge.data.build.executors import chosen_executor
    from fledge.recipe import load_recipe
    from fledge.run import Console

    if options.stage is not None:
        raise FledgeError("all stages are built together: they share a tokenizer", where="--stage", hint="leave it out")
    recipe = load_recipe(options.target, overrides)
    executor = chosen_executor(options.executor, options.workers, options.slurm)
    from fledge.build_dataset import build

    for name, data in build(recipe, Path(options.out), executor, Console().log).items():
        held_out = data.validation.num_tokens if data.validation else 0
        tokens, packed_rows = data.train.num_tokens, len(data.train)
        print(f"{name}: {tokens:,} tokens in {packed_rows:,} packed rows an epoch, {held_out:,} for validation")
        for line in data.report.lines():
            print(f"  {line}")
    print(f"train from it: fledge train {' '.join(options.target)} --built {options.out}")


def _run_generation(options: argparse.Namespace) -> None:
    from fledge.chat import chat, generate_once
    from fledge.generation import SamplingParams

    try:
        params = SamplingParams(**{name: getattr(options, name) for name in SAMPLING_FLAGS})
    except FledgeError as error:  # it names the parameter
        raise FledgeError(error.what, where=f"--{error.where}".replace("_", "-"), hint=error.hint) from None
    if options.command == "generate":
        generate_once(options.model, options.prompt, params, system=options.system, raw=options.raw)
    else:
        chat(options.model, params, system=options.system)


def _run_report(options: argparse.Namespace) -> None:
    from fledge.report import write_report

    try:
        print(write_report(Path(options.run)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FledgeError("there is no such run", where=options.run) from error


def _run(options: argparse.Namespace, overrides: Overrides, argv: list[str]) -> int | None:
    """A run: SIGTERM ends it as SIGINT does, also before its data is looked at and after its end. `argv` are the arguments."""
    with SignalHandler(lambda text: None, "stopped on request") as stopping:
        if options.command == "quickstart":
            _run_quickstart(options)
            return 0
        return _run_train(options, overrides, argv, stopping)


def _ignore_signals() -> None:
    """A signal changes nothing any more while the process ends."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for an error that the user can mend, 128 + the number of
    the signal (130, 143) for an interruption, 3 where another process of the run has ended."""
    # Threads that wait by spinning halve the speed of a machine that also does something else; read when torch loads.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    parser = _parser()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    kept, overrides = _overrides([argument for argument in argv if argument != "--debug"], parser)
    options = parser.parse_args(kept)
    on_exit = _ignore_signals if arguments is None else lambda: None  # the end of the process, and not only of this function

    def work(log: Callable[[str], None] = to_stderr) -> int:
        code = exit_code(lambda: _do(options, overrides, argv), debug, on_exit, log)
        on_exit()
        return code

    if options.command != "train" or arguments is not None:
        return work()
    from fledge.launch.local import is_worker_process, run_worker_and_exit

    return run_worker_and_exit(work) if is_worker_process() else work()


def _do(options: argparse.Namespace, overrides: Overrides, argv: list[str]) -> int | None:
    """What the arguments, `argv`, say; perhaps an exit code."""
    if options.command in ("quickstart", "train"):
        return _run(options, overrides, argv)
    if options.command == "data":
        _run_data(options, overrides)
    elif options.command == "report":
        _run_report(options)
    else:
        _run_generation(options)
    return None


if __name__ == "__main__":
    sys.exit(main())
