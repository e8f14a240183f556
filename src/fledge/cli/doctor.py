"""`fledge doctor`: examine a target, show what was found, and prove what is asked for."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.cli.doctor_arguments import PROOF_MINUTES
from fledge.errors import FledgeError
from fledge.escaping import escaped, escaped_json
from fledge.localization import shown

if TYPE_CHECKING:
    from fledge.doctor.examination import Examination
    from fledge.doctor.prove import Proof

PIPED_WIDTH, WIDEST = 110, 120  # columns where the output is no terminal, and at most


def run_doctor(options: argparse.Namespace) -> int | None:
    """Examine the target and print what was found. 2 with --strict if something is wrong, else None."""
    from fledge.doctor import DoctorOptions, examine

    _check(options)
    found = examine(
        Path(options.target),
        DoctorOptions(
            stage=options.stage,
            config=None if options.config is None else Path(options.config),
            columns=_pairs(options.columns, "--columns"),
            given=_pairs(options.given, "--given"),
            data=tuple(map(Path, options.data)),
            tokenizer=None if options.tokenizer is None else Path(options.tokenizer),
            start=None if options.start is None else Path(options.start),
            depth=options.depth,
            quick=options.quick,
        ),
    )
    if not options.json:
        _print_text(found, options)
    proofs: list[Proof] = []
    plots: list[Path] = []
    try:
        proofs += _prove(found, options) if options.prove else []
        plots += _write_plots(found, options)
    finally:  # what was found is told, and what was proved, whatever became of the rest
        if options.json:
            _print_json(found, options, proofs, plots)
    return 2 if options.strict and any(not one.is_healthy for one in found) else None


def run_bench(arguments: list[str]) -> int:
    """Run the bench of the doctor with its own arguments; returns its exit code."""
    from fledge.doctor_bench.command import run

    return run(arguments)


def _check(options: argparse.Namespace) -> None:
    """FledgeError for options that do not go together."""
    if options.minutes is not None and not options.prove:
        raise FledgeError("it is the time for a proof", where="--minutes", hint="add --prove")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        raise FledgeError("must be a number above zero", where="--minutes")
    if bool(options.data) != (options.tokenizer is not None):
        raise FledgeError("rows are counted in tokens", where="--data", hint="give both --data FILE and --tokenizer DIR")


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise FledgeError(f"'{text}' is no NAME=VALUE", where=option)
        pairs[name] = value
    return pairs


def _print_text(found: "list[Examination]", options: argparse.Namespace) -> None:
    from fledge.doctor.lines import rendered
    from fledge.doctor.scheme_text import scheme_lines
    from fledge.doctor.text import seconds_line, summary_lines, text_of

    width = min(WIDEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else PIPED_WIDTH
    lines = list(text_of(found))
    if options.schemes:
        lines += [line for one in found for line in scheme_lines(one)]
    if len(found) > 1:
        lines += summary_lines(found)
    lines.append(seconds_line(found))
    for row in rendered(lines, width):
        print(escaped(row))


def _prove(found: "list[Examination]", options: argparse.Namespace) -> "list[Proof]":
    """Prove the first change of settings, or with --schemes the steps of the stepwise scheme, of the first stage that has
    one."""
    from fledge.doctor.prove import prove_steps
    from fledge.doctor.schemes import proof_steps
    from fledge.run import Console

    target = found[0].target
    if target.run is None:
        raise FledgeError("only runs of fledge can be tried again", where="--prove", hint="`proof:` says how to do it there")
    for one in found:
        chosen = proof_steps(one, stepwise=options.schemes)
        if chosen is None:
            continue
        diagnosis, patches = chosen
        minutes = PROOF_MINUTES if options.minutes is None else options.minutes
        proofs = prove_steps(
            target.run, one.stage, patches, minutes=minutes, console=Console(quiet=options.json), cause=diagnosis.cause,
            category=diagnosis.category,
        )  # fmt: skip
        for proof in proofs if not options.json else ():
            for line in proof.lines():
                print(shown(line))
        return proofs
    print(shown("nothing was found that a change of settings cures, so there is nothing to prove"), file=sys.stderr)
    return []


def _write_plots(found: "list[Examination]", options: argparse.Namespace) -> list[Path]:
    if options.plots is None:
        return []
    from fledge.doctor.plots import write_plots

    plots = write_plots(found, Path(options.plots))
    for file in plots if not options.json else ():
        print(shown(str(file)))
    return plots


def _print_json(found: "list[Examination]", options: argparse.Namespace, proofs: "list[Proof]", plots: list[Path]) -> None:
    from fledge.doctor.as_json import as_json, plain
    from fledge.doctor.schemes import schemes

    tree: dict[str, Any] = as_json(found)
    if options.schemes:
        tree["schemes"] = {one.stage: [plain(scheme.as_dict()) for scheme in schemes(one)] for one in found}
    if options.prove:
        tree["proofs"] = [plain(proof.as_dict()) for proof in proofs]
    if options.plots is not None:
        tree["plots"] = [str(file) for file in plots]
    print(escaped_json(json.dumps(tree, ensure_ascii=False, indent=1, allow_nan=False)))
