"""The forecast of a recipe: every stage on every device, with findings and a comparison of the devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fledge.evaluate.reward_models import reward_model_costs
from fledge.findings import Finding
from fledge.forecast.assumed import assumed_cost, assumed_rows
from fledge.forecast.on_device import StageOnDevice, stage_on_device
from fledge.forecast.probe import Probe
from fledge.forecast.target import Target
from fledge.model.cost import ModelCost
from fledge.pipeline import prepare_stage
from fledge.plan import plan_stage
from fledge.plan.bands import Band, BandInputs, bands_of
from fledge.plan.critic import PlannedStage, cpu_has_bf16, gpu_capability, plan_findings
from fledge.plan.devices import Device
from fledge.plan.horizon import pinned_batch, sized_batch
from fledge.plan.memory import divided_batch
from fledge.plan.money import Money, Rates, rates
from fledge.plan.stage_forecast import StageInputs, work_of
from fledge.plan.work import Work
from fledge.prediction import stage_inputs, trained_parameters
from fledge.prepare import Preparation
from fledge.recipe import Recipe, Stage
from fledge.run import Console
from fledge.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """What is known of a stage before it runs: its inputs, its work, its bands and findings, the lines about its data, and what
    it takes on each device."""

    name: str
    inputs: StageInputs
    work: Work
    kv_bytes: int
    bands: list[Band]
    findings: list[Finding]
    data: list[str]
    devices: list[StageOnDevice]

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        plan = self.inputs.plan
        return {
            "kind": plan.kind,
            "plan": plan.as_dict(),
            "trained_parameters": self.inputs.trained,
            "work": self.work.as_dict(),
            "kv_bytes_per_token": self.kv_bytes,
            "bands": [vars(band) | {"position": band.position} for band in self.bands],
            "devices": [one.as_dict() for one in self.devices],
            "findings": [finding.as_dict() for finding in self.findings],
        }


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """The forecast of a recipe on some devices. `vocab_size`: tokens of its tokenizer; `probe`: of this machine, if one was
    made; `notes`: what was assumed."""

    recipe: Recipe
    vocab_size: int
    targets: list[Target]
    stages: list[StageForecast]
    probe: Probe | None = None
    notes: list[str] = field(default_factory=list)
    prices: tuple[Rates, ...] = ()  # of each target

    def hours(self, number: int) -> tuple[float, float] | None:
        """Hours of all stages on a target, from … to; None where its speed is not known."""
        times = [time for stage in self.stages if (time := stage.devices[number].time) is not None]
        if len(times) < len(self.stages):
            return None
        totals = [time.total for time in times]
        start = self.probe.start if self.probe is not None and self.targets[number].is_here else 0.0
        return (start + sum(total.low for total in totals)) / 3600, (start + sum(total.high for total in totals)) / 3600

    def cost(self, number: int) -> tuple[Money, ...]:
        """The cost of all stages on a target, by currency; empty where no price is known."""
        hours, count = self.hours(number), self.targets[number].count
        if hours is None:
            return ()
        low, high = hours
        pairs = zip(self.prices[number].cost(low, count), self.prices[number].cost(high, count), strict=True)
        return tuple(Money(first.currency, first.low, last.high) for first, last in pairs)

    def fits(self, number: int) -> bool:
        """Whether all stages fit on a target."""
        return all(stage.devices[number].fits for stage in self.stages)

    @property
    def fits_somewhere(self) -> bool:
        """Whether all stages fit on one of the devices."""
        return any(map(self.fits, range(len(self.targets))))

    @property
    def findings(self) -> list[Finding]:
        """The findings of all stages."""
        return [finding for stage in self.stages for finding in stage.findings]

    def as_dict(self) -> dict[str, Any]:
        """The forecast as JSON."""
        devices = []
        for number, target in enumerate(self.targets):
            devices.append(
                {
                    "device": target.name,
                    "count": target.count,
                    "precision": target.precision,
                    "memory_bytes": target.memory,
                    "hours": self.hours(number),
                    "cost": [vars(money) for money in self.cost(number)],
                    "fits": self.fits(number),
                }
            )
        return {
            "recipe": self.recipe.name,
            "vocab_size": self.vocab_size,
            "devices": devices,
            "stages": {stage.name: stage.as_dict() for stage in self.stages},
            "notes": self.notes,
        }


@dataclass(frozen=True, kw_only=True)
class KnownRecipe:
    """A recipe whose stages are prepared, and nothing is said of devices. `vocab_size`: tokens of its tokenizer; `notes`: what
    was assumed."""

    recipe: Recipe
    vocab_size: int
    stages: dict[str, "KnownStage"]
    notes: list[str]

    @property
    def with_planned_batches(self) -> Recipe:
        """The recipe, whose updates have the rows that are planned, however long its stages are made."""
        stages = dict[str, Stage]()
        for name, stage in self.recipe.stages.items():
            pinned = pinned_batch(stage.batch, self.stages[name].inputs.plan.effective_batch_rows)
            stages[name] = stage.model_copy(update={"batch": stage.batch.model_copy(update=pinned)})
        return self.recipe.model_copy(update={"stages": stages})

    def forecast(self, targets: Sequence[Target], *, probe: Probe | None = None, prices: Sequence[str] = ()) -> RunForecast:
        """The forecast on `targets`, at least one. `probe`: of this machine. `prices`: as `fledge plan --price` takes them;
        else those of the table."""
        stages = [_stage(name, known, targets, probe) for name, known in self.stages.items()]
        of_targets = tuple(rates(target.device, prices) for target in targets)
        return RunForecast(recipe=self.recipe, vocab_size=self.vocab_size, targets=list(targets), stages=stages, probe=probe,
                           notes=self.notes, prices=of_targets)  # fmt: skip


def know_recipe(
    recipe: Recipe, console: Console, *, target: Target | None = None, tokens: Mapping[str, int] | None = None
) -> KnownRecipe:
    """Prepare the stages of a recipe for forecasts. Nothing is trained.

    `target`: the first device that the recipe is planned for, whose capability is what the critic reads; None: this machine.
    `tokens`: of an epoch of each stage, for data that is not at hand and is not read then. Raises FledgeError as a run would
    before its first step, except for a stage that does not fit into memory.
    """
    preparation = Preparation(recipe, console.log, for_this_machine=target is None or target.is_here, must_fit=False)
    card = None if target is None else target.device
    known, notes = _Known(preparation, console, card), list[str]()
    if tokens is None:
        preparation.check_start_models()
        known.tokenizer = preparation.tokenizer()
    else:
        known.tokenizer = preparation.load_tokenizer()
        notes += [
            "the data was not read: full rows, all tokens supervised, as if each stage had the tokens that --tokens names",
            "checks of rows, labels, epochs and validation data need the data and are left out; evaluations are not in the "
            "time",
        ]
    stages = {name: known.prepared(name) if tokens is None else known.assumed(name, tokens[name]) for name in recipe.stages}
    return KnownRecipe(recipe=recipe, vocab_size=known.vocab_size, stages=stages, notes=notes)


@dataclass(frozen=True)
class KnownStage:
    """What is known of a stage before any device: its inputs, findings, and the lines about its data."""

    inputs: StageInputs
    findings: list[Finding]
    data: list[str]


@dataclass
class _Known:
    """What the stages of a recipe are prepared with. `card`: as in `know_recipe`."""

    preparation: Preparation
    console: Console
    card: Device | None
    tokenizer: Tokenizer | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer; those that the recipe asks for where it would be trained on data that is not at hand."""
        wanted = self.preparation.recipe.tokenizer.vocab_size
        return wanted if self.tokenizer is None else self.tokenizer.vocab_size

    @property
    def capability(self) -> tuple[int, int] | None:
        """Of the GPU that the critic has in mind, as in `gpu_capability`."""
        return gpu_capability(self.preparation.recipe.runtime) if self.card is None else self.card.capability

    @property
    def cpu_has_bf16(self) -> bool | None:
        """Of the CPU that the critic has in mind, as in `PlannedStage`."""
        return cpu_has_bf16(self.preparation.recipe.runtime) if self.card is None else None

    def cost(self, name: str) -> ModelCost:
        """Sizes and cost of a stage's model."""
        if self.tokenizer is None:
            return assumed_cost(self.preparation, name, self.vocab_size)
        return self.preparation.model_cost(name, self.tokenizer)

    def prepared(self, name: str) -> KnownStage:
        """A stage on its data."""
        assert self.tokenizer is not None
        prepared = prepare_stage(self.preparation, name, self.tokenizer, self.console)
        cost = self.cost(name)
        planned = self.preparation.planned(name, self.tokenizer, prepared.data, prepared.stage, prepared.plan)
        planned = replace(planned, capability=self.capability, cpu_has_bf16=self.cpu_has_bf16)
        runtime = self.preparation.recipe.runtime
        inputs = replace(
            stage_inputs(prepared, cost, runtime, starts_fresh=planned.starts_fresh),
            batch=self.preparation.recipe.stages[name].batch,
            is_for_this_machine=self.preparation.for_this_machine,
        )
        return KnownStage(inputs, plan_findings(planned), prepared.data.report.lines())

    def assumed(self, name: str, tokens: int) -> KnownStage:
        """A stage on `tokens` tokens that are not at hand."""
        recipe, preparation = self.preparation.recipe, self.preparation
        stage, train = recipe.stages[name], assumed_rows(recipe.stages[name], tokens, preparation.seed(name))
        cost = self.cost(name)
        judges = reward_model_costs(recipe, name, self.cost)
        batch, _ = sized_batch(divided_batch(stage.batch, train.packed_length), stage.kind, stage.duration, train)
        plan, horizon, resolved = plan_stage(stage.model_copy(update={"batch": batch}), train, cost)
        inputs = StageInputs(
            stage=resolved,
            plan=plan,
            horizon=horizon,
            train=train,
            validation=None,
            cost=cost,
            runtime=recipe.runtime,
            trained=trained_parameters(resolved, cost, train),
            starts_fresh=preparation.start_models.of_stage(name).are_fresh,
            reward_models=sum(4.0 * one.parameters().total for one in judges.values()),
            batch=stage.batch,
            is_for_this_machine=False,
        )
        planned = PlannedStage(name=name, recipe=recipe, stage=resolved, plan=plan, train=train, validation=None, report=None,
                               cost=cost, starts_fresh=inputs.starts_fresh, capability=self.capability,
                               cpu_has_bf16=self.cpu_has_bf16)  # fmt: skip
        return KnownStage(inputs, plan_findings(planned), [])


def _stage(name: str, known: KnownStage, targets: Sequence[Target], probe: Probe | None) -> StageForecast:
    inputs, probed = known.inputs, None if probe is None else probe.stages[name]
    bands = BandInputs(stage=inputs.stage, plan=inputs.plan, cost=inputs.cost, starts_fresh=inputs.starts_fresh)
    return StageForecast(
        name=name,
        inputs=inputs,
        work=work_of(inputs, targets[0].precision),
        kv_bytes=inputs.cost.kv_bytes(1),
        bands=bands_of(bands),
        findings=known.findings,
        data=known.data,
        devices=[stage_on_device(inputs, target, probed if target.is_here else None) for target in targets],
    )


def check_files(recipe: Recipe) -> None:
    """Raise FledgeError for files of tests and evaluation sets that a run would miss."""
    from fledge.evaluate.prompt_tests import load_cases
    from fledge.evaluate.sets.in_stage import load_stage_sets

    for name, stage in recipe.stages.items():
        if stage.prompt_tests is not None:
            load_cases(Path(stage.prompt_tests.prompts))
        load_stage_sets(recipe, name)
