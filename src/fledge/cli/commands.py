"""The commands: each calls one function and shows its result. Nothing heavy is imported before it is needed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.cli.arguments import MAX_RESTARTS, MINUTES, SAMPLING_OPTIONS, SEED, Overrides, build_parser, split_overrides
from fledge.cli.completion import complete_if_asked, completion_script
from fledge.cli.data_commands import run_data
from fledge.cli.doctor import run_bench, run_doctor
from fledge.cli.doctor_arguments import bench_arguments
from fledge.cli.evaluation import run_eval
from fledge.cli.init import run_init
from fledge.cli.localized_help import localize_parser, take_language
from fledge.cli.plan import run_plan
from fledge.cli.prefer_commands import run_prefer
from fledge.cli.rate import run_rate
from fledge.cli.runs_commands import run_runs
from fledge.cli.search_commands import run_sweep, run_tune
from fledge.entrypoint import TrainCommand, exit_code, leave_output, to_stderr, write_report_and_summarize
from fledge.errors import FledgeError
from fledge.escaping import escaped
from fledge.localization import language, localized, set_language, shown
from fledge.run.code_cache import set_code_cache
from fledge.run.stopping import SignalHandler

if TYPE_CHECKING:
    from fledge.evaluate.best_of import BestOf
    from fledge.generation import SamplingParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done; 2: an error that the user can mend; 3: another process of the run has ended; 128 + the signal's number (130, 143):
    an interruption.
    """
    # Threads that wait by spinning halve the speed of a machine that also does something else; read when torch loads.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    argv = _speak(list(sys.argv[1:] if arguments is None else arguments))
    parser = build_parser()
    complete_if_asked(parser)
    if (bench := bench_arguments(argv)) is not None:
        return exit_code(lambda: run_bench(bench), "--debug" in argv)
    if language() != "en":
        localize_parser(parser)
    debug = "--debug" in argv
    kept, overrides = split_overrides([argument for argument in argv if argument != "--debug"], parser)
    options = parser.parse_args(kept)
    on_exit = _ignore_signals if arguments is None else lambda: None  # the end of the process, and not only of this function

    def run(log: Callable[[str], None] = to_stderr) -> int:
        code = exit_code(lambda: _run_command(options, overrides, argv), debug, on_exit, log)
        on_exit()
        leave_output()
        return code

    if options.command != "train" or arguments is not None:
        return run()
    from fledge.launch.local import is_worker_process, run_worker_and_exit

    return run_worker_and_exit(run) if is_worker_process() else run()


def _speak(argv: list[str]) -> list[str]:
    """Speak the language of `--language`, or that of the environment; returns the command line without the option."""
    try:
        argv, code = take_language(argv)
    except ValueError as error:
        build_parser().error(str(error))
    if code is not None:
        set_language(code)
    return argv


def _run_command(options: argparse.Namespace, overrides: Overrides, argv: list[str]) -> int | None:
    """Run the command that the options name; returns its exit code, None for 0."""
    set_code_cache()
    if options.command in ("quickstart", "train"):
        return _run_with_signals(options, overrides, argv)
    if options.command == "runs":
        return run_runs(options)
    if options.command == "plan":
        return run_plan(options, overrides)
    if options.command == "doctor":
        return run_doctor(options)
    if options.command == "data":
        run_data(options, overrides)
    elif options.command == "sweep":
        run_sweep(options, overrides)
    elif options.command == "tune":
        run_tune(options, overrides)
    elif options.command == "init":
        run_init(options)
    elif options.command == "completion":
        print(escaped(completion_script(options.shell)))
    elif options.command == "report":
        _run_report(options)
    elif options.command == "score":
        _run_score(options)
    elif options.command == "eval":
        run_eval(options)
    elif options.command == "prefer":
        run_prefer(options)
    elif options.command == "rate":
        run_rate(options)
    elif options.command == "export":
        _run_export(options)
    else:
        _run_generation(options)
    return None


def _run_quickstart(options: argparse.Namespace, stopping: SignalHandler) -> None:
    with stopping.at_once():
        from fledge.quickstart import quickstart
        from fledge.recipe.sections.base import check_name
        from fledge.run import Console

    if options.resume and (options.minutes is not None or options.seed is not None):
        raise FledgeError("--resume uses the stored recipe", hint="leave --minutes and --seed out")
    minutes = MINUTES if options.minutes is None else options.minutes
    if not 0 < minutes < float("inf"):
        raise FledgeError("--minutes must be a number above zero")
    try:
        check_name(options.name)
    except ValueError as error:
        raise FledgeError(str(error), where="--name") from None
    if not 0 <= (options.seed or 0) < 2**32:
        raise FledgeError("it must be at least 0 and below 2**32", where="--seed")
    seed = SEED if options.seed is None else options.seed
    run = quickstart(
        name=options.name,
        output=options.output,
        seed=seed,
        minutes=minutes,
        resume=options.resume,
        console=Console(quiet=options.quiet),
    )
    write_report_and_summarize(run)


def _run_train(options: argparse.Namespace, overrides: Overrides, argv: list[str], stopping: SignalHandler) -> int | None:
    from fledge.launch.local import is_worker_process, launch, start_watchdog
    from fledge.recipe import load_recipe
    from fledge.run import Console

    _check_process_options(options)
    training = TrainCommand(tuple(options.recipe), tuple(overrides), tuple(options.allow_change), options.resume, options.quiet)
    if is_worker_process():
        start_watchdog()
        return training.run(stopping)
    recipe = load_recipe(options.recipe, overrides)  # here, so that an error appears once and not for every process
    if options.dry_run:
        from fledge.forecast.planning import dry_run

        print(escaped(dry_run(recipe, Console(quiet=options.quiet), full=options.full)))
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
    if options.full and not options.dry_run:
        raise FledgeError("it says what a plan is printed with", where="--full", hint="add --dry-run")
    several = options.processes is not None and options.processes > 1
    if options.restarts is not None and (options.cluster == "slurm" or not (several or options.cluster)):
        hint = "Slurm queues a job again by itself" if options.cluster else "add --processes"
        raise FledgeError("this is for several processes that are started here, or by Ray", where="--max-restarts", hint=hint)
    if options.cluster != "slurm" and (options.slurm or options.nodes is not None):
        name = "--slurm-option" if options.slurm else "--nodes"
        raise FledgeError("this is for Slurm jobs", where=name, hint="add --cluster slurm")


def _on_cluster(options: argparse.Namespace, training: TrainCommand, folder: Path) -> int:
    """Submit the run to Slurm, or run it on Ray's workers; returns the exit code."""
    from fledge.launch.ray import run_on_ray
    from fledge.launch.slurm import submit

    processes, nodes = options.processes or 1, options.nodes or 1
    if options.cluster == "ray":
        return run_on_ray(training, folder, processes, MAX_RESTARTS if options.restarts is None else options.restarts)
    job = submit(training, folder, nodes, processes, options.slurm)
    print(shown(f"submitted as Slurm job {job.job_id}: {nodes * processes} processes"))
    print(shown(f"its logs: {job.paths.stdout}, {job.paths.stderr}"))
    return 0


def _run_generation(options: argparse.Namespace) -> None:
    from fledge.chat import chat
    from fledge.generation import SamplingParams

    if options.command == "generate":
        _check_generate(options)
    try:
        params = SamplingParams(**{name: getattr(options, name) for name in SAMPLING_OPTIONS})
    except FledgeError as error:  # it names the parameter
        raise FledgeError(error.what, where=f"--{error.where}".replace("_", "-"), hint=error.hint) from None
    if options.command == "chat":
        chat(options.model, params, adapters=options.adapter, system=options.system)
    else:
        _generate(options, params)


def _check_generate(options: argparse.Namespace) -> None:
    """Raise FledgeError unless there is one prompt, or a file of them and a file for their answers."""
    if (options.prompt is None) == (options.file is None):
        raise FledgeError(
            "one prompt is answered, or a file of them", where="fledge generate", hint="name PROMPT or --file FILE"
        )
    if options.file is None:
        given = next((name for name in ("out", "resume") if getattr(options, name)), None)
        if given:
            raise FledgeError("this is for the answers to a file of prompts", where=f"--{given}", hint="add --file FILE")
    elif options.out is None:
        raise FledgeError("name the file for the answers", where="--file", hint="add --out answers.jsonl")
    elif options.raw:
        raise FledgeError("the prompts of a file are answered by the chat template", where="--raw", hint="leave it out")


def _generate(options: argparse.Namespace, params: "SamplingParams") -> None:
    from fledge.chat import generate_file, generate_once

    same = {"adapter": options.adapter, "system": options.system, "schema": _json_schema(options)}
    if options.file is None:
        generate_once(options.model, options.prompt, params, raw=options.raw, **same)
    else:
        generate_file(options.model, options.file, Path(options.out), params, resume=options.resume, **same)


def _run_score(options: argparse.Namespace) -> None:
    from fledge.run import Console
    from fledge.score import score

    if options.max_new_tokens < 1:
        raise FledgeError(f"must be 1 or more, not {options.max_new_tokens}", where="--max-new-tokens")
    score(
        options.file,
        options.model,
        options.max_new_tokens,
        adapters=options.adapter,
        schema=_json_schema(options),
        best_of=_best_of(options),
        errors=options.errors,
        as_json=options.json,
        bleu=options.bleu,
        metrics=list(dict.fromkeys(options.metrics)),
        log=Console().log,
    )


def _best_of(options: argparse.Namespace) -> "BestOf | None":
    """How several answers are drawn and ranked, if `--best-of` asks for it."""
    given = {name: getattr(options, name) for name in ("reward_model", "temperature", "seed")}
    if options.best_of is None:
        if alone := [name for name, value in given.items() if value is not None]:
            raise FledgeError("it belongs to --best-of", where=f"--{alone[0].replace('_', '-')}", hint="write --best-of 8 too")
        return None
    if options.reward_model is None:
        raise FledgeError("a reward model chooses the answer", where="--best-of", hint="write --reward-model DIR too")
    from fledge.evaluate.best_of import BestOf
    from fledge.generation import SamplingParams, load_reward_model
    from fledge.run import Console

    params = SamplingParams(
        max_new_tokens=options.max_new_tokens,
        temperature=1.0 if options.temperature is None else options.temperature,
        seed=options.seed or 0,
    )
    return BestOf(options.best_of, load_reward_model(options.reward_model, Console().log), params)


def _json_schema(options: argparse.Namespace) -> dict[str, object] | None:
    """The content of the file that `--json-schema` names."""
    if options.json_schema is None:
        return None
    from fledge.generation.json_schema import read_schema

    return read_schema(Path(options.json_schema))


def _run_export(options: argparse.Namespace) -> None:
    from fledge.export import export_model
    from fledge.run import Console

    folder, lines = export_model(options.model, to=options.to, weight_type=options.type, out=options.out, log=Console().log)
    for line in lines:
        print(shown(line))
    print(shown(str(folder)))


def _run_report(options: argparse.Namespace) -> None:
    runs = [Path(run) for run in options.run]
    if options.plots is None and options.format is not None:
        raise FledgeError("it belongs to --plots", where="--format", hint="write --plots DIR too")
    if len(runs) > 1 and options.plots is not None:
        raise FledgeError("plots are written for one run", where="--plots", hint="name one run")
    if len(runs) == 1 and options.out is not None:
        raise FledgeError("the report of one run is its report.html", where="--out", hint="name two runs or more to compare")
    try:
        for file in _write_reports(runs, options):
            print(shown(str(file)))
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = next((str(run) for run in runs if not run.is_dir()), options.run[0])
        raise FledgeError("there is no such run", where=missing) from error


def _write_reports(runs: list[Path], options: argparse.Namespace) -> list[Path]:
    """Write what `fledge report` is asked for; returns the paths."""
    if len(runs) > 1:
        from fledge.report.comparison import write_comparison

        return [write_comparison(runs, Path(options.out or "comparison.html"))]
    if options.plots is not None:
        from fledge.report.plots import write_plots

        return write_plots(runs[0], Path(options.plots), options.format or "svg", language())
    from fledge.report import write_report

    return [write_report(runs[0])]


def _run_with_signals(options: argparse.Namespace, overrides: Overrides, argv: list[str]) -> int | None:
    """Run `quickstart` or `train`. SIGTERM ends both as SIGINT does, also before the data is read and after the last step."""
    with SignalHandler(lambda text: to_stderr(localized(text)), "stopped on request") as stopping:
        if options.command == "quickstart":
            _run_quickstart(options, stopping)
            return 0
        return _run_train(options, overrides, argv, stopping)


def _ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM while the process ends."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
