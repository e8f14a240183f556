"""The doctor: a training run or a log of any trainer → what is wrong with it, what to change, and the proof."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names

if TYPE_CHECKING:
    from fledge.doctor.examination import Examination
    from fledge.doctor.examine import examine
    from fledge.doctor.options import DoctorOptions

_HOMES = {
    "fledge.doctor.examination": ("Examination",),
    "fledge.doctor.examine": ("examine",),
    "fledge.doctor.options": ("DoctorOptions",),
}

__all__ = ["DoctorOptions", "Examination", "examine"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
