"""The proof of a prescription: the stage with the patch against the stage without, in short runs of paired seeds.

Both runs of a pair have the same seed: the same order of the data, the same dropout, the same new weights where a stage begins
with such. They are compared on the same held-out documents, by the doctor's own figures. Nothing of the run itself changes: a
proof lies beside it, in `STAGE/proofs/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fledge.doctor.prove_budget import RUN_SECONDS, least_share, length_of, needs_whole, newest_step, whole_seconds
from fledge.doctor.prove_effect import RANKED, Effect, Outcome, compare, with_worst
from fledge.doctor.prove_recipes import Length, Patch, ProofRecipes, Start
from fledge.doctor.prove_runs import Observation, ProofRuns, Variant, hash_of
from fledge.doctor.prove_yardsticks import Yardstick, yardsticks_for
from fledge.errors import FledgeError
from fledge.run import Console, exclusive_lock, write_json
from fledge.run.stopping import SignalHandler
from fledge.sweep.space import yaml_text

FEWEST_SEEDS = 3
FROM_CHECKPOINT = frozenset(
    {
        "learning rate zero", "learning rate too low", "learning rate not as planned", "weight decay too strong",
        "clipping threshold too small", "batch too small", "batch too large", "fp16 overflow",
    }
)  # fmt: skip
"""Causes that can be proved from a checkpoint: they act at any time, and spoil no weights. All others act on what the stage
began with, or on all that it learned since, and are proved from its start."""
SLOWER = 1.5  # times the minutes that all runs would take, from which on they are shortened
SHORT_SHARE = 0.05  # of a stage: runs that are shorter than this say more from a checkpoint than from the start


@dataclass(frozen=True, kw_only=True)
class ProofSettings:
    """How a proof is made. `cause`, `category`: of the finding; the cause chooses the figure that judges. `by`: names of
    figures in its place. `start`: where the runs begin, `stage` or `checkpoint`; auto: at the stage's start, or at the newest
    checkpoint where the cause allows it and the runs are short."""

    minutes: float = 5.0
    seeds: int = FEWEST_SEEDS
    cause: str = ""
    category: str = ""
    by: tuple[str, ...] = ()
    start: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What paired runs say about a patch.

    `base`: what both runs of a pair have of earlier steps. `effect`: of the figure that judges; `beside`: of others. `share`:
    of the stage's tokens that a run trained; `steps`: updates of an unchanged and of a patched run. `tokens`: likewise.
    `failed`: runs that ended without a model, unchanged and patched. `seconds`: that the runs of this proof took. `notes`:
    sentences.
    """

    name: str
    stage: str
    patch: dict[str, Any]
    base: dict[str, Any]
    cause: str
    category: str
    outcome: Outcome
    effect: Effect
    beside: tuple[Effect, ...]
    start: Start
    share: float
    steps: tuple[int, int]
    tokens: tuple[int, int]
    seeds: tuple[int, ...]
    failed: tuple[int, int]
    seconds: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The proof as JSON values, for `proofs/NAME.json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The proof for a person: the verdict, the evidence, how it was tried."""
        shown = ", ".join(f"{key}: {yaml_text(value)}" for key, value in self.patch.items())
        return [f"{VERDICTS[self.outcome]} {shown}", self.effect.sentence, *(one.sentence for one in self.beside), *self.notes]


VERDICTS: dict[Outcome, str] = {
    "helps": "Proved, it helps:",
    "does not help": "It does not help:",
    "makes it worse": "It makes it worse:",
    "cannot tell": "It cannot be told whether it helps:",
}
"""What a proof begins with."""


def prove(
    run: Path, stage: str, patch: Patch, *, minutes: float = 5.0, seeds: int = FEWEST_SEEDS, console: Console, **more: Any
) -> Proof:
    """Try a patch of a recipe on a stage of a run, in so many minutes. `seeds`: pairs of runs; where these cannot tell and time
    is left, there are six. `more`: fields of `ProofSettings`.

    A proof that was stopped goes on; one that is finished is told again, and nothing is trained. Raises FledgeError for what
    cannot be tried: no run, a key that the recipe does not take, too few minutes, no held-out documents."""
    return prove_steps(run, stage, [patch], minutes=minutes, seeds=seeds, console=console, **more)[0]


def prove_steps(
    run: Path,
    stage: str,
    patches: Sequence[Patch],
    *,
    minutes: float = 5.0,
    seeds: int = FEWEST_SEEDS,
    console: Console,
    **more: Any,
) -> list[Proof]:
    """Try patches one after another, each against what has helped before it: a step that helps stays, another is left out.
    Returns the proofs of all steps. The minutes are for all of them. Raises FledgeError as `prove`."""
    settings = ProofSettings(minutes=minutes, seeds=seeds, **more)
    if settings.seeds < FEWEST_SEEDS:
        raise FledgeError(f"must be {FEWEST_SEEDS} or more, not {settings.seeds}: an interval needs pairs", where="--seeds")
    if not patches or not all(patches):
        raise FledgeError("there is no patch to prove: this finding is not mended by a setting", where="patch")
    runs = ProofRuns(recipes=ProofRecipes.of(run, stage), console=console)
    with exclusive_lock(runs.work), SignalHandler(console.log, "stopped on request; the same command goes on"):
        try:
            proofs = _Prover(runs, settings).prove(patches)
        except FledgeError:
            runs.clean()
            runs.leave_nothing()
            raise
        runs.clean()
    return proofs


class _Prover:
    """One proof, or the steps of one."""

    def __init__(self, runs: ProofRuns, settings: ProofSettings) -> None:
        self.runs, self.settings, self.log = runs, settings, runs.console.log
        self.whole = False  # whether only whole stages can prove it
        self.seconds = 60 * settings.minutes  # for each patch

    def prove(self, patches: Sequence[Patch]) -> list[Proof]:
        given = self.runs.variant({})
        yardsticks = yardsticks_for(given.prepared.plan.kind, cause=self.settings.cause, named=self.settings.by)
        self.seconds /= len(patches)
        variants = [given]
        for patch in patches:
            variants.append(self._with(patch, variants[-1]))
        length = self._length(variants)
        if self.runs.start == "checkpoint":
            variants = [self.runs.variant(one.patch) for one in variants]
        length = self._at_pace(variants, length, yardsticks)
        proofs: list[Proof] = []
        kept = variants[0]
        for patch in patches:
            tried = self._with(patch, kept)
            new = {key: value for key, value in tried.patch.items() if key not in kept.patch or kept.patch[key] != value}
            added = new or self.runs.recipes.normalised(patch)
            proofs.append(self._one(kept, tried, added, length, yardsticks))
            if proofs[-1].outcome == "helps":
                kept = tried
        return proofs

    def _with(self, patch: Patch, kept: Variant) -> Variant:
        """A variant with one more patch, as long as it was before."""
        return self.runs.as_long(self.runs.variant({**kept.patch, **self.runs.recipes.normalised(patch)}), kept)

    # -- how long -----------------------------------------------------------------------------------------------------

    def _length(self, variants: Sequence[Variant]) -> Length:
        """The length of the runs; it also decides where they start."""
        recipes, settings = self.runs.recipes, self.settings
        times = [whole_seconds(recipes, one.recipe, one.prepared) for one in variants]
        whole = any(needs_whole(one.patch, recipes.stage, variants[0].prepared, one.prepared) for one in variants[1:])
        self.whole = whole
        planned = [(one.prepared, seconds) for one, (seconds, _) in zip(variants, times, strict=True)]
        length = length_of(planned, settings.seeds, settings.minutes, whole=whole)
        has_checkpoint = newest_step(self.runs.directory) > 0
        if settings.start == "checkpoint" and not has_checkpoint:
            raise FledgeError("this stage has no checkpoint yet", where="--start", hint="leave it out")
        chosen = settings.cause in FROM_CHECKPOINT and length.share < SHORT_SHARE and has_checkpoint and not whole
        if settings.start == "checkpoint" or (settings.start == "auto" and chosen):
            self.runs.start = "checkpoint"
        runs = settings.seeds * len(variants)
        part = "the whole stage" if length.share >= 1 else f"{length.share:.2g} of the stage"
        self.log(f"{runs} runs of {part} at most, planned by {times[0][1]}")
        return length

    def _at_pace(self, variants: Sequence[Variant], length: Length, yardsticks: Sequence[Yardstick]) -> Length:
        """The length, shorter if the first run takes far longer than planned: on another machine, or a busy one. Its seconds
        are kept, so that a proof that goes on decides likewise."""
        held_out = self.runs.held_out([variants[0], variants[1]])
        first = self.runs.observe(variants[0], length, 0, held_out, yardsticks)
        expected, limit = first.seconds * self.settings.seeds * len(variants), 60 * self.settings.minutes
        if expected <= SLOWER * limit or self.whole:
            return length
        share = length.share * max(0.0, limit - RUN_SECONDS) / expected
        shorter = Length(max(share, least_share([one.prepared for one in variants])))
        self.log(f"the first run took {first.seconds:.0f} s, more than planned: runs are shortened to {shorter.share:.2g}")
        return shorter if shorter.share < length.share else length

    # -- one patch ----------------------------------------------------------------------------------------------------

    def _judged(
        self, kept: Variant, tried: Variant, length: Length, yardsticks: Sequence[Yardstick]
    ) -> tuple[list[tuple[Observation, Observation]], list[Effect]]:
        """The pairs of runs, and what they say: as many as asked for, and where these cannot tell and time is left, six."""
        held_out = self.runs.held_out([kept, tried])
        judge = yardsticks[0].scale
        pairs: list[tuple[Observation, Observation]] = []
        for wanted in (self.settings.seeds, RANKED):
            for pair in range(len(pairs), wanted):
                first = self.runs.observe(kept, length, pair, held_out, yardsticks)
                pairs.append((first, self.runs.observe(tried, length, pair, held_out, yardsticks)))
                means = [sum(one.values[judge.name].values()) / max(1, len(one.values[judge.name])) for one in pairs[-1]]
                self.log(f"  pair {pair + 1}: {judge.label} {means[0]:.4g} → {means[1]:.4g}")
            effects = _outcomes(pairs, yardsticks)
            taken = sum(one.seconds for pair in pairs for one in pair)
            if effects[0].outcome != "cannot tell" or taken * RANKED / len(pairs) > self.seconds:
                break
        return pairs, effects

    def _one(
        self, kept: Variant, tried: Variant, added: Mapping[str, Any], length: Length, yardsticks: Sequence[Yardstick]
    ) -> Proof:
        name = _name(added, kept.patch)
        spent = self.runs.spent
        pairs, effects = self._judged(kept, tried, length, yardsticks)
        steps = (length.steps(kept.prepared.plan.steps), length.steps(tried.prepared.plan.steps))
        proof = Proof(
            name=name,
            stage=self.runs.recipes.stage,
            patch=dict(added),
            base=kept.patch,
            cause=self.settings.cause,
            category=self.settings.category,
            outcome=effects[0].outcome,
            effect=effects[0],
            beside=tuple(effects[1:]),
            start=self.runs.start,
            share=length.share,
            steps=steps,
            tokens=(_tokens(kept, steps[0]), _tokens(tried, steps[1])),
            seeds=tuple(self.runs.recipes.seed(pair) for pair in range(len(pairs))),
            failed=(sum(bool(one.failed) for one, _ in pairs), sum(bool(one.failed) for _, one in pairs)),
            seconds=round(self.runs.spent - spent, 3),
        )
        proof = replace(proof, notes=tuple(_notes(proof)))
        write_json(self.runs.folder / f"{name}.json", proof.as_dict())
        return proof


def _outcomes(pairs: Sequence[tuple[Observation, Observation]], yardsticks: Sequence[Yardstick]) -> list[Effect]:
    """What the pairs say about each figure."""
    identical = all(first.weights and first.weights == second.weights for first, second in pairs)
    runs = [one for pair in pairs for one in pair]
    effects = []
    for scale in (one.scale for one in yardsticks):
        values = with_worst(scale, [one.values[scale.name] for one in runs], [one.stand_ins(scale.name) for one in runs])
        effects.append(compare(scale, values[::2], values[1::2], identical=identical and scale.of_model))
    return effects


def _tokens(variant: Variant, steps: int) -> int:
    return round(variant.prepared.plan.tokens * steps / variant.prepared.plan.steps)


def _name(patch: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The name of a proof: the last parts of its keys, and a hash of all."""
    words = "-".join(key.rpartition(".")[2] for key in patch)[:60]
    return f"{words}-{hash_of([dict(patch), dict(base)])[:6]}"


def _notes(proof: Proof) -> list[str]:
    """How a proof was made, in sentences."""
    began = "the weights that the stage began with" if proof.start == "stage" else "the newest checkpoint, with a new optimizer"
    first, second = proof.steps
    updates = f"{first:,} updates" if first == second else f"{first:,} updates unchanged and {second:,} patched"
    part = "the whole stage" if proof.share >= 1 else f"{100 * proof.share:.2g} % of the stage"
    notes = [
        f"Tried in {len(proof.seeds)} pairs from {began}: {updates}, {part}; {proof.effect.documents:.0f} held-out documents."
    ]
    if abs(proof.tokens[0] - proof.tokens[1]) > 0.02 * max(proof.tokens):
        notes.append(
            f"The patch changes how much is trained: {proof.tokens[0]:,} tokens unchanged, {proof.tokens[1]:,} patched."
        )
    if proof.share < 1:
        notes.append("Short runs favour what learns fast: a longer stage may want a lower learning rate than they show.")
    for count, which in zip(proof.failed, ("unchanged", "patched"), strict=True):
        if count:
            notes.append(f"{count} of {len(proof.seeds)} {which} runs ended without a model, and count as knowing nothing.")
    return notes
