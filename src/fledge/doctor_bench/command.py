"""`fledge doctor bench`: trains the runs, judges them, shows the figures."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fledge.diagnosis.thresholds import thresholds_hash
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.frozen import check_frozen, freeze
from fledge.doctor_bench.groups import GROUPS, PARTS, QUICK, TUNED_ON, Group
from fledge.doctor_bench.options import make_parser
from fledge.errors import FledgeError
from fledge.escaping import escaped, escaped_json

JUDGEMENTS, RESULTS = "judgements.jsonl", "results.json"
Log = Callable[[str], None]


def main(options: argparse.Namespace) -> int:
    """Do what the options say. Raises FledgeError for held-out groups whose thresholds are not frozen, and for a name that
    there is no group of. Returns the exit code."""
    if options.freeze:
        print(escaped(f"thresholds frozen: {freeze()}"))
        return 0
    groups, out = chosen_groups(options), options.judge or options.out
    if any(group.part not in TUNED_ON for group in groups) and not options.train_only:
        check_frozen()
    log: Log = (lambda text: None) if options.json else print
    log(f"thresholds {thresholds_hash()[:16]}")
    began = time.perf_counter()
    if options.judge is None:
        _train(groups, out, options, log)
    if options.train_only:
        return 0
    results = evaluate(out, {group.name for group in groups}, options.only)
    results["seconds"] = round(time.perf_counter() - began, 1)
    (out / RESULTS).write_text(json.dumps(results, ensure_ascii=False, indent=1), encoding="utf-8")
    _show(results, options)
    return 0


def chosen_groups(options: argparse.Namespace) -> list[Group]:
    """The groups that the options name. Raises FledgeError for an unknown name."""
    if options.quick:
        return [GROUPS[QUICK]]
    if options.group == "all":
        return [group for group in GROUPS.values() if group.part in PARTS]
    if options.group in PARTS:
        return [group for group in GROUPS.values() if group.part == options.group]
    if options.group not in GROUPS:
        known = ", ".join([*PARTS, "all", *GROUPS])
        raise FledgeError(f"there is no group '{options.group}'", where="--group", hint=f"there are {known}")
    return [GROUPS[options.group]]


# -- training -----------------------------------------------------------------------------------------------------------


def _train(groups: Sequence[Group], out: Path, options: argparse.Namespace, log: Log) -> None:
    """Make what the groups share, and run the cases that have no result yet."""
    from fledge.doctor_bench.conditions import cases_of, effect_cases, quick_cases
    from fledge.doctor_bench.runs import group_folder

    out.mkdir(parents=True, exist_ok=True)
    keys: list[CaseKey] = []
    further: list[CaseKey] = []
    for group in groups:
        group_folder(out, group.name).make(log)
        keys += quick_cases(group) if options.quick else cases_of(group, options.seeds)
        further += effect_cases(group, options.effects)
    keys, further = ([key for key in chosen if key.is_sampled(options.share)] for chosen in (keys, further))
    keep = ["keep"] if options.keep_models else []
    if options.examine_again:
        missing = set(_missing(keys, out, options.only))
        _run([key for key in _wanted(keys, options.only) if key not in missing], out, options, log, ["again"])
        return
    _run(_missing(keys, out, options.only), out, options, log, ["train", *keep])
    _run(_missing(sorted(set(further) - set(keys)), out, options.only), out, options, log, ["effect"])


def _missing(keys: Iterable[CaseKey], out: Path, only: Sequence[str]) -> list[CaseKey]:
    """The cases without a result, in a fixed order."""
    from fledge.doctor_bench.records import FILE

    return [key for key in _wanted(keys, only) if not (out / "cases" / key.folder / FILE).exists()]


def _wanted(keys: Iterable[CaseKey], only: Sequence[str]) -> list[CaseKey]:
    return [key for key in keys if not only or any(text in key.text for text in only)]


def _run(keys: list[CaseKey], out: Path, options: argparse.Namespace, log: Log, work: list[str]) -> None:
    from fledge.doctor_bench.pool import run_cases

    began, count = time.perf_counter(), 0

    def done(answer: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        left = (time.perf_counter() - began) / count * (len(keys) - count)
        problem = f" FAILED: {answer['failure']}" if answer["failure"] else f" ({answer['error']})" if answer["error"] else ""
        seconds = sum(answer["seconds"].values())
        log(f"{count}/{len(keys)} {answer['key']}: {seconds:.1f} s{problem}; {left / 60:.0f} min left")

    if keys:
        run_cases(keys, out, max(1, min(options.processes, len(keys))), done, work)


# -- judging ------------------------------------------------------------------------------------------------------------


def evaluate(out: Path, groups: set[str], only: Sequence[str] = ()) -> dict[str, Any]:
    """Judge the stored runs of groups and score them; writes the judgements. Raises FledgeError if there are none."""
    from fledge.doctor_bench.baselines import baseline_scores
    from fledge.doctor_bench.effects import effects_of
    from fledge.doctor_bench.judging import judge, write_judgements
    from fledge.doctor_bench.records import records
    from fledge.doctor_bench.results import results_of

    found = [(folder, record) for folder, record in records(out) if record.case.group in groups]
    if not found:
        raise FledgeError("there are no runs of these groups", where=str(out), hint="train them first, without --judge")
    effects = effects_of(record for _, record in found)
    chosen = [
        (folder, record)
        for folder, record in found
        if record.is_examined and (not only or any(text in record.key for text in only))
    ]
    judgements = [judge(folder, record) for folder, record in chosen]
    write_judgements(out / JUDGEMENTS, judgements)
    results = results_of(judgements, [record for _, record in chosen], effects)
    results["baselines"] = baseline_scores(chosen, effects)
    return results


def _show(results: dict[str, Any], options: argparse.Namespace) -> None:
    from fledge.doctor_bench.page import write_page
    from fledge.doctor_bench.text import lines_of

    for file in options.markdown:
        write_page(results, file)
    if options.json:
        print(escaped_json(json.dumps(results["summary"], ensure_ascii=False)))
        return
    for line in lines_of(results):
        print(escaped(line))


def run(arguments: Sequence[str]) -> int:
    """The command with arguments as texts; prints errors as `fledge` does."""
    try:
        return main(make_parser().parse_args(arguments))
    except FledgeError as error:
        print(escaped(error.text()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
