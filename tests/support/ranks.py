"""Several processes that train together: `run_ranks(2, body, ...)` calls `body(ranks, ...)` in each process."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_ranks(size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in `size` processes with their DistributedContext and JSON values: the results in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        call = json.dumps([body.__module__, body.__name__, list(arguments), folder])
        processes = []
        for rank in range(size):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
            environment = {**os.environ, **{key: str(value) for key, value in variables.items()}, "MASTER_ADDR": "127.0.0.1"}
            command, pipe = [sys.executable, "-m", "tests.support.ranks", call], subprocess.PIPE
            started = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            processes.append(started)
        outputs = [process.communicate(timeout=200)[0] for process in processes]
        results = [Path(folder) / f"{rank}.json" for rank in range(size)]
        assert all(file.exists() for file in results), "\n".join(outputs)
        return [json.loads(file.read_text()) for file in results]


def _main() -> None:
    import torch

    from fledge.distributed.context import DistributedContext

    torch.set_num_threads(1)
    module, name, arguments, folder = json.loads(sys.argv[1])
    ranks = DistributedContext.init_distributed()
    result = getattr(import_module(module), name)(ranks, *arguments)
    (Path(folder) / f"{ranks.rank}.json").write_text(json.dumps(result))
    sys.stdout.flush()
    ranks.barrier()
    os._exit(0)


if __name__ == "__main__":
    _main()
