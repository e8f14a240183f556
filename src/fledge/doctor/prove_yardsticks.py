"""What runs are judged by: the doctor's own figures of held-out documents, measured on the model that a run ends with.

The validation loss of the trainer cannot judge where its loss or its targets are in doubt. So answers are found here by the
chat template and not by the stored loss weights, and pairs are compared with the model that the stage started from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fledge.data import FORMATS, PackedDataset
from fledge.doctor.prove_effect import Scale
from fledge.errors import FledgeError
from fledge.evaluate.evenly import evenly
from fledge.evaluate.metrics import Answer, measure_answers
from fledge.evaluate.training_targets import answer_header, answer_spans
from fledge.generation import Completion, Engine, SamplingParams
from fledge.generation.reward_model import load_reward_model
from fledge.generation.scoring import score_tokens
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.recipe import Recipe, Stage
from fledge.run import StageDirectory
from fledge.run.directory import resolve_model_path
from fledge.run.events import read_events
from fledge.tokenizer import Tokenizer

DOCUMENTS = 96  # held-out documents that are read, at most
QUESTIONS = 48  # of which a model answers
NEW_TOKENS = 64  # of an answer, at most
BETA = 0.1  # of the preference loss that judges, whatever the stage's own
LEAST = -1e4  # log-probability that stands for one that is no number
SLOWEST = 1e6  # microseconds a token that stand for a run without a model: means and spreads need a number
Values = dict[str, float]


@dataclass(kw_only=True)
class HeldOut:
    """The documents that both runs of a pair are read on. `examples`: numbers of the documents in `data`, by their names.
    `start`: the model directory that the stage starts from; None: new weights. `find_earlier`: finds the documents of the stage
    before, or None without one; called once, when a figure asks for them."""

    recipe: Recipe
    stage: Stage
    tokenizer: Tokenizer
    data: PackedDataset
    examples: dict[str, int]
    start: Path | None
    find_earlier: "Callable[[], HeldOut | None]" = lambda: None
    _logps: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    @property
    def ignorance(self) -> float:
        """The loss of a model that knows nothing, ln V in nats a token: a worse one is of no less use."""
        return math.log(self.tokenizer.vocab_size)

    @cached_property
    def earlier(self) -> "HeldOut":
        """The documents of the stage before. Raises FledgeError if there is none, or if they are too few."""
        found = self.find_earlier()
        if found is None:
            raise FledgeError("there is no earlier stage with validation data, whose documents could be forgotten",
                              where="stages", hint="judge by another figure")  # fmt: skip
        return found

    def sequences(self) -> dict[str, list[tuple[list[int], list[bool]]]]:
        """The tokens of the sequences of each document, cut to the context, and which of them belong to an answer."""
        header = answer_header(self.tokenizer) if FORMATS[self.stage.kind].has_loss_weights else []
        count, limit = self.data.examples.sequences_per_example, self.stage.data.max_seq_len + 1
        found: dict[str, list[tuple[list[int], list[bool]]]] = {}
        for name, number in self.examples.items():
            found[name] = []
            for index in range(count):
                tokens, weights = self.data.examples.sequence(number * count + index)
                marks = [False] * len(tokens)
                spans = list(answer_spans(tokens, header, self.tokenizer.stop_ids)) if header else []
                for span in spans[-1:] if count > 1 else spans:
                    marks[span.start : span.stop] = [True] * (span.stop - span.start)
                if not spans:  # no template shows where answers are: the stored targets
                    marks = (weights > 0).tolist()
                found[name].append((tokens[:limit].tolist(), [False, *marks[1:limit]]))
        return found


@dataclass(kw_only=True)
class Subject:
    """A run that has ended, and what it is read on. `directory`: of its stage."""

    directory: StageDirectory
    held_out: HeldOut

    @cached_property
    def model(self) -> LanguageModel:
        """The model that the run ends with."""
        return _loaded(resolve_model_path(str(self.directory.root)), self.held_out)

    @cached_property
    def logps(self) -> list[tuple[float, int]]:
        """Σ log p of the answer's tokens, and their number, of each sequence of each document."""
        return _answer_logps(self.model, self.held_out)

    @cached_property
    def answers(self) -> list[tuple[str, Completion, str]]:
        """Name, greedy answer and prompt's text of each document that is a question."""
        return _generated(self.model, self.held_out)


def _loaded(folder: Path, held_out: HeldOut) -> LanguageModel:
    return load_model(folder, held_out.recipe.model.implementation, quantization=held_out.stage.quantization, finite=False)


def _answer_logps(model: LanguageModel, held_out: HeldOut) -> list[tuple[float, int]]:
    flat = [one for of_document in held_out.sequences().values() for one in of_document]
    longest = model.max_positions + 1
    scores = score_tokens(model, [tokens[:longest] for tokens, _ in flat])
    result = []
    for (_, marks), of_tokens in zip(flat, scores, strict=True):
        chosen = [value for value, marked in zip(of_tokens, marks[1:], strict=False) if marked]
        total = sum(value if math.isfinite(value) else LEAST for value in chosen)
        result.append((total, len(chosen)))
    return result


def _token_losses(subject: Subject) -> Values:
    """The mean loss of the answer's tokens of each document, of pairs that of the first answer; at most that of ignorance."""
    count, most = subject.held_out.data.examples.sequences_per_example, subject.held_out.ignorance
    firsts = zip(subject.held_out.examples, subject.logps[::count], strict=True)
    return {name: min(most, -total / tokens) for name, (total, tokens) in firsts if tokens}


def _earlier_losses(subject: Subject) -> Values:
    """The losses of documents of the stage before, which this one may make the model forget."""
    return _token_losses(Subject(directory=subject.directory, held_out=subject.held_out.earlier))


# -- pairs ---------------------------------------------------------------------------------------------------------------


def _start_logps(held_out: HeldOut) -> list[tuple[float, int]]:
    """The same sums under the model that the stage starts from, computed once; zeros without one."""
    if held_out.start is None:
        return [(0.0, 1)] * (len(held_out.examples) * held_out.data.examples.sequences_per_example)
    key = str(held_out.start)
    if key not in held_out._logps:
        held_out._logps[key] = _answer_logps(_loaded(held_out.start, held_out), held_out)
    return held_out._logps[key]


def _margins(subject: Subject) -> Values:
    """By how many nats each pair's first answer was raised over the second since the start; of a labelled answer, by how many
    it was raised, or lowered where it is undesirable."""
    held_out, examples = subject.held_out, subject.held_out.data.examples
    raised = [now - before for (now, _), (before, _) in zip(subject.logps, _start_logps(held_out), strict=True)]
    firsts = dict(zip(held_out.examples, raised[:: examples.sequences_per_example], strict=True))
    if (labels := examples.labels) is not None:
        return {name: value if labels[held_out.examples[name]] else -value for name, value in firsts.items()}
    if examples.sequences_per_example == 1:
        return firsts
    return {name: value - raised[2 * n + 1] for n, (name, value) in enumerate(firsts.items())}


def _softplus(value: float) -> float:
    """ln(1 + e^value)."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _pair_accuracy(subject: Subject) -> Values:
    return {name: float(margin > 0) for name, margin in _margins(subject).items()}


def _preference_loss(subject: Subject) -> Values:
    """−log σ(0.1 · margin) plus the loss of the wanted answer, nats a token (Pang et al. 2024, with α = 1): it rises where
    pairs are not told apart, and where what is wanted becomes unlikely."""
    losses, labels = _token_losses(subject), subject.held_out.data.examples.labels
    wanted = {name for name, number in subject.held_out.examples.items() if labels is None or labels[number]}
    return {
        name: _softplus(-BETA * margin) + (losses[name] if name in wanted else 0.0)
        for name, margin in _margins(subject).items()
        if name in losses
    }


def _reward_loss(subject: Subject) -> Values:
    """−log σ(r(chosen) − r(rejected)) of each pair under a reward model."""
    judge = load_reward_model(resolve_model_path(str(subject.directory.root)))
    sequences = [tokens for pair in subject.held_out.sequences().values() for tokens, _ in pair]
    rewards = judge.score_tokens(sequences)
    return {name: _softplus(rewards[2 * n + 1] - rewards[2 * n]) for n, name in enumerate(subject.held_out.examples)}


# -- answers -------------------------------------------------------------------------------------------------------------


def _generated(model: LanguageModel, held_out: HeldOut) -> list[tuple[str, Completion, str]]:
    """Greedy answers to the prompts of documents, up to the last answer of each."""
    prompts: dict[str, list[int]] = {}
    room = model.max_positions - 1
    for name, of_document in held_out.sequences().items():
        tokens, marks = of_document[0]
        starts = [n for n in range(1, len(marks)) if marks[n] and not marks[n - 1]]
        if starts and starts[-1] < room:
            prompts[name] = tokens[: starts[-1]]
    names = [list(prompts)[n] for n in evenly(len(prompts), QUESTIONS)] if prompts else []
    if not names:
        raise FledgeError("no held-out document has a prompt and an answer to be asked", where="data.validation",
                          hint="judge by another figure")  # fmt: skip
    engine = Engine(model, held_out.tokenizer.stop_ids)
    completions = engine.generate([prompts[name] for name in names], SamplingParams(max_new_tokens=NEW_TOKENS))
    texts = [held_out.tokenizer.decode(prompts[name], skip_special=True) for name in names]
    return list(zip(names, completions, texts, strict=True))


def _ended(subject: Subject) -> Values:
    return {name: float(completion.finish_reason == "stop") for name, completion, _ in subject.answers}


def _of_answers(metric: str) -> Callable[[Subject], Values]:
    def measure(subject: Subject) -> Values:
        decode = subject.held_out.tokenizer.decode
        answers = [
            Answer(prompt=text, given=decode(one.tokens, skip_special=True), expected=None, finish_reason=one.finish_reason)
            for _, one, text in subject.answers
        ]
        values = measure_answers((metric,), answers)
        return {name: one[metric] for (name, _, _), one in zip(subject.answers, values, strict=True) if metric in one}

    return measure


# -- the run -------------------------------------------------------------------------------------------------------------


def _own_metric(metric: str) -> Callable[[Subject], Values]:
    """One figure of the trainer's own validation after the stage."""

    def measure(subject: Subject) -> Values:
        found = subject.directory.metrics("after")
        if metric not in found:
            raise FledgeError(f"the metric '{metric}' was not measured", where=str(subject.directory.root))
        return {"run": float(found[metric])}

    return measure


def _seconds_per_token(subject: Subject) -> Values:
    """Microseconds of training for each token, from the speed of each update, without the first tenth of them. Raises
    FledgeError if the run wrote none."""
    rates = [
        float(event["system/step_tokens_per_second"])
        for event in read_events(subject.directory.events)
        if event["kind"] == "system" and event.get("system/step_tokens_per_second")
    ]
    rates = rates[len(rates) // 10 :]
    if not rates:
        raise FledgeError("the run wrote no event with its speed", where=str(subject.directory.events),
                          hint="judge by another figure")  # fmt: skip
    return {"run": 1e6 * sum(1 / rate for rate in rates) / len(rates)}


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A figure that runs are judged by. `worst`: its value for a run that ended without a model, a finite number, where no
    other run is worse. `read`: the documents that it reads; raises FledgeError where these are not there."""

    scale: Scale
    measure: Callable[[Subject], Values]
    worst: Callable[[HeldOut], float]
    read: Callable[[HeldOut], HeldOut] = lambda held_out: held_out

    def of_failed(self, held_out: HeldOut) -> Values:
        """The figures of a run that ended without a model: the worst for each document, and for the run."""
        return dict.fromkeys([*self.read(held_out).examples, "run"], self.worst(held_out))


def _yardstick(
    name: str, label: str, measure: Callable[[Subject], Values], worst: Callable[[HeldOut], float] | float, **scale: object
) -> Yardstick:
    settings = {"unit": "", "higher_is_better": False, "useful": 0.01, **scale}
    at_worst = worst if callable(worst) else (lambda _: worst)
    return Yardstick(scale=Scale(name=name, label=label, **settings), measure=measure, worst=at_worst)  # type: ignore[arg-type]


def _ignorance(held_out: HeldOut) -> float:
    return held_out.ignorance


def _earlier(held_out: HeldOut) -> HeldOut:
    return held_out.earlier


RATE = {"is_rate": True, "relative": False, "useful": 0.05}
YARDSTICKS = {
    one.scale.name: one
    for one in (
        _yardstick("loss", "loss of held-out documents", _token_losses, _ignorance, unit="nats/token"),
        _yardstick("answer_loss", "loss of held-out answers", _token_losses, _ignorance, unit="nats/token"),
        _yardstick("chosen_loss", "loss of wanted answers", _token_losses, _ignorance, unit="nats/token"),
        replace(_yardstick("earlier_loss", "loss of documents of the stage before", _earlier_losses, _ignorance,
                           unit="nats/token"), read=_earlier),
        _yardstick("preference_loss", "loss of held-out preferences and of the wanted answers", _preference_loss,
                   lambda held_out: math.log(2) + held_out.ignorance, unit="nats"),
        _yardstick("pair_accuracy", "share of held-out preferences that were learned", _pair_accuracy, 0.0,
                   higher_is_better=True, **RATE),
        _yardstick("reward_loss", "loss of held-out pairs", _reward_loss, math.log(2), unit="nats/pair"),
        _yardstick("ended", "share of greedy answers that end themselves", _ended, 0.0, higher_is_better=True, **RATE),
        _yardstick("prompt_copy", "share of greedy answers that repeat their prompt", _of_answers("prompt_copy"), 1.0, **RATE),
        _yardstick("repetition", "repeated 4-grams in greedy answers", _of_answers("repetition"), 1.0, relative=False,
                   useful=0.02),
        _yardstick("reward", "reward of answers", _own_metric("reward"), 0.0, higher_is_better=True, useful=0.02),
        _yardstick("microseconds_per_token", "time of training for each token", _seconds_per_token, SLOWEST, unit="µs",
                   useful=0.05, of_model=False),
    )
}  # fmt: skip

OF_KIND: dict[str, tuple[str, ...]] = {
    "pretrain": ("loss",),
    "sft": ("answer_loss",),
    "preference": ("preference_loss", "pair_accuracy", "chosen_loss"),
    "kto": ("preference_loss", "pair_accuracy"),
    "reward": ("reward_loss",),
    "grpo": ("reward",),
}
"""Kind of stage → the figure that judges, and others that are told beside it."""

OF_CAUSE: dict[str, tuple[str, ...]] = {
    "end token never supervised": ("ended", "answer_loss"),
    "end token missing": ("ended", "answer_loss"),
    "pad token hides the end token": ("ended", "answer_loss"),
    "answers never end": ("ended", "answer_loss"),
    "answers cut by the token limit": ("ended",),
    "answers repeat the prompt": ("prompt_copy", "answer_loss"),
    "answers repeat themselves": ("repetition", "answer_loss"),
    "forgetting": ("earlier_loss",),
    "likelihood displacement": ("chosen_loss", "pair_accuracy"),
    "preferences over-optimised": ("chosen_loss", "pair_accuracy"),
    "waiting for data": ("microseconds_per_token",),
    "updates become slower": ("microseconds_per_token",),
}
"""Name of the finding's cause → figures in place of those of the kind."""


def yardsticks_for(kind: str, *, cause: str = "", named: Sequence[str] = ()) -> list[Yardstick]:
    """The figures for a finding, the one that judges first. `named`: those that a caller asks for. Raises FledgeError for an
    unknown name."""
    names = tuple(named) or OF_CAUSE.get(cause) or OF_KIND[kind]
    unknown = [name for name in names if name not in YARDSTICKS]
    if unknown:
        raise FledgeError(f"there is no figure '{unknown[0]}' to judge by", where="by", hint=f"one of {', '.join(YARDSTICKS)}")
    return [YARDSTICKS[name] for name in names]
