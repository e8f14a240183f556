"""Options of a Slurm job, as a person writes them: key=value with the names of sbatch."""

from collections.abc import Sequence

from fledge.errors import FledgeError

SUBMITIT_NAMES = ("mem_gb", "timeout_min", "cpus_per_task", "nodes")  # not passed on as they are: submitit has them itself


def slurm_options(texts: Sequence[str]) -> dict[str, int | str]:
    """Parameters of submitit's executor from `key=value` texts such as `partition=gpu`. FledgeError for another text."""
    return dict(_option(text) for text in texts)


def _option(text: str) -> tuple[str, int | str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise FledgeError(f"cannot read '{text}'", where="--slurm-option", hint="write key=value, such as partition=cpu")
    name = key if key in SUBMITIT_NAMES or key.startswith("slurm_") else f"slurm_{key}"
    return name, int(value) if value.isdigit() else value
