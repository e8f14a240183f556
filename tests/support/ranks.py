"""Several processes that train together: `run_ranks(2, body, ...)` calls `body(ranks, ...)` in each process."""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support import forked

TIMEOUT = 200  # seconds for all ranks of a call


def run_ranks(size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in `size` processes with their DistributedContext and JSON values: the results in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        calls = []
        for rank in range(size):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
            environment = {**{key: str(value) for key, value in variables.items()}, "MASTER_ADDR": "127.0.0.1"}
            asked, kept = [body.__module__, body.__name__, list(arguments), folder], (body.__module__,)
            calls.append(forked.Call(function=f"{__name__}:be_rank", arguments=asked, variables=environment, imports=kept))
        ended = forked.run(calls, TIMEOUT)
        results = [Path(folder) / f"{rank}.json" for rank in range(size)]
        assert all(file.exists() for file in results), "\n".join(process.stdout + process.stderr for process in ended)
        return [json.loads(file.read_text()) for file in results]


def run_recipe(ranks: Any, values: dict[str, Any]) -> str:
    """Run a recipe, given as plain data, on these ranks: its run directory."""
    from fledge.pipeline import Pipeline
    from fledge.recipe import recipe_from_dict
    from fledge.run import Console

    return str(Pipeline(recipe_from_dict(values), Console(quiet=True), ranks=ranks).run())


def be_rank(module: str, name: str, arguments: list[Any], folder: str) -> None:
    """Call a function as one of several processes, write its result into a folder, and end the process."""
    import torch

    from fledge.distributed.context import DistributedContext

    torch.set_num_threads(1)
    ranks = DistributedContext.init_distributed()
    result = getattr(import_module(module), name)(ranks, *arguments)
    (Path(folder) / f"{ranks.rank}.json").write_text(json.dumps(result))
    sys.stdout.flush()
    ranks.barrier()
    os._exit(0)
