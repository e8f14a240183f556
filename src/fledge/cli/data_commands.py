"""The actions of `fledge data`: each calls one function, which shows its result."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from fledge.cli.arguments import Overrides
from fledge.errors import FledgeError
from fledge.localization import shown


def run_data(options: argparse.Namespace, overrides: Overrides) -> None:
    """Run the action that the options name."""
    from fledge.run import Console

    if options.action == "make":
        return _run_make(options, overrides)
    log, target, stage = Console().log, options.target, options.stage
    if options.action == "build":
        _run_build(options, overrides)
    elif options.action == "stats":
        from fledge.inspect.stats import stats

        stats(
            target,
            overrides,
            stage=stage,
            kind=options.kind,
            tokenizer_path=options.tokenizer,
            as_json=options.json,
            page=options.page,
            log=log,
        )
    elif options.action == "check":
        from fledge.inspect.check import check

        check(target, overrides, stage, as_json=options.json, model=options.with_model, log=log)
    elif options.action == "account":
        from fledge.inspect.account import Filter, account

        account(
            target,
            overrides,
            stage=stage,
            row_filter=Filter(options.source, options.reason, options.state),
            row=options.row,
            limit=options.limit,
            as_json=options.json,
            log=log,
        )
    else:
        from fledge.inspect.show import show

        show(target, overrides, stage=stage, offset=options.offset, limit=options.limit, row=options.row, log=log)


def _run_make(options: argparse.Namespace, overrides: Overrides) -> None:
    if overrides:
        raise FledgeError(
            "this command has no recipe", where=f"--{overrides[0][0]}", hint="`fledge data make --help` lists its options"
        )
    for line in MAKERS.get(options.task, _make_task)(options, Path(options.out)):
        print(shown(line))


def _make_world(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    from fledge.world import make_world

    for name, rows in make_world(folder, options.seed, options.rows)["rows"].items():
        yield f"{folder / name}: {rows:,} rows"
    yield "train on it: fledge train recipes/world.yaml (with --out world)"


def _make_task(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    from fledge.tasks import make

    report = make(options.task, folder, options.seed, options.rows)
    for split, rows in report["rows"].items():
        groups = ", ".join(f"{count:,} {name}" for name, count in report["groups"][split].items())
        made = f"{folder / split}.jsonl: {rows:,} rows"
        yield f"{made}: {groups}, which training does not have" if split != "train" else made
    yield f"{folder / 'report.json'}: what is held out, with counts"


MAKERS: dict[str, Callable[[argparse.Namespace, Path], Iterator[str]]] = {"world": _make_world}


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
        print(shown(f"{name}: {tokens:,} tokens in {packed_rows:,} packed rows an epoch, {held_out:,} for validation"))
        for line in data.report.lines():
            print(shown(f"  {line}"))
    print(shown(f"train from it: fledge train {' '.join(options.target)} --built_dataset {options.out}"))
