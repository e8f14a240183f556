"""The one loop, and what it stands on: schedule, optimizer, machine, checkpoints."""
