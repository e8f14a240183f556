"""`fledge prefer rank`: a rater compares the answers to each prompt. What a rater can be stands in one table.

A rater is imported when it is built: a person need not wait for torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fledge.errors import FledgeError
from fledge.prefer.answers import AnswerSet, read_answers
from fledge.prefer.journal import JournalWriter
from fledge.prefer.person import PER_PROMPT, REPEAT, Person
from fledge.prefer.ratings import RATINGS, RaterName, header_of
from fledge.run import Console


class Rater(Protocol):
    """What rates the answers. `settings`: JSON values that decide its ratings, beside the answers."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the ratings."""
        ...

    def planned(self, answers: AnswerSet) -> int:
        """How many lines the file has when all is rated. Raises FledgeError if there is nothing to rate."""
        ...

    def rate(self, answers: AnswerSet, writer: JournalWriter, console: Console) -> list[str]:
        """Add the ratings that are missing to a file that may have some; returns a summary in lines."""
        ...


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """What the raters are made of; each takes what it needs. `rater`: its name. `comparisons`: of each prompt, at most; None:
    the rater's default. `repeat`: share of a person's comparisons that come twice; None: the default."""

    rater: str
    rules: tuple[str, ...] = ()
    timeout: float = 60.0
    model: str | None = None
    question: str | None = None
    comparisons: int | None = None
    repeat: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class RaterKind:
    """A kind of rater: how it is built, the options that it takes beside its name, and whether it is a person, whose pairs
    count as human."""

    build: Callable[[RankOptions, Console], Rater]
    options: tuple[str, ...]
    is_human: bool = False


def _rules(options: RankOptions, console: Console) -> Rater:
    from fledge.prefer.scored import rules_rater

    return rules_rater(options.rules, options.timeout)


def _judge(options: RankOptions, console: Console) -> Rater:
    from fledge.prefer.judge import build_judge

    if options.model is None:
        raise FledgeError("name the model that judges", where="--model", hint="a run, a model directory or a GGUF file")
    return build_judge(options.model, options.question, options.comparisons, options.seed, console)


def _reward_model(options: RankOptions, console: Console) -> Rater:
    from fledge.prefer.by_model import reward_model_rater

    if options.model is None:
        raise FledgeError("name the reward model that scores", where="--model", hint="a stage of kind reward, or its directory")
    return reward_model_rater(options.model, console.log)


def _person(options: RankOptions, console: Console) -> Rater:
    per_prompt = PER_PROMPT if options.comparisons is None else options.comparisons
    repeat = REPEAT if options.repeat is None else options.repeat
    return Person(rater=options.rater, per_prompt=per_prompt, repeat=repeat, seed=options.seed)


RATERS: dict[str, RaterKind] = {
    "rules": RaterKind(_rules, ("rules", "timeout")),
    "judge": RaterKind(_judge, ("model", "question", "comparisons", "seed")),
    "reward-model": RaterKind(_reward_model, ("model",)),
    "person": RaterKind(_person, ("comparisons", "repeat", "seed"), is_human=True),
}


def rank(answers: Sequence[str], by: str, out: str, options: RankOptions, console: Console) -> list[str]:
    """Rate the answers of files and write the ratings to `out`; an interrupted call goes on. Returns a summary in lines.

    Raises FledgeError for answers that cannot be read, options that this rater does not take, and an `out` of another rater,
    other answers or other settings."""
    kind = RATERS[by]
    _check_options(options, by)
    found = read_answers(answers)
    rater = kind.build(options, console)
    path = Path(out).expanduser()
    header = header_of(RaterName(options.rater, by, kind.is_human), rater.settings, found, path, rater.planned(found))
    with JournalWriter.open(path, RATINGS, header, console.log) as writer:
        return rater.rate(found, writer, console)


def _check_options(options: RankOptions, by: str) -> None:
    """FledgeError for an option of another rater, or one out of bounds."""
    if not options.rater.strip() or set(options.rater) & set(",="):
        raise FledgeError(
            f"'{options.rater}' is no name: --min-margin has names with = and , behind them", where="--rater",
            hint="write a word, such as anna",
        )  # fmt: skip
    plain = RankOptions(rater=options.rater)
    for name in OPTION_NAMES:
        if getattr(options, name) != getattr(plain, name) and name not in RATERS[by].options:
            owners = " and ".join(kind for kind, rater in RATERS.items() if name in rater.options)
            raise FledgeError(f"this belongs to --by {owners}", where=OPTION_NAMES[name], hint="leave it out")
    if options.comparisons is not None and options.comparisons < 1:
        raise FledgeError(f"must be 1 or more, not {options.comparisons}", where="--comparisons")
    if options.repeat is not None and not 0 <= options.repeat <= 1:
        raise FledgeError(f"must be between 0 and 1, not {options.repeat:g}", where="--repeat")
    if not options.timeout > 0:
        raise FledgeError(f"must be above 0, not {options.timeout:g}", where="--timeout")


OPTION_NAMES = {
    "rules": "--rule", "timeout": "--timeout", "model": "--model", "question": "--question", "comparisons": "--comparisons",
    "repeat": "--repeat", "seed": "--seed",
}  # fmt: skip
