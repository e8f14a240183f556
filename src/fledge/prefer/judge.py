"""A language model as the judge of two answers.

The judge is asked which of two answers, A or B, is better, once in each order. Its verdict is not a text but the
log-probabilities of the tokens for A and B, so that no answer has to be parsed and none is "neither". A verdict counts only if
both orders name the same answer: otherwise the judge looked at the place and not at the text (Zheng et al. 2023, §3.4)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fledge.errors import FledgeError
from fledge.evaluate.intervals import Z95, wilson_interval
from fledge.generation import SwitchableEngine, load_engine
from fledge.generation.scoring import next_token_logps
from fledge.model.locate import locate_model
from fledge.prefer.answers import AnswerSet
from fledge.prefer.comparisons import Comparison, plan_comparisons
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.prompts import shown_turns
from fledge.prefer.ratings import Verdict
from fledge.prefer.sampling import model_weights, require_template
from fledge.run import Console
from fledge.run.input_files import check_input_file
from fledge.tokenizer import Message, Tokenizer

CHUNK_COMPARISONS = 64  # that are judged and written together
NAMES = ("A", "B")
FEW = 0.5  # of the judge's probability on A and B together: below, it answers something else
BIASED = 0.25  # share of comparisons in which both orders name the same place
QUESTION = """\
Two assistants have answered the same conversation. Which answer is better: correct, helpful and clear?
Neither its length nor its place makes an answer better.

[Conversation]
{conversation}

[Answer A]
{a}

[Answer B]
{b}

[Question]
Which answer is better, A or B? Say one letter."""
PLACES = re.compile(r"\{(conversation|a|b|reference)\}")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A rater that compares all pairs of answers, each in both orders. `verdict_tokens`: the ids for A and for B."""

    loaded: SwitchableEngine
    question: str
    verdict_tokens: tuple[tuple[int, ...], tuple[int, ...]]
    per_prompt: int | None
    seed: int
    settings: dict[str, object]

    def planned(self, answers: AnswerSet) -> int:
        """A line for each comparison."""
        return len(self._plan(answers))

    def _plan(self, answers: AnswerSet) -> list[Comparison]:
        return plan_comparisons(list(answers.prompts.values()), self.per_prompt, self.seed)

    def rate(self, answers: AnswerSet, writer: JournalWriter, console: Console) -> list[str]:
        """Write a line for each comparison; returns a summary in lines."""
        planned = self._plan(answers)
        done = writer.keep_chunks(CHUNK_COMPARISONS, len(planned))
        with console.progress("comparisons judged", len(planned), done) as progress:
            for start in range(done, len(planned), CHUNK_COMPARISONS):
                writer.append(self.lines(planned[start : start + CHUNK_COMPARISONS]))
                progress.update(len(writer.lines))
        return summary(writer.lines)

    def lines(self, comparisons: Sequence[Comparison]) -> list[Line]:
        """The lines of some comparisons, which are judged together."""
        tokenizer, room = self.loaded.tokenizer, self.loaded.model.max_positions
        prompts: list[list[int]] = []
        obstacles: list[Verdict | None] = []
        for comparison in comparisons:
            both = [self._prompt(tokenizer, one) for one in (comparison, comparison.swapped)]
            obstacle = self._obstacle(comparison, max(map(len, both)), room)
            obstacles.append(obstacle)
            prompts += [] if obstacle else both
        tokens = [*self.verdict_tokens[0], *self.verdict_tokens[1]]
        logps = next_token_logps(self.loaded.model, prompts, tokens).double().numpy()
        of_a, of_b = (np.logaddexp.reduce(part, axis=1) for part in np.split(logps, [len(self.verdict_tokens[0])], axis=1))
        odds, mass = iter((of_a - of_b).reshape(-1, 2).tolist()), iter(np.logaddexp(of_a, of_b).reshape(-1, 2).tolist())
        return [
            _line(comparison, obstacle, [] if obstacle else next(odds), [] if obstacle else next(mass))
            for comparison, obstacle in zip(comparisons, obstacles, strict=True)
        ]

    def _obstacle(self, comparison: Comparison, length: int, room: int) -> Verdict | None:
        if "{reference}" in self.question and comparison.asked.prompt.reference is None:
            return "no_reference"
        return "too_long" if length > room else None

    def _prompt(self, tokenizer: Tokenizer, comparison: Comparison) -> list[int]:
        values = {
            "conversation": "\n".join(f"{who}: {text}" for who, text in shown_turns(comparison.asked.prompt)),
            "a": comparison.first.text,
            "b": comparison.second.text,
            "reference": comparison.asked.prompt.reference or "",
        }
        return tokenizer.encode_prompt([Message("user", PLACES.sub(lambda found: values[found[1]], self.question))])


def _line(comparison: Comparison, obstacle: Verdict | None, odds: Sequence[float], mass: Sequence[float]) -> Line:
    line: Line = {"prompt": comparison.asked.id, "first": comparison.first.id, "second": comparison.second.id}
    if obstacle:
        return {**line, "verdict": obstacle}
    return {
        **line,
        "verdict": verdict_of(*odds),
        "log_odds": [round(value, 6) for value in odds],
        "mass": [round(float(np.exp(value)), 6) for value in mass],
    }


def verdict_of(first_order: float, second_order: float) -> Verdict:
    """The verdict from the log-odds of A against B, in nats, in both orders: in the first order A is the first answer, in the
    second order it is the second one."""
    if first_order > 0 > second_order:
        return "first"
    return "second" if first_order < 0 < second_order else "inconsistent"


def build_judge(model: str, question_file: str | None, per_prompt: int | None, seed: int, console: Console) -> Judge:
    """The judge of a run, stage, checkpoint, model directory or GGUF file. `question_file`: its question in other words.

    Raises FledgeError for a model that is not there, has no chat template, is an encoder–decoder, or has no token for A or B;
    and for a question without the places of both answers."""
    question = QUESTION if question_file is None else _read_question(question_file)
    folder = locate_model(model, console.log)
    loaded = load_engine(folder, console.log)
    require_template(loaded, model)
    if loaded.model.decoder_start is not None:
        raise FledgeError("an encoder–decoder is no judge here", where=model, hint="name a decoder, such as a chat model")
    tokens = verdict_tokens(loaded.tokenizer, model)
    settings = {
        "weights": model_weights(folder, []),
        "tokenizer": loaded.tokenizer.fingerprint(),
        "question": question,
        "comparisons": per_prompt,
        "seed": seed,
    }
    return Judge(loaded=loaded, question=question, verdict_tokens=tokens, per_prompt=per_prompt, seed=seed, settings=settings)


def _read_question(path: str) -> str:
    file = Path(path).expanduser()
    check_input_file(file)
    try:
        text = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise FledgeError("this is no UTF-8 text", where=path) from None
    missing = [name for name in ("{conversation}", "{a}", "{b}") if name not in text]
    if missing:
        raise FledgeError(f"the question has no {' and no '.join(missing)}", where=path,
                          hint="write where they belong: {conversation}, {a} and {b}")  # fmt: skip
    return text


def verdict_tokens(tokenizer: Tokenizer, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens with which an answer can begin that says A, and those for B: the letter alone, and behind a blank. Raises
    FledgeError if a letter has none."""
    found = []
    for name in NAMES:
        first = dict.fromkeys(tokenizer.encode(text)[0] for text in (name, f" {name}"))
        found.append(tuple(token for token in first if tokenizer.decode([token]).strip() == name))
    if not all(found):
        raise FledgeError("the tokenizer of this judge has no token for A or B", where=where, hint="name another judge")
    return found[0], found[1]


# -- what a judge is worth ---------------------------------------------------------------------------------------------


def summary(lines: Sequence[Line]) -> list[str]:
    """How consistent the judge was, how far it prefers a place, and how much of its probability the verdicts have."""
    counts = {name: sum(line["verdict"] == name for line in lines) for name in ("too_long", "no_reference")}
    judged = [line for line in lines if "log_odds" in line]
    words = {"too_long": "are too long for the judge", "no_reference": "have no reference answer, which the question asks for"}
    told = [f"{count:,} comparisons {words[name]}" for name, count in counts.items() if count]
    if not judged:
        return [*told, "no comparison was judged"]
    odds = np.array([line["log_odds"] for line in judged])
    consistent = sum(line["verdict"] != "inconsistent" for line in judged)
    n = len(judged)
    low, high = wilson_interval(consistent, n)
    always = [(f"always {name}", int((sign * odds > 0).all(axis=1).sum())) for name, sign in zip(NAMES, (1, -1), strict=True)]
    lean = odds.sum(axis=1) / 2
    half = Z95 * float(lean.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    mass = float(np.mean([line["mass"] for line in judged]))
    told.append(
        f"{n:,} comparisons judged in both orders; {consistent / n:.1%} [{low:.1%}, {high:.1%}] are consistent and count"
    )
    told.append(
        f"position bias: {', '.join(f'{name} in {count / n:.1%}' for name, count in always)}; "
        f"{lean.mean():+.2f} ± {half:.2f} nats towards A"
    )
    if max(count for _, count in always) > BIASED * n:
        told.append("warning: this judge often names the place and not the answer; its verdicts are few and may be by chance")
    told.append(f"A and B have {mass:.1%} of the judge's probability")
    if mass < FEW:
        told.append("warning: this judge would mostly say something else than A or B; ask it otherwise, or take another one")
    return told
