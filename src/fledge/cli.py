"""The command: parse, call one function, show its result. Nothing heavy is imported before it is needed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fledge import __version__
from fledge.entrypoint import TrainCommand, exit_code, to_stderr, write_report_and_summarise
from fledge.errors import FledgeError
from fledge.run.stopping import SignalHandler

DESCRIPTION = """fledge raises small language models: raw text -> tokenizer -> pretrain -> SFT -> DPO -> a model to talk to.

Start here:
  fledge quickstart                          a bilingual model from nothing, in minutes
  fledge chat runs/quickstart                talk to it
  fledge train recipes/real-data.yaml        your own data, from a recipe
"""
MINUTES, SEED = 5.0, 7  # of the quickstart
RESTARTS = 3  # of the processes of a run
Overrides = list[tuple[str, str]]
OVERRIDES = "Any key of the recipe can be set on the command line: --stages.sft.optimizer.learning_rate 1e-4, --seed 7."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fledge", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fledge {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _quickstart(verbs)
    _train(verbs)
    _data(verbs)
    for name, text in (("generate", "answer one prompt"), ("chat", "talk to a model")):
        _talk(verbs, name, text)
    report = verbs.add_parser("report", help="write a run's report.html again", allow_abbrev=False)
    report.add_argument("run", help="run directory")
    return parser


def _quickstart(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("quickstart", help="raise a bilingual model from nothing on this machine", allow_abbrev=False)
    verb.add_argument("--minutes", type=float, help=f"training time to aim at on this machine (default {MINUTES:g})")
    verb.add_argument("--seed", type=int, help=f"seed of the world and of the run (default {SEED})")
    verb.add_argument("--name", default="quickstart", help="name of the run (default quickstart)")
    verb.add_argument("--output", default="runs", help="folder of runs (default runs)")
    verb.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    verb.add_argument("--quiet", action="store_true", help="say nothing but the result")


def _train(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser(
        "train",
        help="run the stages of a recipe",
        epilog=OVERRIDES,
        allow_abbrev=False,
        usage="fledge train RECIPE... [options] [--key.of.recipe VALUE]...",
    )
    verb.add_argument("recipe", nargs="+", help="YAML files; later ones override earlier ones")
    verb.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, and stop")
    verb.add_argument("--resume", action="store_true", help="go on with an interrupted run (what happens by itself, too)")
    verb.add_argument("--allow", metavar="KEY", action="append", default=[], help="go on although this key is another now")
    verb.add_argument("--processes", type=int, help="train in so many processes of this machine, or of each node (default 1)")
    verb.add_argument("--restarts", type=int, help=f"start all again so often when one is lost (default {RESTARTS})")
    verb.add_argument("--cluster", choices=("slurm", "ray"), help="run on a Slurm or Ray cluster instead of here")
    verb.add_argument("--nodes", type=int, help="machines of the cluster (default 1)")
    verb.add_argument("--slurm", metavar="KEY=VALUE", action="append", default=[], help="of the Slurm job, e.g. partition=gpu")
    verb.add_argument("--quiet", action="store_true", help="say nothing but the result")


def _data(verbs: argparse._SubParsersAction) -> None:
    verb = verbs.add_parser("data", help="look at data before training on it", allow_abbrev=False)
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
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
    show.add_argument("--count", type=int, default=3, help="examples to show (default 3)")
    show.add_argument("--first", type=int, default=0, help="number of the first example (default 0)")
    build = _data_action(actions, "build", "read, clean, tokenise and pack once, to train from with built: DIR")
    build.add_argument("--out", metavar="DIR", required=True, help="directory to build into; an interrupted build goes on")
    build.add_argument("--executor", choices=("processes", "ray", "slurm"), default="processes", help="who works on shards")
    build.add_argument("--workers", type=int, help="processes, or most Slurm jobs at a time (default: one a core; 64 jobs)")
    build.add_argument("--slurm", metavar="KEY=VALUE", action="append", default=[], help="of the jobs, e.g. partition=cpu")
    for action in (stats, check, account):
        action.add_argument("--json", action="store_true", help="print JSON")
    for action in (account, show):
        action.add_argument("--row", metavar="FILE:LINE", help="one row, by its place")


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


def _talk(verbs: argparse._SubParsersAction, name: str, text: str) -> None:
    verb = verbs.add_parser(name, help=text, allow_abbrev=False)
    verb.add_argument("model", help="run, stage, checkpoint or model directory")
    if name == "generate":
        verb.add_argument("prompt", help="what to answer")
        verb.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    verb.add_argument("--system", help="system prompt")
    verb.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    verb.add_argument("--top-k", type=int, default=0, help="sample among the k likeliest tokens; 0: all")
    verb.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this total probability")
    verb.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: avoid tokens already there")
    verb.add_argument("--max-new-tokens", type=int, default=256)
    verb.add_argument("--seed", type=int, default=0)


PLACES = ("--processes", "--restarts", "--cluster", "--nodes", "--slurm")  # options that say where a run is run
OWN_OPTIONS = {
    "train": ("--dry-run", "--resume", "--allow", "--quiet", "--help", *PLACES),
    "data": (
        "--stage", "--json", "--kind", "--tokenizer", "--page", "--source", "--reason", "--state", "--limit", "--row",
        "--count", "--first", "--out", "--executor", "--workers", "--slurm", "--help",
    ),
}  # fmt: skip
TARGETS = {
    "stats": "recipe (YAML), or files and folders of rows",
    "check": "recipe (YAML; later files override earlier ones)",
    "account": "run directory, built directory, or recipe",
    "show": "recipe, run directory or built directory",
    "build": "recipe (YAML; later files override earlier ones)",
}


def _overrides(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], Overrides]:
    """Take `--a.b value` and `--a.b=value` out of the arguments of a verb that has a recipe."""
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb not in OWN_OPTIONS:
        return list(arguments), []
    kept, pairs, words = [], [], list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--") or word == "--" or key in OWN_OPTIONS[verb]:
            kept.append(word)
            continue
        if not equals:
            if not words:
                parser.error(f"{key} needs a value; {OVERRIDES}")
            value = words.pop(0)
        pairs.append((key[2:], value))
    return kept, pairs


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


def _run_train(options: argparse.Namespace, overrides: Overrides, words: list[str], stopping: SignalHandler) -> int | None:
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
        return launch(words, options.processes, RESTARTS if options.restarts is None else options.restarts, stopping)
    return training.run(stopping)


def _check_process_options(options: argparse.Namespace) -> None:
    """FledgeError for options that do not go together."""
    for name in ("processes", "nodes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise FledgeError("it must be at least 1", where=f"--{name}")
    if options.restarts is not None and options.restarts < 0:
        raise FledgeError("it cannot be negative", where="--restarts")
    several = options.processes is not None and options.processes > 1
    if options.restarts is not None and (options.cluster == "slurm" or not (several or options.cluster)):
        hint = "Slurm queues a job again by itself" if options.cluster else "add --processes"
        raise FledgeError("this is for several processes that are started here, or by Ray", where="--restarts", hint=hint)
    if options.cluster != "slurm" and (options.slurm or options.nodes is not None):
        name = "--slurm" if options.slurm else "--nodes"
        raise FledgeError("this is for Slurm jobs", where=name, hint="add --cluster slurm")


def _on_cluster(options: argparse.Namespace, training: TrainCommand, folder: Path) -> int:
    """Submit the run, or run it on Ray's workers."""
    from fledge.launch.cluster import run_on_ray, submit

    processes, nodes = options.processes or 1, options.nodes or 1
    if options.cluster == "ray":
        return run_on_ray(training, folder, processes, RESTARTS if options.restarts is None else options.restarts)
    job = submit(training, folder, nodes, processes, options.slurm)
    print(f"submitted as Slurm job {job.job_id}: {nodes * processes} processes")
    print(f"its logs: {job.paths.stdout}, {job.paths.stderr}")
    return 0


def _run_data(options: argparse.Namespace, overrides: Overrides) -> None:
    from fledge.run import Console

    say = Console().log
    if options.action == "build":
        _run_build(options, overrides)
    elif options.action == "stats":
        from fledge.inspect.stats import stats

        stats(options.target, overrides, options.stage, options.kind, options.tokenizer, options.json, options.page, say)
    elif options.action == "check":
        from fledge.inspect.check import check

        check(options.target, overrides, options.stage, options.json, say)
    elif options.action == "account":
        from fledge.inspect.account import Filter, account

        wanted = Filter(options.source, options.reason, options.state)
        account(options.target, overrides, options.stage, wanted, options.row, options.limit, options.json, say)
    else:
        from fledge.inspect.show import show

        show(options.target, overrides, options.stage, options.first, options.count, options.row, say)


def _run_build(options: argparse.Namespace, overrides: Overrides) -> None:
    from fledge.data.build.executors import chosen_executor
    from fledge.recipe import load_recipe
    from fledge.run import Console

    if options.stage is not None:
        raise FledgeError("all stages are built together: they share a tokenizer", where="--stage", hint="leave it out")
    recipe = load_recipe(options.target, overrides)
    executor = chosen_executor(options.executor, options.workers, options.slurm)
    from fledge.prepare import build

    for name, data in build(recipe, Path(options.out), executor, Console().log).items():
        held_out = data.validation.num_tokens if data.validation else 0
        tokens, packed_rows = data.train.num_tokens, len(data.train)
        print(f"{name}: {tokens:,} tokens in {packed_rows:,} packed rows an epoch, {held_out:,} for validation")
        for line in data.report.lines():
            print(f"  {line}")
    print(f"train from it: fledge train {' '.join(options.target)} --built {options.out}")


def _run_talk(options: argparse.Namespace) -> None:
    from fledge.chat import chat, generate_once

    (generate_once if options.verb == "generate" else chat)(options)


def _run_report(options: argparse.Namespace) -> None:
    from fledge.report import write_report

    try:
        print(write_report(Path(options.run)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FledgeError("there is no such run", where=options.run) from error


def _run(options: argparse.Namespace, overrides: Overrides, words: list[str]) -> int | None:
    """A run: SIGTERM ends it as SIGINT does, also before its data is looked at and after its end. `words` are the arguments."""
    with SignalHandler(lambda text: None, "stopped on request") as stopping:
        if options.verb == "quickstart":
            _run_quickstart(options)
            return 0
        return _run_train(options, overrides, words, stopping)


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
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    kept, overrides = _overrides([word for word in words if word != "--debug"], parser)
    options = parser.parse_args(kept)
    at_end = _ignore_signals if arguments is None else lambda: None  # the end of the process, and not only of this function

    def work(say: Callable[[str], None] = to_stderr) -> int:
        code = exit_code(lambda: _do(options, overrides, words), debug, at_end, say)
        at_end()
        return code

    if options.verb != "train" or arguments is not None:
        return work()
    from fledge.launch.local import is_worker_process, run_worker_and_exit

    return run_worker_and_exit(work) if is_worker_process() else work()


def _do(options: argparse.Namespace, overrides: Overrides, words: list[str]) -> int | None:
    """What the arguments, `words`, say; perhaps an exit code."""
    if options.verb in ("quickstart", "train"):
        return _run(options, overrides, words)
    if options.verb == "data":
        _run_data(options, overrides)
    elif options.verb == "report":
        _run_report(options)
    else:
        _run_talk(options)
    return None


if __name__ == "__main__":
    sys.exit(main())
