"""Active probes: short measurements on a checkpoint, and on the trainer's own code as it stands in this process."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names

if TYPE_CHECKING:
    from fledge.doctor.probes.figures import Probe, ProbeReport
    from fledge.doctor.probes.material import DirectoryMaterial, RunMaterial
    from fledge.doctor.probes.table import PROBES, probe_directory, probe_figures, probe_run, run_probes

_HOMES = {
    "fledge.doctor.probes.figures": ("Probe", "ProbeReport"),
    "fledge.doctor.probes.material": ("DirectoryMaterial", "RunMaterial"),
    "fledge.doctor.probes.table": ("PROBES", "probe_directory", "probe_figures", "probe_run", "run_probes"),
}

__all__ = [
    "PROBES",
    "DirectoryMaterial",
    "Probe",
    "ProbeReport",
    "RunMaterial",
    "probe_directory",
    "probe_figures",
    "probe_run",
    "run_probes",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
