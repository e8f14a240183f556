"""The weights that a stage starts from: identified by a fingerprint, so that a resumed stage never takes others for them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from fledge.checkpoint.find import step_name
from fledge.errors import FledgeError
from fledge.model.adapter_files import load_adapter_weights
from fledge.model.adapters import adapter_weights
from fledge.model.protocol import LanguageModel
from fledge.run import StageDirectory, read_json, write_json
from fledge.run.file_shapes import StartRecord

Stamp = list[list[Any]]  # [name, bytes, modification time in ns] of each file


def weights_fingerprint(model: LanguageModel) -> str:
    """A hash of all weights with their names, the same in every process and on every device."""
    digest = xxhash.xxh3_64()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class StartWeights:
    """The start of a stage. `load_initial` loads the model that the recipe names, or makes a new one; `load` a model directory.

    `source`: the model directory that the recipe names; None: new weights. The fingerprint is in start.json of the stage.
    """

    directory: StageDirectory
    source: Path | None
    load_initial: Callable[[], LanguageModel]
    load: Callable[[Path], LanguageModel]
    log: Callable[[str], None]

    @property
    def _file(self) -> Path:
        return self.directory.root / "start.json"

    def _record(self) -> dict[str, Any]:
        """What start.json says; empty for a stage that has not begun, or was begun by an earlier version."""
        return read_json(self._file, StartRecord) if self._file.exists() else {}

    def begin(self, write: bool) -> tuple[LanguageModel, str]:
        """The start model of a stage without a checkpoint, and its fingerprint; `write`: record it.

        An evaluation of other weights, which the model's directory held when the stage was tried before, is removed."""
        model = self.load_initial()
        found, before = weights_fingerprint(model), self._record().get("weights")
        if write and before != found:
            if before is not None:
                self.log(f"note: {self.source or 'the model'} holds other weights than when this stage was tried before")
                (self.directory.evaluations / "before.json").unlink(missing_ok=True)
                shutil.rmtree(self.directory.set_results("before"), ignore_errors=True)
            source = None if self.source is None else str(self.source)
            write_json(self._file, {"weights": found, "source": source, "files": _stamp(self.source)})
        return model, found

    def resume(self) -> tuple[LanguageModel, str]:
        """The newest model that the stage has saved, whose weights the trainer replaces by those of the checkpoint that it goes
        on from, and the fingerprint of the weights that the stage began with."""
        record = self._record()
        if self.source is not None and record and _stamp(self.source) != record.get("files"):
            state = "has changed" if self.source.exists() else "is gone"
            self.log(f"note: {self.source} {state} since this stage began: it goes on from its own checkpoint")
        model = self._newest()
        if "weights" in record:
            return model, str(record["weights"])
        return model, weights_fingerprint(self.load_initial())

    def _newest(self) -> LanguageModel:
        """The newest saved model that can be loaded."""
        problem: FledgeError | None = None
        for path in reversed(self.directory.checkpoint_paths()):
            try:
                return self.load(path / "model")
            except FledgeError as error:
                problem = problem or error
        try:
            return self.load_initial()
        except FledgeError:
            raise problem or FledgeError("this stage has no checkpoint", where=str(self.directory.root)) from None

    def load_again(self, fingerprint: str) -> LanguageModel:
        """The start model of a stage that has begun: from its checkpoint of step 0, else from where the recipe says.

        Raises FledgeError if neither has the weights of the beginning."""
        first = self.directory.checkpoints / step_name(0) / "model"
        problems: list[str] = []
        for name, load in ((str(first), lambda: self.load(first)), (str(self.source or "new weights"), self.load_initial)):
            try:
                model = load()
            except FledgeError as error:
                problems.append(f"{name}: {error.what}")
                continue
            if weights_fingerprint(model) == fingerprint:
                return model
            problems.append(f"{name}: other weights")
        raise FledgeError(
            "the weights that this stage began with are needed, and are not there any more:"
            + "".join(f"\n  {problem}" for problem in problems),
            where=str(self.directory.root),
            hint=f"put the model back to {self.source} as it was, or start under another --name",
        )

    def load_recorded(self) -> LanguageModel:
        """The start model of a stage that has begun, as `load_again`, by the fingerprint in start.json."""
        record = self._record()
        if "weights" not in record:
            raise FledgeError(
                "an earlier version of fledge began this stage and did not record its weights", where=str(self._file)
            )
        return self.load_again(str(record["weights"]))

    def load_adapter_again(self, model: LanguageModel, fingerprint: str) -> dict[str, Tensor]:
        """Copies of the adapter's weights at the beginning of a stage that has begun, whose `model` keeps its own. Raises
        FledgeError if they are not there any more."""
        own = {name: tensor.clone() for name, tensor in adapter_weights(model).items()}
        try:
            load_adapter_weights(model, self.directory.checkpoints / step_name(0) / "model", finite=False)
            begun = {name: tensor.clone() for name, tensor in adapter_weights(model).items()}
            if weights_fingerprint(model) == fingerprint:
                return begun
        except (FledgeError, OSError):
            pass
        finally:
            for name, tensor in adapter_weights(model).items():
                tensor.copy_(own[name])
        return {name: tensor.clone() for name, tensor in adapter_weights(self.load_again(fingerprint)).items()}


def _stamp(source: Path | None) -> Stamp:
    """Size and time of the files of a model directory that decide what is loaded; empty if it is not there."""
    if source is None or not source.is_dir():
        return []
    files = sorted(path for path in source.iterdir() if path.name == "config.json" or path.suffix == ".safetensors")
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
