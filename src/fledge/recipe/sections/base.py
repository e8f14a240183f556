"""Types that the sections of a recipe share."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fledge.recipe.units import fraction as as_fraction

Fraction = Annotated[float, Field(ge=0, lt=1)]
FractionOrPercent = Annotated[Fraction, BeforeValidator(as_fraction)]
Positive = Annotated[int, Field(gt=0)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # a leading ~ is the home directory


class ConfigModel(BaseModel):
    """A section of the recipe: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def word_or_number(value: object) -> str:
    """The tag of a union of words and numbers: `word` or `number`."""
    return "word" if isinstance(value, str) and not value.isdigit() else "number"
