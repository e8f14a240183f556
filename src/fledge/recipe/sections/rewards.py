"""The rewards of a policy stage: rules, Python functions and reward models, each with a weight."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fledge.recipe.sections.base import ConfigModel, Name, PathText, Pattern, Positive

OWNERS = {  # parameter -> the rule that it belongs to, which cannot do without it (True) or can (False)
    "language": ("language", True),
    "pattern": ("regex", True),
    "min_tokens": ("length", False),
    "max_tokens": ("length", False),
    "function": ("function", True),
    "model": ("model", True),
}


def _check_function(text: str) -> str:
    module, separator, function = text.partition(":")
    if not (separator and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"write MODULE:FUNCTION, such as my_rewards:brevity, not '{text}'")
    return text


class RewardConfig(ConfigModel):
    """One reward of an answer. `rule` is what is rewarded; see docs/reinforcement.md."""

    rule: Literal["exact_match", "valid_json", "field_f1", "language", "length", "repetition", "regex", "function", "model"]
    name: Name | None = Field(default=None, description="in metrics; null: the rule, or the name of the function")
    weight: float = Field(default=1.0, description="factor in the sum of the rewards; negative: a penalty")
    language: str | None = Field(default=None, description="language only: such as zh or en")
    pattern: Pattern | None = Field(default=None, description="regex only: matches somewhere in the answer")
    min_tokens: Positive | None = Field(default=None, description="length only: a shorter answer gets less than 1")
    max_tokens: Positive | None = Field(default=None, description="length only: a longer answer gets less than 1")
    function: Annotated[str, AfterValidator(_check_function)] | None = Field(
        default=None, description="function only: MODULE:FUNCTION, found from the working directory too"
    )
    model: PathText | None = Field(
        default=None,
        description="model only: a reward model with the run's tokenizer: an earlier stage of the recipe by its name, or the "
        "path of a run, stage, checkpoint or directory",
    )

    @property
    def label(self) -> str:
        """The name in metrics."""
        return self.name or (self.function or self.rule).rpartition(":")[2]

    @model_validator(mode="before")
    @classmethod
    def _imply_rule(cls, value: object) -> object:
        """A rule alone is short for a mapping; a function or a model implies its rule."""
        if isinstance(value, str):
            return {"rule": value}
        named = [rule for rule in ("function", "model") if isinstance(value, dict) and value.get(rule) is not None]
        return {"rule": named[0], **value} if isinstance(value, dict) and named else value

    @model_validator(mode="after")
    def _check_parameters(self) -> "RewardConfig":
        for key, (rule, is_needed) in OWNERS.items():
            given = getattr(self, key) is not None
            if given and self.rule != rule:
                raise ValueError(f"{key} belongs to the rule {rule}; this rule is {self.rule}")
            if is_needed and not given and self.rule == rule:
                raise ValueError(f"the rule {rule} needs {key}")
        if self.rule == "length" and self.min_tokens is None and self.max_tokens is None:
            raise ValueError("the rule length needs min_tokens, max_tokens or both")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if not self.weight:
            raise ValueError("a reward of weight 0 has no effect: leave it out")
        return self


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _check_labels(rewards: list[RewardConfig]) -> list[RewardConfig]:
    twice = [label for label, count in Counter(reward.label for reward in rewards).items() if count > 1]
    if twice:
        raise ValueError(f"two rewards are called '{twice[0]}': give each a name of its own")
    return rewards


Rewards = Annotated[list[RewardConfig], BeforeValidator(_as_list), AfterValidator(_check_labels), Field(min_length=1)]
