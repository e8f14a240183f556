"""The probe of a stage that draws answers itself: whether advantages compare the answers to one prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fledge import stage as stage_module
from fledge.data import Batch
from fledge.diagnosis.case import Figure
from fledge.distributed.context import DistributedContext
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import figure, left_out
from fledge.objective import PolicyObjective
from fledge.objective.policy import ADVANTAGES
from fledge.recipe.sections.policy import PolicySettings
from fledge.training import sources as sources_module
from fledge.training.rollout import DrawnAnswer, RewardTable

PROMPTS = 6  # that are answered
EPSILON = 1e-4  # added to a standard deviation (Shao et al. 2024, as in TRL)

Tokens = tuple[int, ...]


@dataclass
class Rewarded:
    """The rewards of drawn answers: prompt → answer and its reward, of the last time that the prompt was answered."""

    table: RewardTable
    answers: dict[Tokens, list[tuple[Tokens, float]]] = field(default_factory=dict)

    def score(self, drawn: Sequence[DrawnAnswer]) -> np.ndarray:
        """The rewards of the table [n, R], which are remembered."""
        values = self.table.score(drawn)
        found: dict[Tokens, list[tuple[Tokens, float]]] = {}
        for one, total in zip(drawn, self.table.total(values).tolist(), strict=True):
            found.setdefault(tuple(one.prompt_tokens), []).append((tuple(one.completion_tokens), total))
        self.answers |= found
        return values


def advantage_alignment(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The correlation of the advantages in the trainer's batch with what they have to be by the rewards of the answers to the
    same prompt."""
    run, parts = context.run, context.trainer
    stage, objective = parts.stage, parts.objective
    if not isinstance(stage, PolicySettings) or not isinstance(objective, PolicyObjective):
        raise left_out("the trainer's objective has no advantages")
    table = stage_module.stage_rewards(run.recipe, run.name, run.tokenizer, run.run, device="cpu")
    assert table is not None
    rewarded = Rewarded(table)
    horizon = parts.horizon(min(PROMPTS, len(parts.train)), 1)
    with parts.weights() as model:
        inputs = sources_module.RolloutInputs(
            stage=stage,
            data=parts.train,
            horizon=horizon,
            model=model.eval(),
            objective=objective,
            tokenizer=run.tokenizer,
            rewards=replace(table, score=rewarded.score),
            seed=0,
            ranks=DistributedContext(),
        )
        batches = sources_module.RolloutSource(inputs, 1).batch(0).batches
    found = [pair for batch in batches for pair in _answers(batch)]
    expected = expected_advantages(rewarded, stage)
    pairs = [(expected[tokens], value) for tokens, value in found if tokens in expected]
    if len({round(wanted, 9) for wanted, _ in pairs}) < 2:
        raise left_out("the answers to each prompt have equal rewards")
    wanted, values = np.asarray(pairs, np.float64).T
    alignment = float(np.corrcoef(wanted, values)[0, 1]) if values.std() > 0 else 0.0
    return {"probe/advantage_alignment": figure(alignment, f"{len(pairs)} answers to {horizon.rows} prompts")}


def _answers(batch: Batch) -> list[tuple[Tokens, float]]:
    """Each sequence of a batch as tokens, prompt and answer, with the advantage of its targets."""
    found = []
    for number in range(batch.num_sequences):
        places = batch.sequence_ids == number
        weighted = places & (batch.loss_weights > 0)
        if bool(weighted.any()):
            tokens = (*batch.input_ids[places].tolist(), int(batch.targets[places][-1]))
            found.append((tokens, float(batch.token_values[ADVANTAGES][weighted][0])))
    return found


def expected_advantages(rewarded: Rewarded, stage: PolicySettings) -> dict[Tokens, float]:
    """What the advantage of each answer has to be: its reward − the mean of its prompt's, divided as the recipe says. Prompts
    that were asked twice at once, whose groups cannot be told apart, are left out."""
    groups = {prompt: answers for prompt, answers in rewarded.answers.items() if len(answers) == stage.rollout.num_generations}
    spread = float(np.std([reward for answers in groups.values() for _, reward in answers], ddof=1)) if groups else 0.0
    expected: dict[Tokens, float] = {}
    for prompt, answers in groups.items():
        rewards = np.asarray([reward for _, reward in answers])
        scales = {"group": float(rewards.std(ddof=1)) + EPSILON, "batch": spread + EPSILON}
        for (answer, _), centred in zip(
            answers, (rewards - rewards.mean()) / scales.get(stage.scale_rewards, 1.0), strict=True
        ):
            expected[prompt + answer] = float(centred)
    return expected
