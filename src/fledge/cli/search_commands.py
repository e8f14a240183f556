"""`fledge sweep` and `fledge tune`: each calls one function and shows its result."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fledge.localization import shown

Overrides = Sequence[tuple[str, str]]


def run_sweep(options: argparse.Namespace, overrides: Overrides) -> None:
    """Run or resume a sweep."""
    from fledge.recipe import load_recipe
    from fledge.run import Console
    from fledge.sweep.space import gather_space
    from fledge.sweep.sweep import SweepSettings, sweep

    space = gather_space(options.search, [Path(file) for file in options.space])
    out = options.out or f"sweeps/{load_recipe(options.recipe, overrides).name}"
    settings = SweepSettings(
        files=tuple(options.recipe),
        overrides=tuple(overrides),
        out=Path(out),
        space=space,
        stage=options.stage,
        metric=options.metric,
        sampler=options.sampler,
        trials=options.trials,
        minutes=options.minutes,
        seeds=options.seeds,
        processes=options.processes,
        seed=options.sampler_seed,
        prune=not options.no_pruning,
        keep_checkpoints=options.keep_checkpoints,
    )
    sweep(settings, Console(quiet=options.quiet))


def run_tune(options: argparse.Namespace, overrides: Overrides) -> None:
    """Find a learning rate or a batch, and print the patch of the recipe."""
    from fledge.run import Console
    from fledge.tune.tune import TuneSettings, tune

    settings = TuneSettings(
        files=tuple(options.recipe),
        overrides=tuple(overrides),
        what=options.what,
        stage=options.stage,
        out=None if options.out is None else Path(options.out),
        width=options.width,
        processes=options.processes,
    )
    for line in tune(settings, Console(quiet=options.quiet)):
        print(shown(line))
