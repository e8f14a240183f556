"""Faults of files after training: a checkpoint that was cut, a chat template that serving would read another way."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fledge.doctor_bench.condition import Fault, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.tokenizer.tokenizer import Tokenizer


def _truncate(setup: RunSetup, share: float) -> None:
    """The weights of the last checkpoint lose their end."""
    folders = sorted(setup.stage_directory.glob("checkpoints/step-*/model"))
    for file in folders[-1].glob("*.safetensors") if folders else ():
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])


def _other_template(setup: RunSetup, change: tuple[str, str]) -> AbstractContextManager[None]:
    """The template that is saved with each model writes other turns than those of training."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def save(self: Tokenizer, folder: Path) -> None:
            original(self, folder)
            if folder.name == "model":
                for name in ("chat_template.jinja", "tokenizer_config.json"):
                    _rewrite(folder / name, *change)

        return save

    return wrapping(Tokenizer, "save", make)


def _rewrite(file: Path, before: str, after: str) -> None:
    if file.suffix == ".jinja":
        file.write_text(file.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
        return
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "chat_template" in config:
        config["chat_template"] = config["chat_template"].replace(before, after)
        config["fledge"]["template"] = "tokenizer"
        file.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


FAULTS = (
    Fault(
        name="checkpoint truncated", category="machine", shapes=("pretrain", "sft"), levels={"90%": 0.9, "20%": 0.2},
        finish=_truncate, yardstick="always",
    ),
    Fault(
        name="template of serving differs", category="template", shapes=("sft",),
        levels={"no line break": ("assistant\n", "assistant"), "other role": ("assistant\n", "bot\n")},
        patch=_other_template, yardstick="always", is_silent=True,
    ),
)  # fmt: skip
