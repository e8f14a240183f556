"""Warnings about a plan, before anything is trained: settings that work, and from which nothing useful can come."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fledge.data import FORMATS, PackedDataset
from fledge.data.encoding.examples import prompt_length
from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.plan.evaluation import MIN_VALIDATION_ROWS, validation_rows
from fledge.plan.hyperparameters import RATES, REFERENCE_WIDTH
from fledge.plan.lr_schedule import learning_rate
from fledge.plan.stage import StagePlan
from fledge.recipe.schema import Stage
from fledge.recipe.sections.engine import ADAPTER_RATE_FACTOR
from fledge.recipe.sections.policy import PolicySettings

PLAN = "plan"  # the name of the check
FEW_UPDATES = 10
MIN_REACH = 0.05  # sum of the rates × width below which outputs hardly change; SFT of 7B models on 1,000 rows has about 4
MAX_FINE_TUNING = 0.8  # of the rate for fresh weights of the same width: more unlearns what the weights know
MAX_PREFERENCE = 0.05  # of the same rate, for preferences
MAX_FRESH = 4.0  # times the rate of the reference run, carried over to this width
PARAMETERS_PER_TOKEN = 100  # of fresh weights, for each training token of an epoch
RELATIVE_RATES = ("adafactor",)  # optimizers whose rate is a share of the size of the weights
MIN_RELATIVE_REACH = 0.02  # sum of the rates below which such an optimizer hardly changes anything: a weight moves by 2 %
SAMPLED_STEPS = 1000  # of which the rates are added up


class PlanError(FledgeError):
    """Settings of a stage with which it cannot be trained. `others`: what else is doubtful about its plan."""

    def __init__(self, what: str, *, where: str, hint: str | None, others: list[Finding]) -> None:
        super().__init__(what, where=where, hint=hint)
        self.others = others


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage as it will be trained: `stage` with all numbers, its plan and data, the width of its model, and whether it starts
    from fresh weights."""

    name: str
    stage: Stage
    plan: StagePlan
    train: PackedDataset
    validation: PackedDataset | None
    width: int
    starts_fresh: bool

    @property
    def compares_answers(self) -> bool:
        """Whether an example is several answers to compare."""
        return len(FORMATS[self.stage.kind].sequence_names) > 1

    def warning(self, key: str, message: str, hint: str) -> Finding:
        """A warning about a key of the stage."""
        return Finding(check=PLAN, severity="warning", message=message, where=f"stages.{self.name}.{key}", hint=hint)


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def plan_warnings(planned: PlannedStage) -> list[Finding]:
    """All warnings about a stage. None is an error: the stage can be trained."""
    return [finding for rule in RULES for finding in rule(planned)]


def _few_updates(planned: PlannedStage) -> Iterator[Finding]:
    steps, duration, rows = planned.plan.steps, planned.stage.duration, planned.plan.effective_batch_rows
    if steps >= FEW_UPDATES:
        return
    verb, noun = ("is" if duration.startswith("1 ") else "are"), ("update" if steps == 1 else "updates")
    makes = f"the stage has only {steps} {noun}" if "step" in duration else f"{duration} {verb} {steps} {noun}"
    yield planned.warning(
        "duration",
        f"{makes} of {counted(rows, 'row')}; an epoch has {counted(len(planned.train), 'packed row')}",
        "set a longer duration, or a smaller batch.micro_batch_size: what counts is the number of updates",
    )


def _batch_above_data(planned: PlannedStage) -> Iterator[Finding]:
    rows, available = planned.plan.effective_batch_rows, len(planned.train)
    if rows > available:
        yield planned.warning(
            "batch.micro_batch_size",
            f"an update reads {counted(rows, 'row')}, but an epoch has only {counted(available, 'packed row')}",
            f"set a batch of {max(1, available // 8)} (micro_batch_size × gradient_accumulation_steps), a smaller "
            "data.max_seq_len, or use more data",
        )


def _few_validation_rows(planned: PlannedStage) -> Iterator[Finding]:
    if planned.validation is None:
        return
    rows = validation_rows(planned.validation, planned.stage.evaluation.max_packed_rows)
    if rows < MIN_VALIDATION_ROWS:
        yield planned.warning(
            "data.validation",
            f"{counted(rows, 'validation row')}: too few for their loss to tell whether the model gets better",
            f"set data.validation to a larger share, or a file of at least {MIN_VALIDATION_ROWS} rows",
        )


def _preference_from_fresh_weights(planned: PlannedStage) -> Iterator[Finding]:
    if planned.starts_fresh and planned.compares_answers:
        yield planned.warning(
            "init_from",
            f"the stage prefers answers with {planned.plan.parameters / 1e6:.1f}M random weights, which cannot answer yet",
            "set init_from or model.path to a model that was fine-tuned, or put an sft stage before it",
        )


def _reference_rate(planned: PlannedStage) -> float:
    """The rate for fresh weights that the reference run has, carried over to this width."""
    return RATES["adamw"] * REFERENCE_WIDTH / planned.width


def _rate_too_small(planned: PlannedStage) -> Iterator[Finding]:
    steps, stage = planned.plan.steps, planned.stage
    stride = max(1, steps // SAMPLED_STEPS)
    sampled = range(0, steps, stride)
    mean = sum(learning_rate(step, steps, stage.optimizer, stage.schedule) for step in sampled) / len(sampled)
    reach = mean * steps
    if stage.optimizer.name in RELATIVE_RATES:
        if reach < MIN_RELATIVE_REACH:
            yield planned.warning(
                "optimizer.learning_rate",
                f"learning rate {planned.plan.learning_rate:.3g} of {stage.optimizer.name} is too small for "
                f"{counted(steps, 'update')}: a weight moves by about {reach:.1%} of its size, so hardly anything is learned",
                "set optimizer.learning_rate to about 0.001, or train longer",
            )
    elif reach * planned.width < MIN_REACH:
        yield planned.warning(
            "optimizer.learning_rate",
            f"learning rate {planned.plan.learning_rate:.3g} is too small for {counted(steps, 'update')}: a weight moves by "
            f"about {reach:.1g} in all, so hardly anything is learned",
            f"set optimizer.learning_rate to about {planned.plan.learning_rate * 4 * MIN_REACH / (reach * planned.width):.1g}, "
            "or train longer",
        )


def _rate_too_large(planned: PlannedStage) -> Iterator[Finding]:
    rate, reference = planned.plan.learning_rate, _reference_rate(planned)
    share = MAX_FRESH if planned.starts_fresh else MAX_PREFERENCE if planned.compares_answers else MAX_FINE_TUNING
    share *= ADAPTER_RATE_FACTOR if planned.stage.adapter is not None else 1
    if planned.stage.optimizer.name in ("muon", *RELATIVE_RATES) or rate <= share * reference:
        return
    weights = "fresh weights" if planned.starts_fresh else "weights that are trained already"
    yield planned.warning(
        "optimizer.learning_rate",
        f"learning rate {rate:.3g} is large for {weights} of width {planned.width:,}: training may diverge or unlearn",
        f"set optimizer.learning_rate to {share * reference / 4:.1g} or below",
    )


def _long_prompts(planned: PlannedStage) -> Iterator[Finding]:
    """Prompts that leave less room than an answer may take."""
    stage, examples = planned.stage, planned.train.examples
    if not isinstance(stage, PolicySettings):
        return
    longest = stage.data.max_seq_len + 1 - stage.rollout.max_new_tokens
    lengths = [prompt_length(examples.sequence(number)[1]) for number in range(examples.count)]
    count = sum(length > longest for length in lengths)
    if count:
        yield planned.warning(
            "data.max_seq_len",
            f"{counted(count, 'prompt')} of {examples.count:,} leave fewer than {stage.rollout.max_new_tokens:,} tokens for an "
            f"answer; the longest has {max(lengths):,} tokens",
            f"set data.max_seq_len to {max(lengths) + stage.rollout.max_new_tokens - 1:,}, or rollout.max_new_tokens to less",
        )


def _model_above_data(planned: PlannedStage) -> Iterator[Finding]:
    tokens, parameters = planned.train.num_tokens, planned.plan.parameters
    if planned.starts_fresh and parameters > PARAMETERS_PER_TOKEN * tokens:
        yield planned.warning(
            "data.train",
            f"{parameters / 1e6:.1f}M fresh parameters, {tokens:,} tokens an epoch: the model can only learn the rows by heart",
            "use far more data, a smaller model (model.hidden_size, model.num_hidden_layers), or a trained model (init_from)",
        )


RULES: tuple[Callable[[PlannedStage], Iterator[Finding]], ...] = (
    _few_updates,
    _batch_above_data,
    _few_validation_rows,
    _preference_from_fresh_weights,
    _rate_too_small,
    _rate_too_large,
    _model_above_data,
    _long_prompts,
)
