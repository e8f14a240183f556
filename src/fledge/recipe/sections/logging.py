"""The section `logging` of a recipe: where the figures of a run are written besides events.jsonl."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fledge.recipe.sections.base import ConfigModel, Positive

PROJECT = "fledge"


def _section(value: object) -> object:
    """`true` is the section with its defaults, `false` is none."""
    return {} if value is True else None if value is False else value


class WandbConfig(ConfigModel):
    """Weights & Biases. Nothing is sent unless `mode` is online."""

    project: str = PROJECT
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    tags: tuple[str, ...] = ()


class TrackioConfig(ConfigModel):
    """trackio. Nothing is sent unless `space` names a Space of the Hugging Face hub."""

    project: str = PROJECT
    space: str | None = None


class LoggingConfig(ConfigModel):
    """Logging during training. events.jsonl is always written."""

    every_steps: Positive = Field(
        default=10,
        description="steps between console lines, and between measurements of update ratios and gradient noise",
    )
    tensorboard: bool = False
    wandb: Annotated[WandbConfig | None, BeforeValidator(_section)] = None
    trackio: Annotated[TrackioConfig | None, BeforeValidator(_section)] = None
