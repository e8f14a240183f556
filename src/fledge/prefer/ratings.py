"""Ratings of answers, as `fledge prefer rank` writes them: one rater to a file, scores of answers or comparisons of two."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from fledge.errors import FledgeError
from fledge.prefer.answers import AnswerSet, read_answers
from fledge.prefer.journal import Line, read_journal

RATINGS = "ratings"  # the kind of file
Verdict = Literal["first", "second", "tie", "both_bad", "skip", "inconsistent", "too_long", "no_reference"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
DECIDED: tuple[Verdict, ...] = ("first", "second")
NOISE = 1e-9  # of scores: what a sum of rewards may differ by through rounding alone
EQUAL: tuple[Verdict, ...] = ("tie", "both_bad")  # the rater saw both, and neither is better
PLANNED = "planned"  # a key of the header: the number of lines when the rater is done
UNKNOWN = "name all files of answers that it rates with --answers"
Pair = tuple[str, str, str]
"""A prompt and two answers to it, by their ids, the smaller id first."""


@dataclass(frozen=True, kw_only=True)
class Rating:
    """What a rater says of two answers to a prompt.

    `preferred`: the better answer; None if the rater names none. `margin`: by how much, in the unit of the rater; None for
    raters without one. `in_both_orders`: the rater has read them in both orders. `is_repeat`: it had rated them before."""

    pair: Pair
    verdict: Verdict
    preferred: str | None = None
    margin: float | None = None
    in_both_orders: bool = False
    is_repeat: bool = False

    @property
    def label(self) -> str:
        """The verdict without the order in which the answers were shown: the better answer, or "" for neither."""
        return self.preferred or ""

    @property
    def is_tie(self) -> bool:
        """Whether both are equally good; both may also be bad."""
        return self.verdict == "tie"

    @property
    def is_verdict(self) -> bool:
        """Whether the rater has compared the two."""
        return self.verdict in DECIDED or self.verdict in EQUAL


@dataclass(frozen=True, kw_only=True)
class RatingsFile:
    """The ratings of one rater. `kind`: how they were made. `is_human`: whether by a person. `answers`: paths of the answers
    that were rated, with hashes. `done` of `planned` lines are there; None: the file does not say how many there will be."""

    path: Path
    rater: str
    kind: str
    is_human: bool
    answers: Mapping[str, str]
    ratings: tuple[Rating, ...]
    done: int = 0
    planned: int | None = None

    @property
    def unfinished(self) -> str:
        """How far a rater has come who is not done, in words; else ""."""
        return (
            "" if self.planned is None or self.done >= self.planned else f"{self.done:,} of {self.planned:,} comparisons rated"
        )

    def first_ratings(self) -> dict[Pair, Rating]:
        """The rating of each pair, without repetitions."""
        return {rating.pair: rating for rating in self.ratings if not rating.is_repeat}

    def counts(self) -> Counter[str]:
        """How many pairs have each verdict: better, tie, both_bad, …"""
        return Counter("better" if one.verdict in DECIDED else one.verdict for one in self.first_ratings().values())


def are_equal(one: float, other: float) -> bool:
    """Whether two scores differ by rounding at most."""
    return math.isclose(one, other, rel_tol=NOISE, abs_tol=NOISE)


def pair_of(prompt: str, one: str, other: str) -> Pair:
    """The pair of two answers, whichever is named first."""
    return (prompt, *sorted((one, other)))  # type: ignore[return-value]


# -- what raters write -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RaterName:
    """The name of a rater, its kind, and whether it is a person."""

    name: str
    kind: str
    is_human: bool


def header_of(
    rater: RaterName, settings: Mapping[str, Any], answers: AnswerSet, out: Path, planned: int | None = None
) -> dict[str, Any]:
    """The header of a file of ratings. Paths of answers are relative to it, so that a folder can be moved as a whole.
    `planned`: how many lines it has when the rater is done."""
    folder = os.path.realpath(out.parent)
    paths = [os.path.relpath(path, folder) for path in answers.hashes]
    return {
        "about": {"answers": paths, **({} if planned is None else {PLANNED: planned})},
        "rater": rater.name,
        "kind": rater.kind,
        "human": rater.is_human,
        "settings": dict(settings),
        "answers": list(answers.hashes.values()),
    }


def replayed(lines: Iterable[Line]) -> list[Line]:
    """The lines that hold, after each `undo` has taken back the one before it."""
    kept: list[Line] = []
    for line in lines:
        if "undo" in line:
            del kept[-1:]
        else:
            kept.append(line)
    return kept


# -- reading -----------------------------------------------------------------------------------------------------------


def read_ratings(path: str) -> RatingsFile:
    """A file of ratings. Raises FledgeError for one that is none or is damaged, with the line, and for one that a model or a
    rule has not finished. A person may stop at any time: see `RatingsFile.unfinished`."""
    journal = read_journal(Path(path).expanduser(), RATINGS)
    try:
        header = journal.header
        answers = dict(zip(header["about"]["answers"], header["answers"], strict=True))
        rater, kind, is_human = str(header["rater"]), str(header["kind"]), bool(header["human"])
        planned = None if header["about"].get(PLANNED) is None else int(header["about"][PLANNED])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FledgeError(f"damaged: no usable {error}", where=f"{path}:1", hint="make it again") from None
    ratings: list[Rating] = []
    for number, line in enumerate(journal.lines):
        if not _is_line(line):
            raise FledgeError("damaged: this is no rating", where=journal.location(number), hint="put back a copy")
    kept = replayed(journal.lines)
    if planned is not None and not is_human and (journal.torn or len(kept) < planned):
        raise FledgeError(
            f"rating has not finished: it has {len(kept):,} of {planned:,} lines", where=str(journal.path),
            hint="run the command that writes it again: it goes on",
        )  # fmt: skip
    for line in kept:
        ratings += _of_scores(line) if "scores" in line else _of_comparison(line)
    return RatingsFile(
        path=journal.path,
        rater=rater,
        kind=kind,
        is_human=is_human,
        answers=answers,
        ratings=tuple(ratings),
        done=len(kept),
        planned=planned,
    )


def _is_line(line: Line) -> bool:
    if "undo" in line:
        return True
    if not isinstance(line.get("prompt"), str):
        return False
    if "scores" in line:
        scores = line["scores"]
        return isinstance(scores, dict) and all(isinstance(value, int | float) for value in scores.values())
    named = all(isinstance(line.get(side), str) for side in DECIDED) and line["first"] != line["second"]
    odds = line.get("log_odds", [0.0, 0.0])
    numbers = isinstance(odds, list) and len(odds) == 2 and all(isinstance(value, int | float) for value in odds)
    return named and line.get("verdict") in VERDICTS and numbers


def _of_scores(line: Line) -> Iterator[Rating]:
    """The ratings that follow from scores: the higher one is better, equal ones (up to rounding) are a tie."""
    for (one, a), (other, b) in combinations(line["scores"].items(), 2):
        pair = pair_of(line["prompt"], one, other)
        if are_equal(a, b):
            yield Rating(pair=pair, verdict="tie", margin=0.0)
        else:
            better, verdict = (one, "first") if a > b else (other, "second")
            yield Rating(pair=pair, verdict=verdict, preferred=better, margin=abs(a - b))  # type: ignore[arg-type]


def _of_comparison(line: Line) -> Iterator[Rating]:
    verdict: Verdict = line["verdict"]
    odds = line.get("log_odds")
    yield Rating(
        pair=pair_of(line["prompt"], line["first"], line["second"]),
        verdict=verdict,
        preferred=line[verdict] if verdict in DECIDED else None,
        margin=None if odds is None else abs(odds[0] - odds[1]) / 2,
        in_both_orders=odds is not None,
        is_repeat=bool(line.get("repeat")),
    )


def rated_answers(files: Sequence[RatingsFile], answers: Sequence[str] = ()) -> AnswerSet:
    """The answers that files of ratings are about: those of the paths that they name, or of `answers` instead.

    Raises FledgeError for answers that are missing, were changed since, or do not have an answer that was rated."""
    expected = {digest: file for file in files for digest in file.answers.values()}
    paths = {str(file.path.parent / path): file for file in files for path in file.answers}
    named = list(answers) or list({os.path.realpath(path): path for path in paths}.values())
    if not answers and (missing := [path for path in named if not Path(path).exists()]):
        raise FledgeError(
            f"its answers are not there: {missing[0]}",
            where=str(paths[missing[0]].path),
            hint="name them: --answers FILE",
        )
    found = read_answers(named)
    present = set(found.hashes.values())
    for digest, file in expected.items():
        if digest not in present:
            raise FledgeError(
                f"{' and '.join(named)}: not the version of the answers that was rated", where=str(file.path),
                hint="name the file that was rated with --answers, or rank these answers again",
            )  # fmt: skip
    for file in files:
        for rating in file.ratings:
            _check_known(rating, found, file)
    return found


def _check_known(rating: Rating, answers: AnswerSet, file: RatingsFile) -> None:
    prompt, *identities = rating.pair
    asked = answers.prompts.get(prompt)
    if asked is None:
        raise FledgeError(f"it rates answers to an unknown prompt, {prompt}", where=str(file.path), hint=UNKNOWN)
    for identity in identities:
        if asked.answer(identity) is None:
            raise FledgeError(f"it rates an unknown answer, {identity}", where=str(file.path), hint=UNKNOWN)
