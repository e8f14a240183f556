"""The rules of the guards that compare one figure with a bound."""

import math

from fledge.monitor.rules import Event, GuardTrigger, Rule, trigger
from fledge.recipe.sections.guards import DiskGuard, PassRateGuard, RepetitionGuard, TimeGuard
from fledge.run.console import duration


class Threshold(Rule):
    """Interface of the rules that compare one figure with a bound: they trigger when the figure crosses the bound, and again
    only after it was back on the right side."""

    kind: str  # of the events with the figure
    key: str

    def __init__(self) -> None:
        self._is_crossed = False

    def _crossed(self, value: float) -> bool:
        """Whether the figure is on the wrong side."""
        raise NotImplementedError

    def _crossing(self, value: float, event: Event) -> GuardTrigger:
        """The trigger for a figure that has crossed the bound."""
        raise NotImplementedError

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger when the figure crosses the bound."""
        value = event.get(self.key) if event["kind"] == self.kind else None
        if value is None:
            return None
        was_crossed, self._is_crossed = self._is_crossed, self._crossed(value)
        return self._crossing(value, event) if self._is_crossed and not was_crossed else None


class LowDisk(Threshold):
    """Triggers when the free space on the disk of the run is below `min_free`."""

    kind, key = "system", "system/disk_free_bytes"

    def __init__(self, config: DiskGuard) -> None:
        super().__init__()
        self.action, self.min_free = config.action, config.min_free or 0

    def _crossed(self, value: float) -> bool:
        return value < self.min_free

    def _crossing(self, value: float, event: Event) -> GuardTrigger:
        message = (
            f"{value / 2**30:.2f} GiB are free on the disk of the run, less than min_free ({self.min_free / 2**30:.2f} GiB)"
        )
        return trigger("disk", self.action, message, event, evidence={"free": value}, state_is_valid=True)


class MaxTime(Threshold):
    """Triggers when the stage has trained for `max_time`."""

    kind, key = "system", "system/seconds"

    def __init__(self, config: TimeGuard) -> None:
        super().__init__()
        self.action, self.max_time = config.action, math.inf if config.max_time is None else config.max_time

    def _crossed(self, value: float) -> bool:
        return value >= self.max_time

    def _crossing(self, value: float, event: Event) -> GuardTrigger:
        message = f"the stage has trained for {duration(value)}, its max_time is {duration(self.max_time)}"
        return trigger("time", self.action, message, event, stop_scope="stage")


class PromptTestThreshold(Threshold):
    """Interface of the rules that read the prompt tests. A model that has not learned yet fails them, so before the last step
    they trigger only if the figure was on the right side before."""

    kind = "prompt_tests"

    def __init__(self) -> None:
        super().__init__()
        self._total_steps, self._was_right = 0, False

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger when the figure gets worse than the bound, or is worse after the last step."""
        if event["kind"] == "start":
            self._total_steps = event["steps"]
        value = event.get(self.key) if event["kind"] == self.kind else None
        if value is None:
            return None
        self._was_right = self._was_right or not self._crossed(value)
        return super().update(event) if self._was_right or event["step"] >= self._total_steps else None


class PassRate(PromptTestThreshold):
    """Triggers when the fraction of passing prompt tests is below `min_pass_rate`."""

    key = "prompt_tests/pass_rate"

    def __init__(self, config: PassRateGuard) -> None:
        super().__init__()
        self.config = config

    def _crossed(self, value: float) -> bool:
        return value < self.config.min_pass_rate

    def _crossing(self, value: float, event: Event) -> GuardTrigger:
        passed, cases = event["prompt_tests/passed"], event["prompt_tests/cases"]
        message = f"{passed} of {cases} prompt tests pass, less than {self.config.min_pass_rate:.0%}"
        evidence = {"pass_rate": value, "newly_failing": event.get("prompt_tests/newly_failing", [])}
        return trigger("pass_rate", self.config.action, message, event, evidence=evidence, stop_scope="stage")


class Repetition(PromptTestThreshold):
    """Triggers when the mean repetition of the answers to prompt tests is above `max_repetition`."""

    key = "prompt_tests/repetition"

    def __init__(self, config: RepetitionGuard) -> None:
        super().__init__()
        self.config = config

    def _crossed(self, value: float) -> bool:
        return value > self.config.max_repetition

    def _crossing(self, value: float, event: Event) -> GuardTrigger:
        message = f"answers to the prompt tests are repetitive: {value:.0%} of their n-grams are repeated"
        return trigger("repetition", self.config.action, message, event, evidence={"repetition": value}, stop_scope="stage")
