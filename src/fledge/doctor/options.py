"""What the doctor is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ExaminationDepth = Literal["curves", "data", "probes"]
DEPTHS: tuple[ExaminationDepth, ...] = ("curves", "data", "probes")
"""How deep to look: the log and the plan alone; the training data too; a checkpoint too. Each one includes those before it."""
PROBE_SECONDS = 60.0  # for all probes of a stage together
QUICK_SECONDS = 15.0  # the same with `quick`
DATA_SAMPLE, QUICK_SAMPLE = 2000, 400  # examples of which the figures of the data are computed


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """How a target is examined.

    `stage`: one stage; None: all. `config`: a file with the settings of the run, of fledge or of another trainer. `columns`:
    name of fledge → column of the log. `data`, `tokenizer`: files of rows and a tokenizer, for logs of other trainers.
    `start`: the model directory that such a run started from. `given`: name of a setting (a field of `TrainingSettings`) →
    value, for what no file says. `depth`: how deep to look at most; None: as deep as the target allows. `quick`: smaller
    samples and less time for probes.
    """

    stage: str | None = None
    config: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    data: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    start: Path | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    depth: ExaminationDepth | None = None
    quick: bool = False

    def looks_at(self, depth: ExaminationDepth) -> bool:
        """Whether figures of this depth are asked for."""
        return self.depth is None or DEPTHS.index(depth) <= DEPTHS.index(self.depth)
