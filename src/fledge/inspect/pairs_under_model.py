"""Pairs of answers under a model, for `fledge data check --with-model`: which of the two it finds likelier, by how much, and
whether the answers are like its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fledge.data.analysis.check_context import CheckContext, TrainingSource, source_finding
from fledge.data.analysis.preference_checks import PAIR
from fledge.data.encoding.examples import prompt_length
from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.generation import Engine, SamplingParams
from fledge.generation.scoring import score_tokens
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.run import Log
from fledge.tokenizer import load_tokenizer

SWAPPED, EASY, OFF_POLICY = "swapped pairs", "easy and hard pairs", "off-policy pairs"
PAIRS, PROMPTS = 256, 32  # of a source that are scored; that the model answers
FAR = 1.0  # nats per token by which a model prefers an answer by far
MANY_SWAPPED, MANY_EASY = 0.1, 0.5  # shares of the pairs
UNLIKE = 1.0  # nats per token by which the chosen answers are less likely than the model's own


@dataclass(frozen=True)
class ScoredPairs:
    """Some pairs of a source under a model: numbers of the examples [n], and the log-probabilities of (chosen, rejected),
    summed [n, 2] and per token [n, 2]. `prompts`: the tokens before the answers."""

    examples: list[int]
    sums: np.ndarray
    means: np.ndarray
    prompts: list[list[int]]


def check_under_model(directory: Path, stage: CheckContext, log: Log) -> dict[str, list[Finding]]:
    """The findings of each check of a stage's pairs under the model in a directory. Raises FledgeError for a stage without
    pairs."""
    if stage.format.sequence_names != PAIR:
        raise FledgeError(
            f"--with-model looks at pairs of answers; stage {stage.statistics.stage} is of kind {stage.plan.kind}",
            where="--with-model",
            hint="name a stage on pairs with --stage",
        )
    if load_tokenizer(directory, needs_template=False).fingerprint() != stage.tokenizer.fingerprint():
        raise FledgeError("this model has another tokenizer or chat template than the data", where=str(directory),
                          hint=f"set tokenizer.path to {directory}")  # fmt: skip
    model = load_model(directory).eval()
    found: dict[str, list[Finding]] = {SWAPPED: [], EASY: [], OFF_POLICY: []}
    for source in stage.training_sources:
        log(f"{source.name}: the pairs are scored by {directory} …")
        scored = score_pairs(model, stage, source)
        if scored.examples:
            found[SWAPPED] += _swapped(stage, source, scored)
            found[EASY] += _easy_and_hard(source, scored)
            found[OFF_POLICY] += _off_policy(model, stage, source, scored)
    return found


def score_pairs(model: LanguageModel, stage: CheckContext, source: TrainingSource) -> ScoredPairs:
    """At most PAIRS pairs of a source, spread evenly, under a model."""
    numbers = source.sequences.examples
    chosen = numbers[:: max(1, -(-len(numbers) // PAIRS))].tolist()
    stored = stage.dataset.train.examples
    sequences, weights, prompts = list[list[int]](), list[np.ndarray](), list[list[int]]()
    for number in chosen:
        for place in range(2):
            tokens, weight = stored.sequence(2 * number + place)
            sequences.append(tokens.tolist())
            weights.append(np.asarray(weight[1:]))
        prompts.append(sequences[-2][: prompt_length(weights[-2]) + 1])
    scores = score_tokens(model, sequences)
    sums = [float(np.nansum(np.asarray(score) * (weight > 0))) for score, weight in zip(scores, weights, strict=True)]
    lengths = [max(1, int((weight > 0).sum())) for weight in weights]
    summed = np.asarray(sums).reshape(-1, 2)
    return ScoredPairs(chosen, summed, summed / np.asarray(lengths).reshape(-1, 2), prompts)


def _swapped(stage: CheckContext, source: TrainingSource, scored: ScoredPairs) -> list[Finding]:
    """The pairs whose rejected answer is likelier by far, the clearest first."""
    gaps = scored.means[:, 1] - scored.means[:, 0]
    far = np.flatnonzero(gaps > FAR)
    if not len(far):
        return []
    order = far[np.argsort(-gaps[far])]
    places = [stage.example_location(scored.examples[index]) for index in order[:3].tolist()]
    many = len(far) > MANY_SWAPPED * len(gaps)
    return [
        source_finding(
            check=SWAPPED,
            severity="warning" if many else "info",
            message=f"in {len(far):,} of {len(gaps):,} pairs the model prefers the rejected answer by more than {FAR:g} nat "
            f"per token: {', '.join(places)}",
            source=source.name,
            where=places[0],
            hint="look at them with `fledge data show --row`: chosen and rejected may be swapped" if many else "",
        )
    ]


def _easy_and_hard(source: TrainingSource, scored: ScoredPairs) -> list[Finding]:
    """How often the model finds the chosen answer likelier, by sum and by mean, and how often by far."""
    by_sum, by_mean = (np.mean(values[:, 0] > values[:, 1]) for values in (scored.sums, scored.means))
    easy = float(np.mean(scored.means[:, 0] - scored.means[:, 1] > FAR))
    message = (
        f"the model finds the chosen answer likelier in {by_sum:.1%} of {len(scored.examples):,} pairs ({by_mean:.1%} per "
        f"token), by more than {FAR:g} nat per token in {easy:.1%}"
    )
    return [
        Finding(
            check=EASY,
            severity="warning" if easy > MANY_EASY else "info",
            message=message,
            hint="most pairs teach it nothing new: take pairs that it gets wrong" if easy > MANY_EASY else "",
            evidence={"source": source.name, "by_sum": float(by_sum), "by_mean": float(by_mean), "easy": easy},
        )
    ]


def _off_policy(model: LanguageModel, stage: CheckContext, source: TrainingSource, scored: ScoredPairs) -> list[Finding]:
    """Whether the chosen answers are far less likely than the model's own samples to the same prompts."""
    room = model.max_positions
    chosen = [index for index, prompt in enumerate(scored.prompts) if len(prompt) < room - 1]
    chosen = chosen[:: max(1, -(-len(chosen) // PROMPTS))]
    if not chosen:
        return []
    params = SamplingParams(max_new_tokens=64, temperature=1.0, seed=1, logprobs=True)
    engine = Engine(model, stage.tokenizer.stop_ids)
    answers = engine.generate([scored.prompts[index] for index in chosen], params)
    own = [_mean([*(answer.logprobs or []), *_ending(answer.stop_logprob)]) for answer in answers]
    theirs = float(np.mean(scored.means[chosen, 0]))
    mine = float(np.mean([value for value in own if value is not None]))
    gap = mine - theirs
    return [
        Finding(
            check=OFF_POLICY,
            severity="warning" if gap > UNLIKE else "info",
            message=f"the chosen answers have {-theirs:.2f} nats per token under the model, its own samples to {len(chosen):,} "
            f"of the prompts {-mine:.2f}",
            hint="the answers are not what the model would say: put an sft stage on the chosen answers before, or let the "
            "model write the pairs"
            if gap > UNLIKE
            else "",
            evidence={"source": source.name, "chosen": theirs, "own": mine},
        )
    ]


def _ending(logprob: float | None) -> Sequence[float]:
    return [] if logprob is None else [logprob]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
