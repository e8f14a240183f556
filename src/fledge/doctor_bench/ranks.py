"""Two processes that train one case together, as `torchrun` would start them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from fledge.doctor_bench.case_key import CaseKey

TIMEOUT = 120.0


def train_together(key: CaseKey, recipe: dict[str, Any], processes: int, folder: Path) -> str | None:
    """Train a case in several processes; returns the message of the error that the first one ended with, if it did."""
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "fledge.doctor_bench.ranks", key.text, str(folder)]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for rank in range(processes)
    ]
    try:
        for process in started:
            process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"the processes did not end within {TIMEOUT:g} s"
    finally:
        for process in started:
            process.kill()
            process.wait()
    message = folder / "error.txt"
    return message.read_text(encoding="utf-8") if message.exists() else None


def main(arguments: list[str]) -> int:
    """One of the processes: the key of the case and its folder."""
    import torch

    from fledge.distributed.context import DistributedContext
    from fledge.doctor_bench.conditions import condition_of
    from fledge.doctor_bench.setup import RunSetup
    from fledge.errors import FledgeError
    from fledge.pipeline import Pipeline
    from fledge.recipe import recipe_from_dict
    from fledge.run import Console

    torch.set_num_threads(1)
    key, folder = CaseKey.parse(arguments[0]), Path(arguments[1])
    condition = condition_of(key)
    tree = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    tokenizer = Path(tree["tokenizer"].get("path", ""))
    setup = RunSetup(recipe=tree, stage_name=key.shape, shape=key.shape, folder=folder, tokenizer=tokenizer, seed=key.seed,
                     steps=0, rate=0.0)  # fmt: skip
    ranks = DistributedContext.init_distributed("cpu")
    try:
        with condition.patch(setup, condition.levels[key.level]):
            Pipeline(recipe_from_dict(tree), Console(quiet=True), ranks=ranks).run()
    except FledgeError as error:
        if ranks.is_main_process:
            (folder / "error.txt").write_text(error.text(), encoding="utf-8")
        return 1
    finally:
        ranks.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
