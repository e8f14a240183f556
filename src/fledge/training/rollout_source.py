"""Batches of answers that the model in training draws itself, for policy stages."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xxhash
from torch import Tensor

from fledge.autotune.determinism import allow_nondeterministic
from fledge.data import Batch, PackedDataset, Skipped, skip_offset
from fledge.data.encoding.questions import split_last_answer
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.generation import Engine, SamplingParams
from fledge.model.eager import force_eager
from fledge.model.protocol import LanguageModel
from fledge.objective.policy import PolicyObjective
from fledge.plan.horizon import TrainingHorizon
from fledge.plan.memory import is_out_of_memory
from fledge.recipe.sections.policy import PolicySettings
from fledge.tokenizer import Tokenizer
from fledge.training.batch_loader import on_device
from fledge.training.batch_source import DatasetSource, StepBatch
from fledge.training.rollout import DrawnAnswer, RewardTable, Rollout, group_advantages, has_equal_rewards
from fledge.training.rollout_metrics import Group, rollout_metrics
from fledge.training.train_step import StopRequested, micro_batch_seed


@dataclass(frozen=True, kw_only=True)
class RolloutInputs:
    """What answers are drawn with: the stage, its prompts and their horizon, the model that is trained, its objective, how
    texts become tokens, and the rewards. `seed`: of the stage. `stop_requested`: asked while answers are drawn, on a single
    rank."""

    stage: PolicySettings
    data: PackedDataset
    horizon: TrainingHorizon
    model: LanguageModel
    objective: PolicyObjective
    tokenizer: Tokenizer
    rewards: RewardTable
    seed: int
    ranks: DistributedContext
    stop_requested: Callable[[], bool] = lambda: False


class RolloutSource:
    """The prompts of a stage in the order of its packed rows, each with a group of answers of the current model.

    A rollout serves `updates_per_rollout` updates. Draws are a function of the seed, the step of the rollout, the prompt's row,
    the place in the group and, where a group is drawn again, the number of the attempt; so a rollout is a function of the step
    and the weights. Where its updates are several, a checkpoint between them holds it.
    """

    prefetchable = False

    def __init__(self, inputs: RolloutInputs, micro_batch_size: int) -> None:
        """Raises FledgeError if there are more ranks than prompts in an update."""
        self.inputs, self.micro_batch_size, self.config = inputs, micro_batch_size, inputs.stage.rollout
        self.prompts = DatasetSource(inputs.data, inputs.horizon, 1, lambda _: 0.0, ranks=inputs.ranks)
        self.skipped_rows: Skipped = ()
        self._rollout: Rollout | None = None

    def stream_rows(self, step: int) -> list[int]:
        """The rows of a step's prompts, as indices in the stream that includes the skipped rows."""
        return [skip_offset(row, self.skipped_rows) for row in range(*self.prompts.row_range(step))]

    def tensors(self, step: int) -> dict[str, Tensor]:
        """The rollout, if updates after `step` still need it."""
        rollout = self._rollout
        return rollout.tensors() if rollout is not None and rollout.first_step < step and rollout.covers(step) else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the rollout of a checkpoint, or none."""
        self._rollout = Rollout.from_tensors(tensors) if tensors else None

    # -- the batch of an update ---------------------------------------------------------------------------------------

    def batch(self, step: int) -> StepBatch:
        """This rank's share of the batch of a step; draws answers first if a rollout begins. Collective. Raises StopRequested
        if a stop is requested meanwhile, and FledgeError from rewards."""
        if self._rollout is None or not self._rollout.covers(step):
            self._rollout = self._drawn_within_memory(step)
        rollout, data = self._rollout, self.inputs.data
        begins = step == rollout.first_step
        if not begins:  # the weights are no longer those of the generator
            rollout = replace(rollout, sampling_logps=None)
        first, stop = self.prompts.row_range(step)
        local_rows = self.inputs.ranks.shard_range(first, stop)
        made = rollout.batches(self._members(rollout, step, local_rows), self._shape, data.pad)
        batches = [batch for batch, _ in made if batch.num_target_tokens]
        most = int(self.inputs.ranks.all_reduce_max([len(batches)])[0])
        if not most:
            raise FledgeError(
                f"all answers of step {step + 1:,} are cut at {self.config.max_new_tokens:,} tokens, and mask_truncated leaves "
                "none to learn from",
                where="mask_truncated",
                hint="in a new run, set rollout.max_new_tokens to more, or mask_truncated to false",
            )
        padding = data.assemble([None] * self._shape[0]) if len(batches) < most else None
        return StepBatch(
            step=step,
            rows=(first, stop),
            local_rows=local_rows,
            batches=tuple(batches),
            num_micro_steps=most,
            padding_batch=padding and self._empty_like(padding, rollout),
            normalizer=sum(self.inputs.objective.normalizer(batch) for batch, _ in made),
            num_tokens=sum(batch.num_tokens for batch, _ in made),
            num_target_tokens=sum(batch.num_target_tokens for batch in batches),
            by_source=self._tokens_by_source([batch for batch, _ in made]),
            epoch=data.epochs_after(skip_offset(stop - 1, self.skipped_rows) + 1),
            metrics=rollout.metrics if begins else {},
            seconds=rollout.seconds if begins else {},
        )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.micro_batch_size, self.inputs.data.packed_length

    def _members(self, rollout: Rollout, step: int, rows: tuple[int, int]) -> np.ndarray:
        """The answers of a step to the prompts in a range of rows."""
        return np.flatnonzero((rollout.step == step) & (rollout.row >= rows[0]) & (rollout.row < rows[1]))

    def _empty_like(self, padding: Batch, rollout: Rollout) -> Batch:
        """A batch without answers that has the values of a batch of the rollout."""
        return replace(padding, token_values=rollout.token_values(padding, np.zeros(0, np.int64)))

    def _tokens_by_source(self, batches: Sequence[Batch]) -> tuple[int, ...]:
        """Tokens of prompts and answers by the source of the prompts."""
        source, counts = self.inputs.data.examples.source, np.zeros(max(1, len(self.inputs.data.sources)), np.int64)
        for batch in batches:
            tokens = torch.bincount(batch.sequence_ids.flatten(), minlength=batch.num_sequences + 1)[: batch.num_sequences]
            owner = [0 if source is None else int(source[example]) for example in batch.examples]
            np.add.at(counts, owner, tokens.numpy())
        return tuple(counts[: len(self.inputs.data.sources)].tolist())

    # -- drawing --------------------------------------------------------------------------------------------------------

    def _drawn_within_memory(self, step: int) -> Rollout:
        """The rollout that begins with a step. FledgeError if memory is too short for it."""
        try:
            return self._draw(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise FledgeError(
                f"memory is too short to draw and score the answers of step {step + 1:,}",
                where="rollout",
                hint="in a new run, write fewer num_generations, fewer max_new_tokens or a smaller batch",
            ) from error

    def _draw(self, step: int) -> Rollout:
        """The rollout that begins with a step: this rank's answers, and those of all other ranks. Collective."""
        started, inputs = time.perf_counter(), self.inputs
        last = min(step + self.config.updates_per_rollout, inputs.horizon.steps)
        groups = [group for one in range(step, last) for group in self._prompts_of(one)]
        with torch.no_grad(), force_eager(), allow_nondeterministic():
            engine = Engine(inputs.model, inputs.tokenizer.stop_ids)
            seconds = {"reward": self._draw_groups(engine, groups, step, 0)}
            for attempt in range(1, self.config.redraw_equal_groups + 1):
                equal = [group for group in groups if has_equal_rewards(inputs.rewards.total(group.rewards))]
                seconds["reward"] += self._draw_groups(engine, equal, step, attempt)
        del engine
        gathered = [
            Group.from_json(one) for of_rank in inputs.ranks.all_gather_object([g.as_json() for g in groups]) for one in of_rank
        ]
        gathered.sort(key=lambda group: (group.step, group.row))
        rollout = self._assembled(step, last - step, gathered)
        if last - step > 1:
            rollout = rollout.with_old_logps(self._old_logps(rollout))
        seconds["rollout"] = time.perf_counter() - started - seconds["reward"]
        return replace(rollout, seconds=seconds)

    def _prompts_of(self, step: int) -> list[Group]:
        """The prompts of a step that this rank answers, as groups without answers."""
        data, stop_ids = self.inputs.data, self.inputs.tokenizer.stop_ids
        first, stop = self.inputs.ranks.shard_range(*self.prompts.row_range(step))
        groups = []
        for row, example in zip(range(first, stop), data.examples_at(first, stop - first, self.skipped_rows), strict=True):
            found = split_last_answer(*data.examples.sequence(example), stop_ids)
            assert found is not None  # `encode_questions` has dropped such rows
            groups.append(Group(step=step, row=row, example=example, prompt=found[0].tolist(), answer=found[1].tolist()))
        return groups

    def _draw_groups(self, engine: Engine, groups: Sequence[Group], step: int, attempt: int) -> float:
        """Draw the answers of some groups and reward them; returns the seconds that the rewards took."""
        if not groups:
            return 0.0
        inputs, count = self.inputs, self.config.num_generations
        prompts = [group.prompt for group in groups for _ in range(count)]
        params = [self._params(group, step, attempt) for group in groups for _ in range(count)]
        places = [place for _ in groups for place in range(count)]
        completions = engine.generate(prompts, params, sample_indices=places, progress=self._check_stop)
        started = time.perf_counter()
        answers = [inputs.tokenizer.decode(group.answer, skip_special=True) for group in groups for _ in range(count)]
        drawn = [
            DrawnAnswer.of(prompt, completion, answer, inputs.tokenizer)
            for prompt, completion, answer in zip(prompts, completions, answers, strict=True)
        ]
        rewards = inputs.rewards.score(drawn)
        for number, group in enumerate(groups):
            own = slice(number * count, (number + 1) * count)
            group.fill(drawn[own], completions[own], rewards[own], attempt)
        return time.perf_counter() - started

    def _check_stop(self, finished: int) -> None:
        if not self.inputs.ranks.is_distributed and self.inputs.stop_requested():
            raise StopRequested

    def _params(self, group: Group, step: int, attempt: int) -> SamplingParams:
        """How the answers of a group are drawn: never longer than the context allows."""
        config = self.config
        return SamplingParams(
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            max_new_tokens=min(config.max_new_tokens, self.inputs.data.packed_length + 1 - len(group.prompt)),
            seed=xxhash.xxh3_64_intdigest(f"{self.inputs.seed}/{step}/{group.row}/{attempt}".encode()) % 2**63,
            logprobs=self.keeps_sampling_logps,
        )

    @property
    def keeps_sampling_logps(self) -> bool:
        """Whether the generator's log-probabilities are those of the distribution that is trained."""
        return self.config.temperature == 1.0

    # -- rollouts -------------------------------------------------------------------------------------------------------

    def _assembled(self, step: int, num_steps: int, groups: Sequence[Group]) -> Rollout:
        """The rollout of the groups of all ranks."""
        stage, rewards = self.inputs.stage, self.inputs.rewards
        totals = np.stack([rewards.total(group.rewards) for group in groups])
        advantages = group_advantages(totals, stage.scale_rewards)
        sequences = [
            (group, tokens, reason) for group in groups for tokens, reason in zip(group.tokens, group.reasons, strict=True)
        ]
        counts = [0.0 if stage.mask_truncated and reason == "length" else 1.0 for _, _, reason in sequences]
        tokens = [np.asarray([*group.prompt, *answer], np.int32) for group, answer, _ in sequences]
        weights = [
            np.repeat(np.asarray([0.0, counts[number]], np.float32), [len(group.prompt), len(answer)])
            for number, (group, answer, _) in enumerate(sequences)
        ]
        logps = [logps for group in groups for logps in group.logps]
        kept = [np.asarray(one, np.float32) for one, count in zip(logps, counts, strict=False) if count]
        per_group = self.config.num_generations
        return Rollout(
            first_step=step,
            num_steps=num_steps,
            step=np.repeat([group.step for group in groups], per_group),
            row=np.repeat([group.row for group in groups], per_group),
            example=np.repeat([group.example for group in groups], per_group),
            tokens=np.concatenate(tokens),
            offsets=np.concatenate(([0], np.cumsum([len(one) for one in tokens]))).astype(np.int64),
            weights=np.concatenate(weights),
            advantages=advantages.ravel().astype(np.float32),
            sampling_logps=np.concatenate(kept) if kept else None,
            metrics=rollout_metrics(groups, totals, rewards),
        )

    def _old_logps(self, rollout: Rollout) -> np.ndarray:
        """Log-probabilities [n] of all ranks' targets with the present weights, computed as the updates will compute them, so
        that the ratio of the first update is 1. Collective."""
        ranks, model = self.inputs.ranks, self.inputs.model
        values = np.zeros(int(rollout.target_offsets[-1]), np.float32)
        own: list[tuple[int, list[float]]] = []
        for step in range(rollout.first_step, rollout.first_step + rollout.num_steps):
            rows = ranks.shard_range(*self.prompts.row_range(step))
            made = rollout.batches(self._members(rollout, step, rows), self._shape, self.inputs.data.pad)
            for number, (batch, members) in enumerate(one for one in made if one[0].num_target_tokens):
                if model.draws_random_numbers:  # the masks of dropout are those of the update
                    torch.manual_seed(micro_batch_seed(self.inputs.seed, step, number, ranks.rank))
                logps = self.inputs.objective.log_probabilities(model, on_device(batch, model.device))[0].detach().cpu()
                sizes = np.diff(rollout.target_offsets)[members].tolist()
                own += [(int(one), part.tolist()) for one, part in zip(members, logps.split(sizes), strict=True)]
        for of_rank in ranks.all_gather_object(own):
            for one, part in of_rank:
                values[rollout.target_offsets[one] : rollout.target_offsets[one + 1]] = part
        return values
