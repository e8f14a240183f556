"""Who is told when something is wrong."""

from typing import Annotated, Literal

from pydantic import Field

from fledge.recipe.sections.base import ConfigModel


class WebhookConfig(ConfigModel):
    """A receiver of alerts, posted as JSON. `${NAME}` in url and headers is read from the environment, so that no secret is
    kept with the run."""

    url: Annotated[str, Field(pattern=r"^(https?://|\$\{)")]
    headers: dict[str, str] = {}
    format: Literal["fledge", "slack", "feishu", "dingtalk", "wecom"] = "fledge"


class AlertsConfig(ConfigModel):
    """Alerts go to the console and into events.jsonl; and from `level` on to a file and a webhook, where they are named."""

    level: Literal["info", "warning", "error"] = "warning"
    file: str | None = None
    webhook: WebhookConfig | None = None
