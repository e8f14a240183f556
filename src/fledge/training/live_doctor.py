"""The doctor while a stage trains: the rules of `fledge.diagnosis` on the events so far, and on the first batches."""

import time
from collections.abc import Callable, Sequence

from fledge.data import Batch, PackedDataset
from fledge.diagnosis.case import Case, Figure
from fledge.diagnosis.cause import Diagnosis
from fledge.errors import first_line
from fledge.findings import Finding
from fledge.model.protocol import LanguageModel
from fledge.monitor.rules import Event
from fledge.monitor.run_logger import RunLogger
from fledge.recipe.schema import Stage
from fledge.run import StageDirectory
from fledge.tokenizer import Tokenizer
from fledge.training.batch_source import StepBatch
from fledge.training_log import TrainingSettings
from fledge.training_log.event_columns import EventColumns
from fledge.training_log.fledge_run import EVERY_SYSTEM_EVENT, stage_log
from fledge.training_log.fledge_settings import stage_settings

EARLY_STEPS = (0, 20, 50)
"""Steps at which the doctor looks besides every `every` steps: faults of data and targets show before the start or soon."""
FIRST_UPDATES = 4  # whose batches are looked at
FIRST_POSITIONS = 100_000  # of these batches, after which no more of them are built
FREE_SECONDS = 1.0  # of processor time in a process, in which the doctor may look whatever the share
MOST_SHARE = 0.005  # of the time since the first look, beyond these
NOT_JUDGED = frozenset({"router/load"})
"""Figures that no rule reads, and that are many numbers a step."""
TOLD = frozenset({"certain", "likely"})
"""How sure a cause must be to be told while a stage trains."""
OF_THE_PLAN = frozenset({"too few updates"})
"""Causes that stand in the plan, which warns of them before the run: training shows nothing more about them."""

GUARDS = {
    "no finite numbers": ("non_finite",),
    "not a number": ("non_finite",),
    "bad numbers in single rows": ("non_finite",),
    "fp16 overflow": ("overflow",),
    "divergence": ("divergence",),
    "loss spikes": ("loss_spike", "grad_spike"),
    "exploding gradient": ("grad_spike",),
    "too many epochs": ("validation_increase",),
    "validation rises": ("validation_increase",),
    "likelihood displacement": ("displacement",),
    "length bias in preferences": ("length_bias",),
    "margins flat": ("no_preference",),
    "accuracy below a half": ("chance_accuracy",),
    "groups without variance": ("equal_groups",),
    "entropy collapse": ("entropy_collapse",),
    "completions truncated": ("truncated",),
    "answers cut": ("truncated",),
    "reward hacking": ("reward_hacking",),
    "length hacking": ("length_hacking",),
    "answers repeat themselves": ("repetition",),
    "updates become slower": ("throughput",),
}
"""Cause or symptom → the guards that say the same."""
Rebuild = Callable[[int], StepBatch]
"""This process's share of the batch of a step."""


class LiveDoctor:
    """Looks at a stage while it trains, on the main process, and tells what is wrong: each cause once, and again if it became
    surer or graver. It sees the events as an observer of the logger, reads no file of events, draws no random numbers, and
    changes nothing that is learned.

    A cause that is certain is told at once. One that is only likely is told when two looks in a row find it, or the last one
    does: early figures are noisy.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        train: PackedDataset,
        validation: PackedDataset | None,
        tokenizer: Tokenizer,
        directory: StageDirectory,
        model: LanguageModel,
        total_steps: int,
    ) -> None:
        self.stage, self.train, self.validation, self.tokenizer = stage, train, validation, tokenizer
        self.directory, self.model, self.total_steps = directory, model, total_steps
        self.every = stage.doctor.every  # 0 after an examination has failed
        self._first: dict[str, Figure] | None = None  # figures of the first batches
        self._settings: TrainingSettings | None = None
        self._began: float | None = None  # of the first look
        self._spent = self._last_cost = 0.0  # seconds of processor time: a busy machine makes no look longer
        self.replay(())

    # -- the events -------------------------------------------------------------------------------------------------

    def replay(self, events: Sequence[Event]) -> None:
        """Forget what was seen, and take these events. What they tell was told."""
        self.columns = EventColumns(EVERY_SYSTEM_EVENT, NOT_JUDGED)
        self._told: dict[str, tuple[bool, bool]] = {}  # cause -> whether as an error, whether as certain
        self._guards: dict[str, int] = {}  # guard that triggered -> step
        self._found_before: frozenset[str] = frozenset()
        self._last_step: int | None = None
        for event in events:
            self.update(event)

    def update(self, event: Event) -> None:
        """Take the next event of the stage."""
        self.columns.take(event)
        if event["kind"] == "finding":
            self._told[str(event.get("cause"))] = event.get("severity") == "error", event.get("confidence") == "certain"
        elif event["kind"] == "guard":
            self._guards.setdefault(str(event.get("check")), event["step"])

    # -- looking ----------------------------------------------------------------------------------------------------

    def look(self, step: int, logger: RunLogger, rebuild: Rebuild | None, *, is_last: bool = False) -> float:
        """Examine the stage after `step` updates if a look is due and there is time for it, and tell what is found; returns the
        seconds that it took. `rebuild`: None where batches depend on the weights. `is_last`: whether nothing follows.

        An error in the examination ends the watching and not the run; it is told.
        """
        if not self._is_due(step, is_last):
            return 0.0
        started, cpu_started = time.perf_counter(), time.thread_time()
        self._began = started if self._began is None else self._began
        self._last_step = step
        try:
            self._examine(step, logger, rebuild, is_last)
        except Exception as error:  # whatever it is: the run is worth more than its examination
            self.every = 0
            logger.report(_failed(error), step)
        self._last_cost = time.thread_time() - cpu_started
        self._spent += self._last_cost
        return time.perf_counter() - started

    def _is_due(self, step: int, is_last: bool) -> bool:
        if not self.every or self._last_step == step:
            return False
        if is_last or (self._began is None and step == 0):
            return True
        at_step = step % self.every == 0 or step in EARLY_STEPS
        elapsed = 0.0 if self._began is None else time.perf_counter() - self._began
        return at_step and self._spent + self._last_cost <= FREE_SECONDS + MOST_SHARE * elapsed

    def _examine(self, step: int, logger: RunLogger, rebuild: Rebuild | None, is_last: bool) -> None:
        from fledge.diagnosis.diagnose import diagnose  # here: a run without the doctor does not wait for its rules

        case = Case(log=stage_log(self.directory.root, self.columns, self._known_settings(), ended=is_last))
        case.add("data", self._first_figures(step, rebuild))
        found = {one.cause: one for one in diagnose(case).found if _is_told(one)}
        for cause, one in found.items():
            finding = one.sign.finding
            is_settled = finding.confidence == "certain" or is_last or cause in self._found_before
            marks = finding.severity == "error", finding.confidence == "certain"
            if is_settled and any(now > before for now, before in zip(marks, self._told.get(cause, (-1, -1)), strict=True)):
                self._tell(one, step, logger)
        self._found_before = frozenset(found)

    def _known_settings(self) -> TrainingSettings:
        """The settings of the stage by its files, with the sizes of the model, which no checkpoint tells yet."""
        if self._settings is None:
            vocab_size, hidden_size = float(self.model.vocab_size), float(self.model.config.hidden_size)
            origin = {"vocab_size": "the model", "hidden_size": "the model"}
            of_model = TrainingSettings(vocab_size=vocab_size, hidden_size=hidden_size, origin=origin)
            self._settings = stage_settings(self.directory.root)[0].updated(of_model)
        return self._settings

    def _first_figures(self, step: int, rebuild: Rebuild | None) -> dict[str, Figure]:
        """The figures of the batches of the next updates; measured once in a process."""
        if self._first is None:
            from fledge.diagnosis.data_figures import first_figures

            batches = self._batches(step, rebuild)
            self._first = first_figures(self.stage, self.train, batches, self.tokenizer, self.validation)
        return self._first

    def _batches(self, step: int, rebuild: Rebuild | None) -> list[Batch]:
        """Micro-batches of the next updates; of a stage whose model draws its answers, those of its prompts."""
        if rebuild is None:
            rows = self.stage.batch.micro_batch_rows
            return [self.train.batch(row * rows, rows) for row in range(FIRST_UPDATES)]
        batches: list[Batch] = []
        first = min(step, max(0, self.total_steps - FIRST_UPDATES))
        for one in range(first, min(first + FIRST_UPDATES, self.total_steps)):
            if sum(batch.num_tokens for batch in batches) >= FIRST_POSITIONS:
                break
            batches += rebuild(one).batches
        return batches

    # -- telling ----------------------------------------------------------------------------------------------------

    def _tell(self, one: Diagnosis, step: int, logger: RunLogger) -> None:
        """Write the `finding` event. What a guard has said already is not said again on the console and to receivers."""
        names = (one.cause, *(finding.check for finding in one.consequences))
        checks = dict.fromkeys(check for name in names for check in GUARDS.get(name, ()) if check in self._guards)
        more = {"cause": one.cause, "steps": one.sign.steps, "guards": list(checks)}
        if checks and any(check in self._guards for check in GUARDS.get(one.cause, ())):
            logger.write("finding", step, **one.sign.finding.as_dict(), **more)
            return
        logger.report(one.sign.finding, step, "finding", **more)
        logger.console.log(f"  → fledge doctor {self.directory.root.parent}")


def _is_told(one: Diagnosis) -> bool:
    finding = one.sign.finding
    return finding.severity != "info" and finding.confidence in TOLD and one.cause not in OF_THE_PLAN


def _failed(error: Exception) -> Finding:
    """The alert for an examination that failed."""
    return Finding(
        check="doctor",
        severity="warning",
        message=f"the doctor does not watch this stage any more: {type(error).__name__}: {first_line(error)}",
        hint="training goes on as before; `fledge doctor` on the run says more",
    )
