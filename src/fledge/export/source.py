"""What is exported: a model with its tokenizer and config.json, and the run that it comes from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fledge.errors import FledgeError
from fledge.generation.loading import load_model_and_tokenizer
from fledge.model.adapters import merge_adapter
from fledge.model.hf_config import read_config_json
from fledge.model.locate import locate_model
from fledge.model.protocol import LanguageModel
from fledge.run.console import Log
from fledge.tokenizer import Tokenizer

MERGE_TEXT = "The quick brown fox jumps over 13 lazy dogs. 一只敏捷的狐狸跳过了懒狗。"  # read before and after merging
MERGE_TOLERANCE = 0.01  # nats; float32 changes about 1e-4


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A loaded model: the folder that it comes from, its run and stage (None for a model outside of a run), and its content.

    `config` is config.json as its file has it. `has_adapter`: whether the folder has an adapter, merged or not.
    """

    folder: Path
    run: Path | None
    stage: str | None
    model: LanguageModel
    tokenizer: Tokenizer
    config: dict[str, Any]
    has_adapter: bool = False

    @property
    def name(self) -> str:
        """The name of the model in file names: run and stage, else the name of the folder."""
        return model_name(self.folder)

    @property
    def architecture(self) -> str:
        """The class of transformers that config.json names."""
        return str((self.config.get("architectures") or ["?"])[0])


def find_run(folder: Path) -> tuple[Path, str] | None:
    """The run directory and the stage that a model folder lies in; None if it lies in no run."""
    for parent in folder.resolve().parents:
        if (parent / "recipe.yaml").is_file():
            return parent, folder.resolve().relative_to(parent).parts[0]
    return None


def model_name(folder: Path) -> str:
    """The name of a model folder: of its run and stage, else its own."""
    found = find_run(folder)
    text = folder.resolve().name if found is None else f"{found[0].name}-{found[1]}"
    return re.sub(r"[^\w.-]+", "-", text)


def load_source(location: str, log: Log, merge: bool = True) -> ExportSource:
    """The model of a run, stage, checkpoint, model directory or GGUF file. `merge`: add an adapter to the weights. Raises
    FledgeError if there is none, and if a token of the tokenizer has no row in the model."""
    folder = locate_model(location, log)
    model, tokenizer = load_model_and_tokenizer(folder, log)
    config_folder, has_adapter = folder, model.adapter is not None
    if model.adapter is not None:
        config_folder = model.adapter.base or folder
        if merge:
            _merge(model, tokenizer, folder, log)
    run = find_run(folder)
    return ExportSource(
        folder=folder,
        run=run[0] if run else None,
        stage=run[1] if run else None,
        model=model.eval(),
        tokenizer=tokenizer,
        config=read_config_json(config_folder),
        has_adapter=has_adapter,
    )


@torch.no_grad()
def _merge(model: LanguageModel, tokenizer: Tokenizer, folder: Path, log: Log) -> None:
    """Add an adapter to the weights, and say by how much log-probabilities change, which should be rounding only.

    Raises FledgeError where it is more."""
    answer = [] if tokenizer.decoder_start is None else tokenizer.encode(MERGE_TEXT)  # the rest has no log-probabilities
    tokens = torch.tensor([[*tokenizer.encode_prefix(MERGE_TEXT), *answer]])
    model.eval()
    before = model.logits(model(tokens)).log_softmax(-1)
    merge_adapter(model)
    difference = float((model.logits(model(tokens)).log_softmax(-1) - before).abs().max())
    if not difference <= MERGE_TOLERANCE:
        what = f"merging the adapter changes log-probabilities by up to {difference:.2g}"
        raise FledgeError(what, where=str(folder), hint="the weights are damaged, or too large to be added in float32")
    log(f"the adapter is merged into its base model: {tokens.numel()} × V log-probabilities differ by at most {difference:.1g}")
