"""The figure that trials are compared by: which stages measure it, which way is better, and which keys define it, so that their
values cannot be compared by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from fledge.errors import FledgeError
from fledge.evaluate.records import AFTER, read_set_result
from fledge.evaluate.sets.generated import AnswersSet, GenerationSet, PromptSet
from fledge.metric_names import METRIC_NAMES
from fledge.recipe import Recipe, Stage
from fledge.recipe.sections.evaluation_sets import SetKind
from fledge.recipe.sections.policy import PolicySettings
from fledge.run.directory import StageDirectory
from fledge.sweep.recipes import TrialRecipes

LOSS, REWARD, RIGHT, LIKELIER = "loss", "reward", "rewards/accuracies", "logps/accuracies"
BITS = "bits_per_byte"
SHARES = (RIGHT, LIKELIER)  # of right answers or pairs; their names hold a stroke, and no evaluation set is meant
PER_TOKEN = ("perplexity", "token_accuracy")
OF_TOKENS = (LOSS, *PER_TOKEN, BITS)

MEASURED: Mapping[str, tuple[str, ...]] = {
    "pretrain": OF_TOKENS,
    "sft": OF_TOKENS,
    "preference": (*OF_TOKENS, RIGHT, LIKELIER),
    "kto": (*OF_TOKENS, RIGHT),
    "reward": (LOSS, RIGHT),
    "grpo": OF_TOKENS,
}
"""By kind of stage: what its objective measures on validation data. Generated answers have further metrics."""

GOALS: Mapping[str, str] = {"grpo": REWARD}
"""By kind of stage: what trials are compared by where nothing is named; others by their loss."""

DEFINED_BY: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "preference": {
        LOSS: ("loss_type", "beta", "simpo_gamma", "label_smoothing", "sft_loss_weight"),
        RIGHT: ("loss_keys.has_reference",),  # without one, rewards are not those that the model has moved by
    },
    "kto": {LOSS: ("beta", "desirable_weight", "undesirable_weight")},
    "reward": {LOSS: ("center_rewards_coefficient",)},
    "grpo": {REWARD: ("rewards",)},
}
"""By kind of stage and metric: what of the stage defines the metric. Under other values it is another figure."""

INSTEAD: Mapping[str, tuple[str, ...]] = {
    "pretrain": (BITS,),
    "sft": (BITS,),
    "preference": (RIGHT, LIKELIER),
    "kto": (RIGHT,),
    "reward": (RIGHT,),
    "grpo": ("exact_match",),
}
"""By kind of stage: what also says how good it is, the best first."""

OF_SETS: Mapping[SetKind, tuple[str, ...]] = {
    "answers": tuple(AnswersSet.metrics),
    "prompts": (PromptSet.own_rate, *PromptSet.metrics),
    "generation": (GenerationSet.own_rate, *GenerationSet.metrics),
    "text": (LOSS, "perplexity", BITS),
    "minimal_pairs": ("accuracy",),
    "multiple_choice": ("accuracy", "accuracy_norm"),
}
"""By kind of evaluation set: its metrics besides those that its settings name. Those of other kinds are not known before."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The figure that trials are compared by: a metric on validation data, or `SET/METRIC` of an evaluation set."""

    name: str

    @classmethod
    def of(cls, name: str | None, stage: Stage) -> "Metric":
        """The metric of this name; None: the goal of the stage."""
        return cls(name=GOALS.get(stage.kind, LOSS) if name is None else name)

    @property
    def parts(self) -> tuple[str, str]:
        """The evaluation set, empty for a metric on validation data, and the metric itself."""
        if self.name in SHARES:
            return "", self.name
        set_name, _, name = self.name.rpartition("/")
        return set_name, name

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better; of a set, as its metric says. FledgeError where neither way is better, or the
        metric is unknown."""
        name = self.parts[1]
        if name in SHARES:
            return True
        facts = METRIC_NAMES.get(name)
        if facts is None or facts.higher_is_better is None:
            known = ", ".join(one for one, facts in METRIC_NAMES.items() if facts.higher_is_better is not None)
            raise FledgeError(f"'{self.name}' is no metric of which one way is better", where="--metric",
                              hint=f"one of {known}, {', '.join(SHARES)}, or SET/METRIC of an evaluation set")  # fmt: skip
        return facts.higher_is_better

    def value(self, directory: StageDirectory) -> float:
        """The value after the stage. Raises FledgeError if it was not measured."""
        set_name, name = self.parts
        if set_name:
            file = directory.set_results(AFTER) / f"{set_name}.json"
            metrics = read_set_result(file, with_items=False).metrics
            found = {key: metric.value for key, metric in metrics.items()}
        else:
            found = directory.metrics(AFTER)
        if name not in found:
            raise FledgeError(f"the metric '{self.name}' was not measured", where=str(directory.root),
                              hint=f"there are {', '.join(found) or 'none: set data.validation'}")  # fmt: skip
        return float(found[name])

    # -- before anything is trained -----------------------------------------------------------------------------------

    def check(self, recipes: TrialRecipes) -> None:
        """Raise FledgeError if the measured stage does not measure the metric under some value that is searched, or if a
        searched key defines the metric, so that its values cannot be compared."""
        self._check_is_measured(recipes.given(), recipes.stage)
        for one in recipes.space:
            tried = [recipes.given({one.key: value}) for value in one.corners()]
            for recipe in tried:
                self._check_is_measured(recipe, recipes.stage)
            if not self._varies(tried, recipes.stage):
                continue
            others = [Metric(name=other) for other in INSTEAD[tried[0].stages[recipes.stage].kind]]
            shown = [f"--metric {other.name}" for other in others if not other._varies(tried, recipes.stage)]
            raise FledgeError(
                f"'{one.key}' defines the metric '{self.name}': trials with different values cannot be compared by it",
                where=f"--search {one.describe()}",
                hint=f"compare them by what they do not define: {', '.join([*shown, '--metric SET/METRIC'])}",
            )

    def _check_is_measured(self, recipe: Recipe, stage: str) -> None:
        section = recipe.stages[stage]
        set_name, name = self.parts
        known = metrics_of_set(section, set_name) if set_name else metrics_of_stage(section)
        if known is None or name in known:
            return
        if set_name not in ("", *section.evaluation.sets):
            raise FledgeError(f"the stage has no evaluation set '{set_name}'", where="--metric",
                              hint=f"write it into stages.{stage}.evaluation.sets")  # fmt: skip
        where = f"stages.{stage}.evaluation." + (f"sets.{set_name}" if set_name else "generated_answers")
        raise FledgeError(f"the stage {stage} does not measure '{self.name}'", where="--metric",
                          hint=f"it measures {', '.join(known)}; metrics of answers are written into {where}")  # fmt: skip

    def _varies(self, recipes: Sequence[Recipe], stage: str) -> bool:
        """Whether the metric is another figure under some of these recipes."""
        found = [self._definition(recipe, recipe.stages[stage]) for recipe in recipes]
        return any(one != found[0] for one in found)

    def _definition(self, recipe: Recipe, stage: Stage) -> list[Any]:
        """What defines the metric under a recipe."""
        set_name, name = self.parts
        of_texts = bool(set_name) or stage.loss_unit == "nats/token" or stage.answers_per_example > 1
        tokenizer = recipe.tokenizer if name in PER_TOKEN or (name == LOSS and of_texts) else None
        if set_name:
            return [tokenizer, stage.evaluation.sets.get(set_name)]
        fields = DEFINED_BY.get(stage.kind, {}).get(name, ())
        return [stage.kind, tokenizer, *(attrgetter(field)(stage) for field in fields)]


def metrics_of_stage(stage: Stage) -> tuple[str, ...]:
    """The metrics that a stage may have on validation data; which of the answers' have a value depends on the rows."""
    answers = stage.evaluation.generated_answers
    if answers is None:
        return MEASURED[stage.kind]
    return (*MEASURED[stage.kind], *answers.scores, *((REWARD,) if isinstance(stage, PolicySettings) else ()))


def metrics_of_set(stage: Stage, name: str) -> tuple[str, ...] | None:
    """The metrics that an evaluation set of a stage may have, none where there is no such set; None: not known."""
    found = stage.evaluation.sets.get(name)
    if found is None:
        return ()
    known = OF_SETS.get(found.kind)
    return None if known is None else (*found.metrics, *known)
