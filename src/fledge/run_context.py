"""What the stages of a run share."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from fledge.distributed.context import DistributedContext
from fledge.evaluate.prompt_tests import Case
from fledge.evaluate.sets.base import EvaluationSet
from fledge.model.protocol import LanguageModel
from fledge.recipe import Recipe
from fledge.recipe.resume_policy import Change
from fledge.run import Console, StageDirectory
from fledge.run.alerts import Alerts
from fledge.run.startup import StartupTimer
from fledge.run.stopping import SignalHandler
from fledge.tokenizer import Tokenizer

AfterStage = Callable[[str, LanguageModel, Tokenizer, StageDirectory], None]


@dataclass(kw_only=True)
class RunContext:
    """The objects that all stages of a run share."""

    recipe: Recipe
    console: Console
    tokenizer: Tokenizer
    stopping: SignalHandler
    alerts: Alerts
    prompt_test_cases: dict[str, list[Case]]  # by stage
    evaluation_sets: dict[str, list[EvaluationSet]]  # by stage; of the main process
    ranks: DistributedContext
    startup: StartupTimer | None
    after_stage: AfterStage | None = None
    recipe_changes: list[Change] = field(default_factory=list)  # since the run began
    adopt_recipe: Callable[[], None] = lambda: None  # records the changes; called when a stage goes on under them
    measure_again: bool = False  # whether settings of the machine are among the changes
    token_bytes: torch.Tensor | None = None  # [V], bytes of each token's text
    micro_steps: Mapping[str, int] = field(default_factory=dict)  # by stage, that compiling is weighed against; else its own

    def timed(self, name: str) -> AbstractContextManager[None]:
        """A context whose time counts as this phase of the time before the first step."""
        return nullcontext() if self.startup is None else self.startup.phase(name)

    def take_startup_report(self) -> StartupTimer | None:
        """The timer of the time before the first step; None after the first call."""
        startup, self.startup = self.startup, None
        return startup
