"""From ratings to pairs: which of two answers is preferred, by whom, and which pairs of a prompt are kept. What makes no pair
is counted with its reason."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fledge.data.parsing.items import PreferencePair
from fledge.data.parsing.left_out import Counts
from fledge.data.parsing.prompts import Prompt, prompt_columns
from fledge.data.parsing.rows import Parsed, parse_preference_pair, read_row
from fledge.errors import FledgeError
from fledge.prefer.answers import Answer, AnswerSet, PromptAnswers, answer_id, fraction_of, prompt_id, question_id
from fledge.prefer.prompts import Told, parsed_row, rows_of
from fledge.prefer.ratings import Pair, Rating, RatingsFile
from fledge.recipe import Source
from fledge.run import Log

HUMAN, MODEL = "human", "model"  # who prefers: a person, or a rule or model
TIE_REASONS = {
    "tie": "a tie", "both_bad": "both answers are bad", "skip": "skipped", "inconsistent": "inconsistent in the two orders",
    "too_long": "too long for the judge", "no_reference": "no reference answer for the judge",
}  # fmt: skip
BELOW, DISAGREE, CUT, EMPTY = "margin below the minimum", "raters disagree", "the chosen answer is cut", "an answer is empty"
BEYOND, MIXED, EQUAL_PAIR = "beyond the pairs of a prompt", "left out by the mix", "an equal pair is there already"


@dataclass(frozen=True, kw_only=True)
class Triple:
    """A prompt, the chosen and the rejected answer. `source`: who prefers, HUMAN or MODEL. `provenance`: raters, margins, and
    where prompt and answers come from, as JSON values. `strength`: of two pairs of a prompt, the clearer one has more."""

    prompt: Prompt
    chosen: str
    rejected: str
    source: str
    provenance: Mapping[str, Any]
    strength: tuple[float, ...] = ()

    @property
    def prompt_id(self) -> str:
        """The hash of the prompt."""
        return prompt_id(self.prompt)

    @property
    def question_id(self) -> str:
        """The hash of the prompt without its system turn and without white space around its turns: rows that ask the same."""
        return question_id(self.prompt)

    @property
    def system(self) -> str:
        """The system prompt; "" without one."""
        return next((turn.content for turn in self.prompt.turns if turn.role == "system"), "")

    def order(self, seed: int, what: str) -> float:
        """A number in [0, 1) for choosing among pairs."""
        return fraction_of(seed, what, self.prompt_id, answer_id(self.chosen), answer_id(self.rejected))

    def row(self) -> dict[str, Any]:
        """The row that a preference stage reads."""
        columns = prompt_columns(self.prompt.turns, self.prompt.tools)
        answers = {"chosen": [_turn(self.chosen)], "rejected": [_turn(self.rejected)]}
        return {**columns, **answers, "source": self.source, "provenance": dict(self.provenance)}


def _turn(text: str) -> dict[str, str]:
    """An answer as a turn. As a text alone, one that looks like JSON or Python would be read as what it says."""
    return {"role": "assistant", "content": text}


@dataclass
class Gathered:
    """Pairs, and how many made none, by reason."""

    triples: list[Triple]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Which pairs are kept: at most `per_prompt` of a prompt (None: all), whose margin is at least `min_margin` (by rater; ""
    is every rater with margins). `keep_cut`: also where the chosen answer was cut before its end. `seed`: of every choice."""

    per_prompt: int | None = 1
    min_margin: Mapping[str, float] = field(default_factory=dict)
    keep_cut: bool = False
    seed: int = 0

    def minimum(self, rater: str) -> float:
        """The smallest margin of a rater that counts."""
        return self.min_margin.get(rater, self.min_margin.get("", 0.0))


# -- of ratings --------------------------------------------------------------------------------------------------------


def rated_pairs(files: Sequence[RatingsFile], answers: AnswerSet, settings: PairSettings) -> Gathered:
    """The pairs on which the raters agree: of each two answers the one that more raters prefer. Where a person has compared
    them, only people are heard, also if they find both equal.

    A rater without a verdict, or below the smallest margin, does not vote; equal votes make no pair."""
    by_pair: dict[Pair, list[tuple[RatingsFile, Rating]]] = defaultdict(list)
    for file in files:
        for pair, rating in file.first_ratings().items():
            by_pair[pair].append((file, rating))
    largest = _largest_margins(files)
    gathered = Gathered([])
    for pair, ratings in by_pair.items():
        asked = answers.prompts[pair[0]]
        triple = _of_ratings(asked, ratings, settings, largest)
        if isinstance(triple, str):
            gathered.left_out[triple] += 1
        else:
            gathered.triples.append(triple)
    return gathered


def _largest_margins(files: Sequence[RatingsFile]) -> dict[tuple[str, str], float]:
    """The largest margin of each rater at each prompt: margins of different raters have different units."""
    largest: dict[tuple[str, str], float] = {}
    for file in files:
        for rating in file.ratings:
            key = (file.rater, rating.pair[0])
            largest[key] = max(largest.get(key, 0.0), rating.margin or 0.0)
    return largest


def _of_ratings(
    asked: PromptAnswers,
    ratings: Sequence[tuple[RatingsFile, Rating]],
    settings: PairSettings,
    largest: Mapping[tuple[str, str], float],
) -> Triple | str:
    """The pair of two answers that were rated; the reason, if it is none."""
    people = [(file, rating) for file, rating in ratings if file.is_human and rating.is_verdict]
    heard = people or ratings
    decided = [(file, rating) for file, rating in heard if rating.preferred is not None]
    voters = [(file, rating) for file, rating in decided if _is_clear(file, rating, settings)]
    if not voters:
        return BELOW if decided else _reason([rating for _, rating in heard])
    votes = Counter(rating.preferred for _, rating in voters)
    (winner, most), *others = votes.most_common()
    if others and others[0][1] == most:
        return DISAGREE
    chosen = asked.answer(str(winner))
    rejected = asked.answer(next(one for one in voters[0][1].pair[1:] if one != winner))
    assert chosen is not None and rejected is not None  # `rated_answers` has checked that
    if problem := _unusable(chosen, rejected, settings):
        return problem
    agreeing = [(file, rating) for file, rating in voters if rating.preferred == winner]
    margins = {file.rater: rating.margin for file, rating in agreeing if rating.margin is not None}
    relative = [margin / largest[rater, asked.id] for rater, margin in margins.items() if largest[rater, asked.id]]
    return Triple(
        prompt=asked.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        source=HUMAN if people else MODEL,
        provenance={
            "where": asked.where,
            "raters": [file.rater for file, _ in agreeing],
            "against": [file.rater for file, rating in voters if rating.preferred != winner],
            "margins": {rater: round(margin, 6) for rater, margin in margins.items()},
            "chosen": _origin(chosen),
            "rejected": _origin(rejected),
        },
        strength=(2 * most - len(voters), sum(relative) / len(relative) if relative else 1.0),
    )


def _is_clear(file: RatingsFile, rating: Rating, settings: PairSettings) -> bool:
    return rating.margin is None or rating.margin >= settings.minimum(file.rater)


def _reason(ratings: Sequence[Rating]) -> str:
    """Why no rater prefers one of two answers."""
    verdicts = [rating.verdict for rating in ratings]
    return next(reason for verdict, reason in TIE_REASONS.items() if verdict in verdicts)


def _unusable(chosen: Answer, rejected: Answer, settings: PairSettings) -> str | None:
    if not chosen.text or not rejected.text:
        return EMPTY
    return CUT if chosen.is_cut and not settings.keep_cut else None


def _origin(answer: Answer) -> dict[str, Any]:
    draws = [
        {"model": draw.model, "weights": draw.weights, "temperature": draw.temperature, "place": draw.place}
        for draw in answer.draws
    ]
    return {"finish_reason": answer.finish_reason, "draws": draws}


# -- of files of pairs -------------------------------------------------------------------------------------------------


def pairs_of_people(paths: Sequence[str], log: Log) -> list[Triple]:
    """The pairs in files of rows, as a preference stage reads them, as pairs of people. Rows that are none are told with their
    reasons, and so are events of rows and columns that nothing reads. Raises FledgeError for a file without a pair."""
    triples: list[Triple] = []
    for path in paths:
        source, left_out, told, before = Source(path=path), Counts(), Told(), len(triples)
        for record, where in rows_of(source, path, log):
            parsed = parsed_row(record, where, partial(read_row, source=source, parser=parse_preference_pair), left_out, told)
            if parsed is not None:
                triples.append(_of_row(parsed, where))
        if len(triples) == before:
            problems = "; ".join(left_out.lines()) or "it holds no rows"
            raise FledgeError(f"there is no pair in it: {problems}", where=path, hint="a row has a prompt, chosen and rejected")
        for problem in left_out.lines():
            log(f"no pair: {problem}")
        told.tell(log)
    return triples


def _of_row(parsed: Parsed, where: str) -> Triple:
    pair = parsed.item
    assert isinstance(pair, PreferencePair)
    chosen, rejected = (ending.full_content for ending in pair.endings)
    return Triple(
        prompt=Prompt(pair.prompt, pair.tools),
        chosen=chosen,
        rejected=rejected,
        source=HUMAN,
        provenance={"where": where, "raters": [], "against": [], "margins": {}},
    )


# -- choosing ----------------------------------------------------------------------------------------------------------


def clearest(gathered: Gathered, settings: PairSettings) -> Gathered:
    """At most `per_prompt` pairs of each prompt, those that are preferred most clearly."""
    by_prompt: dict[str, list[Triple]] = defaultdict(list)
    for triple in gathered.triples:
        by_prompt[triple.prompt_id].append(triple)
    kept = []
    for triples in by_prompt.values():
        ordered = sorted(triples, key=lambda one: (*(-value for value in one.strength), one.order(settings.seed, "clear")))
        kept += ordered[: settings.per_prompt]
        gathered.left_out[BEYOND] += len(ordered) - len(ordered[: settings.per_prompt])
    return Gathered(kept, +gathered.left_out)


def without_equal_pairs(gathered: Gathered) -> Gathered:
    """Each pair once; where a pair of a person names the other answer, that one stays. A prompt without a system turn equals
    the one with any; two different system prompts may prefer different answers."""
    seen: dict[tuple[str, frozenset[str]], set[str]] = defaultdict(set)  # to the system prompts that are there
    kept = []
    for triple in sorted(gathered.triples, key=lambda one: one.source != HUMAN):
        systems = seen[triple.question_id, frozenset((triple.chosen, triple.rejected))]
        if systems & {triple.system, ""} or (systems and not triple.system):
            gathered.left_out[EQUAL_PAIR] += 1
            continue
        systems.add(triple.system)
        kept.append(triple)
    return Gathered(kept, gathered.left_out)


def mixed(gathered: Gathered, shares: Mapping[str, float], seed: int) -> Gathered:
    """As many pairs as there can be with these shares of HUMAN and MODEL. Raises FledgeError if one of them has no pairs."""
    groups = {source: [one for one in gathered.triples if one.source == source] for source in shares}
    for source, triples in groups.items():
        if not triples:
            way = "rank by a person, or add pairs with --human FILE" if source == HUMAN else "rank by rules or by a judge"
            raise FledgeError(f"there are no pairs of kind '{source}' to mix", where="--mix", hint=way)
    total = min(len(triples) / shares[source] for source, triples in groups.items())
    kept: list[Triple] = []
    for source, triples in groups.items():
        count = min(len(triples), max(1, round(shares[source] * total)))
        kept += sorted(triples, key=lambda one: one.order(seed, "mix"))[:count]
    gathered.left_out[MIXED] += len(gathered.triples) - len(kept)
    return Gathered(kept, +gathered.left_out)


def split(triples: Iterable[Triple], share: float, seed: int) -> tuple[list[Triple], list[Triple]]:
    """Training and validation pairs, in the order of their prompts: a share of the prompts, with all of their pairs, validates.
    Prompts that differ only in their system turn stay on one side. Raises FledgeError if one side has no prompt."""
    everything = list(triples)
    prompts = sorted({one.question_id for one in everything}, key=lambda prompt: fraction_of(seed, "validation", prompt))
    count = max(1, round(share * len(prompts))) if share else 0
    if count >= len(prompts):
        raise FledgeError(
            f"{len(prompts):,} prompts are too few to hold {share:.0%} of them out", where="--validation", hint="write 0"
        )
    held_out = set(prompts[:count])
    training = [one for one in everything if one.question_id not in held_out]
    return training, [one for one in everything if one.question_id in held_out]
