"""Launching the processes of a run: on this machine, as a Slurm job, on a Ray cluster."""
