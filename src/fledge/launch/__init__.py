"""Starting a run's processes: on this machine, as a Slurm job, on a Ray cluster."""
