"""What the sections of a recipe share."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fledge.recipe.units import share as as_share

Share = Annotated[float, Field(ge=0, lt=1)]
Percent = Annotated[Share, BeforeValidator(as_share)]
Positive = Annotated[int, Field(gt=0)]


class ConfigModel(BaseModel):
    """A part of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def word_or_number(value: object) -> str:
    """For fields that take a word or a number: which of both this is."""
    return "word" if isinstance(value, str) and not value.isdigit() else "number"
