"""The doctor that watches a stage: how often it looks."""

from typing import Annotated, Any

from pydantic import Field

from fledge.recipe.sections.base import ConfigModel


class DoctorConfig(ConfigModel):
    """The rules of `fledge doctor` while a stage trains: they read the first batches before the first step, and the events so
    far every `every` steps."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=100,
        description="steps between two looks at the events; 20 and 50 steps after the start it looks too, and at the end; "
        "longer where looking would take more than 0.5 % of the time; 0: never",
    )


def as_doctor(value: Any) -> Any:
    """`false` is short for `{every: 0}`, and `true` for the defaults."""
    return {} if value is True else {"every": 0} if value is False else value
