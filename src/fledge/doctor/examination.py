"""What was found about one stage, or about one log."""

from dataclasses import dataclass, field

from fledge.diagnosis import Case, Diagnoses
from fledge.doctor.known_trainers import KnownTrainer
from fledge.doctor.target import Target


@dataclass(kw_only=True)
class Examination:
    """What was found about one stage of a target, or about the log of another trainer.

    `target`: what it belongs to. `case`: its log and figures. `diagnoses`: what they mean. `seconds`: by what was done.
    `left_out`: figure, or depth, that was not measured → why. `trainer`: the published trainer that wrote the log, where it is
    one whose settings do something else than their names say. `after`: the earlier stage whose model this one started from,
    where something is wrong with that stage.
    """

    target: Target
    case: Case
    diagnoses: Diagnoses
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    trainer: KnownTrainer | None = None
    after: str | None = None

    @property
    def stage(self) -> str:
        """The name of the stage; empty where the log has no stages."""
        return self.case.log.stage

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong with the stage."""
        return self.diagnoses.is_healthy
