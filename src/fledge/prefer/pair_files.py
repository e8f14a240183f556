"""`fledge prefer pairs`: the files of training and validation pairs, and the report on them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from fledge.data.reading.json_shapes import JSON_LINES
from fledge.errors import FledgeError
from fledge.evaluate.intervals import wilson_interval
from fledge.prefer.agreement import check_raters
from fledge.prefer.pairs import (
    HUMAN,
    MODEL,
    Gathered,
    PairSettings,
    Triple,
    clearest,
    mixed,
    pairs_of_people,
    rated_pairs,
    split,
    without_equal_pairs,
)
from fledge.prefer.ratings import rated_answers, read_ratings
from fledge.run import Console, write_text

LONG, SHORT = 0.6, 0.4  # shares of pairs with a longer chosen answer, outside of which length alone tells much


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What `fledge prefer pairs` is given. `answers`: files of answers, if not where the ratings say. `people`: files of pairs
    that people have made. `mix`: shares of HUMAN and MODEL. `validation`: share of the prompts that is held out."""

    settings: PairSettings
    answers: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    validation: float = 0.0


def make_pairs(ratings: Sequence[str], out: str, options: PairOptions, console: Console) -> dict[str, Any]:
    """Write the pairs that follow from files of ratings to `out`, those that are held out beside it, and a report, which is
    returned. Raises FledgeError if no pair is left, and for files that are there with another content."""
    _check(options, Path(out))
    files = [read_ratings(path) for path in ratings]
    check_raters(files)
    for file in files:
        if file.unfinished:
            console.log(f"{file.path}: {file.unfinished}; the others count as not rated")
    if unknown := sorted(set(options.settings.min_margin) - {file.rater for file in files} - {""}):
        raise FledgeError(f"no file has the rater '{unknown[0]}'", where="--min-margin",
                          hint=f"raters are {', '.join(file.rater for file in files)}")  # fmt: skip
    gathered = Gathered([])
    if files:
        gathered = clearest(rated_pairs(files, rated_answers(files, options.answers), options.settings), options.settings)
    rated = len({pair for file in files for pair in file.first_ratings()})
    people = pairs_of_people(options.people, console.log)
    gathered = without_equal_pairs(Gathered([*people, *gathered.triples], gathered.left_out))
    if not gathered.triples:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in gathered.left_out.most_common())
        raise FledgeError(f"no pair is left: {reasons or 'nothing was rated'}", where=", ".join(ratings))
    if options.mix:
        gathered = mixed(gathered, options.mix, options.settings.seed)
    training, held_out = split(gathered.triples, options.validation, options.settings.seed)
    report = {"rated_pairs": rated, "pairs_of_people": len(people), **_report(training, held_out, gathered.left_out)}
    _write(Path(out).expanduser(), training, held_out, report)
    return report


def _check(options: PairOptions, out: Path) -> None:
    if out.suffix.lower() not in JSON_LINES:
        raise FledgeError(
            f"'{out}' is no name that a preference stage reads as lines of JSON", where="--out",
            hint=f"write a name that ends with {' or '.join(JSON_LINES)}",
        )  # fmt: skip
    if not 0 <= options.validation < 1:
        raise FledgeError(f"must be a share from 0 to below 1, not {options.validation:g}", where="--validation")
    per_prompt = options.settings.per_prompt
    if per_prompt is not None and per_prompt < 1:
        raise FledgeError(f"must be 1 or more, not {per_prompt}", where="--per-prompt")
    if any(not value >= 0 for value in options.settings.min_margin.values()):
        raise FledgeError("must be 0 or more", where="--min-margin")
    if not options.mix:
        return
    if unknown := sorted(set(options.mix) - {HUMAN, MODEL}):
        raise FledgeError(f"unknown kind of pairs '{unknown[0]}'", where="--mix", hint=f"{HUMAN}=0.3,{MODEL}=0.7")
    if any(not share > 0 for share in options.mix.values()) or abs(sum(options.mix.values()) - 1) > 1e-6:
        total = f"{sum(options.mix.values()):g}"
        raise FledgeError(f"shares are above 0 and add up to 1, not to {total}", where="--mix", hint=f"{HUMAN}=0.3,{MODEL}=0.7")


def _write(out: Path, training: Sequence[Triple], held_out: Sequence[Triple], report: Mapping[str, Any]) -> None:
    files = {out: _rows(training), **({validation_file(out): _rows(held_out)} if held_out else {})}
    left = validation_file(out)
    if not held_out and left.exists():
        raise FledgeError("these pairs were held out by another call, and now their prompts would be trained on",
                          where=str(left), hint="hold prompts out with --validation, name another --out, or remove this file",
                          )  # fmt: skip
    for file, text in files.items():
        if file.exists() and (not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text):
            raise FledgeError("this is there already, with another content", where=str(file),
                              hint="name another file with --out, or remove this one")  # fmt: skip
    for file, text in files.items():
        write_text(file, text)
    write_text(report_file(out), json.dumps(report, ensure_ascii=False, indent=1) + "\n")


def _rows(triples: Sequence[Triple]) -> str:
    return "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in triples)


def validation_file(out: Path) -> Path:
    """The file of the pairs that are held out: `pairs.validation.jsonl` beside `pairs.jsonl`."""
    return out.with_name(f"{out.stem}.validation{out.suffix}")


def report_file(out: Path) -> Path:
    """The file of the report: `pairs.report.json` beside `pairs.jsonl`."""
    return out.with_name(f"{out.stem}.report.json")


# -- the report --------------------------------------------------------------------------------------------------------


def _report(training: Sequence[Triple], held_out: Sequence[Triple], left_out: Counter[str]) -> dict[str, Any]:
    everything = [*training, *held_out]
    longer = sum(len(one.chosen) > len(one.rejected) for one in everything)
    unequal = sum(len(one.chosen) != len(one.rejected) for one in everything)
    margins: dict[str, list[float]] = {}
    for one in everything:
        for rater, margin in one.provenance["margins"].items():
            margins.setdefault(rater, []).append(margin)
    return {
        "pairs": {"training": len(training), "validation": len(held_out)},
        "prompts": {"training": _prompts(training), "validation": _prompts(held_out)},
        "sources": dict(sorted(Counter(one.source for one in everything).items())),
        "raters": dict(sorted(Counter(rater for one in everything for rater in one.provenance["raters"]).items())),
        "left_out": dict(left_out.most_common()),
        "characters": {
            "chosen": round(mean(len(one.chosen) for one in everything), 1),
            "rejected": round(mean(len(one.rejected) for one in everything), 1),
        },
        "longer_chosen": {
            "value": longer / unequal if unequal else None,
            "interval": wilson_interval(longer, unequal) if unequal else None,
            "pairs": unequal,
            "equal_length": len(everything) - unequal,
        },
        "margins": {
            rater: {"least": min(values), "median": median(values), "largest": max(values)}
            for rater, values in sorted(margins.items())
        },
    }


def _prompts(triples: Sequence[Triple]) -> int:
    return len({one.question_id for one in triples})


def report_lines(report: Mapping[str, Any], out: str) -> list[str]:
    """The report as lines for a person."""
    pairs, prompts, file = report["pairs"], report["prompts"], Path(out)
    lines = [f"{file}: {pairs['training']:,} pairs of {prompts['training']:,} prompts"]
    if pairs["validation"]:
        lines.append(
            f"{validation_file(file)}: {pairs['validation']:,} pairs of {prompts['validation']:,} other prompts, held out"
        )
    lines.append("preferred by: " + ", ".join(f"{source} {count:,}" for source, count in report["sources"].items()))
    if report["left_out"]:
        told = ", ".join(f"{count:,} × {reason}" for reason, count in report["left_out"].items())
        total = report["rated_pairs"] + report["pairs_of_people"]
        lines.append(f"left out, of {total:,} pairs that were rated or given: {told}")
    lines += _length_lines(report["characters"], report["longer_chosen"])
    for rater, values in report["margins"].items():
        lines.append(f"margins of {rater}: {values['least']:.3g} … {values['median']:.3g} (median) … {values['largest']:.3g}")
    lines.append(f"{report_file(file)}: these figures")
    return lines


def _length_lines(characters: Mapping[str, float], longer: Mapping[str, Any]) -> list[str]:
    """What the lengths of the answers tell about which one is chosen; equal lengths tell nothing."""
    means = f"characters on average: chosen {characters['chosen']:,}, rejected {characters['rejected']:,}"
    if not longer["pairs"]:
        return [f"{means}; in no pair is one answer longer than the other"]
    low, high = longer["interval"]
    equal = f"; {longer['equal_length']:,} pairs of equal length" if longer["equal_length"] else ""
    lines = [
        f"{means}; the chosen answer is the longer one in {longer['value']:.1%} [{low:.1%}, {high:.1%}] of {longer['pairs']:,} "
        f"pairs of unequal length{equal}"
    ]
    if low > LONG or high < SHORT:
        lines.append("note: length tells much about these pairs; `fledge data check` says what else does")
    return lines
