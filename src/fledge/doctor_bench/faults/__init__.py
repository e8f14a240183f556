"""The table of faults of the bench."""

from fledge.doctor_bench.condition import Fault
from fledge.doctor_bench.faults import (
    batches,
    encoding,
    files,
    machine,
    model,
    optimizer,
    preferences,
    processes,
    rates,
    rewards,
    rows,
)

MODULES = (rates, batches, encoding, rows, optimizer, model, preferences, rewards, machine, processes, files)
FAULTS: dict[str, Fault] = {fault.name: fault for module in MODULES for fault in module.FAULTS}
