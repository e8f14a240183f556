"""Alerts: which events are reported, and to whom."""

from typing import Annotated, Literal

from pydantic import Field

from fledge.recipe.sections.base import ConfigModel, PathText


class WebhookConfig(ConfigModel):
    """An HTTP receiver of alerts, posted as JSON. `${NAME}` in url and headers is read from the environment, so that no
    secret is stored with the run."""

    url: Annotated[str, Field(pattern=r"^(https?://|\$\{)")]
    headers: dict[str, str] = {}
    format: Literal["fledge", "slack", "feishu", "dingtalk", "wecom"] = "fledge"


class AlertsConfig(ConfigModel):
    """Alerts go to the console and events.jsonl; from `level` on also to a file and a webhook, if configured."""

    level: Literal["info", "warning", "error"] = "warning"
    file: PathText | None = None
    webhook: WebhookConfig | None = None
