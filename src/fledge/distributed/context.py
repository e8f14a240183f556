"""The processes that train together, called ranks, and their communication.

Decisions are made by the main process and broadcast; measurements are summed. Small values travel in main memory, so that
nothing waits for a GPU, as JSON or float64 and never pickled.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from fledge.distributed.startup import backends, check_ranks, group_problem, local_facts
from fledge.errors import FledgeError, PeerLostError
from fledge.run.environment import world_size

PROCESS_GROUP_TIMEOUT = timedelta(hours=12)  # the other ranks wait this long while the main process builds the data
POLL_INTERVAL = 0.02  # seconds between two checks for the other ranks
BUCKET_NUMEL = 2**23  # numbers in one all-reduce

P = ParamSpec("P")
R = TypeVar("R")


def _raise_peer_lost(exchange: Callable[P, R]) -> Callable[P, R]:
    """Decorate a collective operation: an error about a closed connection becomes PeerLostError."""

    @wraps(exchange)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return exchange(*args, **kwargs)
        except RuntimeError as error:
            if is_peer_lost_error(error):
                raise PeerLostError from error
            raise

    return wrapped


def is_peer_lost_error(error: RuntimeError) -> bool:
    """Whether gloo or NCCL raised this error because another process has ended."""
    message = str(error).lower()
    return any(pattern in message for pattern in ("connection", "timed out", "timeout", "broken pipe", "nccl"))


class DistributedContext:
    """This process as rank `rank` of `world_size` ranks; a single process is rank 0 of 1 and does not communicate.

    All ranks must call the methods (except `shard_range`) in one common order. The methods raise PeerLostError if another rank
    has ended.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, group: Any = None, owns_group: bool = False) -> None:
        """`group`: torch's process group (None: the default group); `owns_group`: `destroy` ends the default group."""
        self.rank, self.world_size, self._group, self._owns_group = rank, world_size, group, owns_group

    @classmethod
    def init_distributed(cls, device: str = "auto") -> "DistributedContext":
        """The context of this process: from torch's default process group if there is one, else from the environment
        variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), else a single process.

        `device`: `runtime.device` of the recipe. Raises FledgeError on every rank if they cannot train together: more
        processes than GPUs, no NCCL, different versions."""
        import torch.distributed as dist

        uses_gpu = device != "cpu" and torch.cuda.is_available()
        if dist.is_available() and dist.is_initialized():
            return _join_group(cls(dist.get_rank(), dist.get_world_size()), uses_gpu)
        count = world_size()  # 1 without RANK
        if count == 1:
            return cls()
        facts = local_facts(uses_gpu)
        rank = int(os.environ["RANK"])
        dist.init_process_group(
            backends(uses_gpu=facts["gpu"] is not None),
            store=_rendezvous_store(rank, count),
            rank=rank,
            world_size=count,
            timeout=PROCESS_GROUP_TIMEOUT,
        )
        ranks = cls(rank, count, owns_group=True)
        check_ranks(ranks.all_gather_object(facts))
        return ranks

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes files and makes decisions."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one rank."""
        return self.world_size > 1

    def new_group(self) -> "DistributedContext":
        """A context of these ranks with connections of its own, for use in another thread."""
        if not self.is_distributed:
            return self
        import torch.distributed as dist

        return DistributedContext(self.rank, self.world_size, dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT))

    @property
    def group(self) -> Any:
        """torch's process group; None for the default group."""
        return self._group

    def shard_range(self, first: int, stop: int) -> tuple[int, int]:
        """This rank's part of the range [first, stop), as (first, stop).

        The parts of all ranks, in rank order, make up the range; their sizes differ by at most 1.
        """
        count = stop - first
        return first + count * self.rank // self.world_size, first + count * (self.rank + 1) // self.world_size

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the ranks, in float64."""
        return self._all_reduce_values(values, "SUM")

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """The maximum of each value over the ranks, in float64."""
        return self._all_reduce_values(values, "MAX")

    def begin_all_reduce_max(self, values: Sequence[float]) -> Callable[[], list[float]]:
        """Begin `all_reduce_max`, and return the function that waits for its result. Other collective calls may lie between."""
        if not self.is_distributed:
            return lambda: list(values)
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)

        @_raise_peer_lost
        def finish() -> list[float]:
            work.wait()
            return tensor.tolist()

        work: Any = _raise_peer_lost(dist.all_reduce)(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return finish

    @_raise_peer_lost
    def _all_reduce_values(self, values: Sequence[float], operation: str) -> list[float]:
        if not self.is_distributed:
            return list(values)
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation), group=self._group)
        return tensor.tolist()

    @_raise_peer_lost
    def all_gather_object(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in rank order."""
        if not self.is_distributed:
            return [value]
        import torch.distributed as dist

        encoded = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([encoded.numel()]), group=self._group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: encoded.numel()] = encoded
        buffers = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(buffers, padded, group=self._group)
        return [json.loads(buffer[: int(size)].numpy().tobytes()) for buffer, size in zip(buffers, sizes, strict=True)]

    def broadcast_object(self, value: Any) -> Any:
        """The JSON value of rank 0; the values of other ranks are ignored."""
        return self.all_gather_object(value if self.is_main_process else None)[0] if self.is_distributed else value

    def barrier(self) -> None:
        """Wait until all ranks have called this method."""
        self.all_reduce_sum([0.0])

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """A context that rank 0 runs first and the other ranks afterwards, so that they read what rank 0 left on disk."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()

    @_raise_peer_lost
    def all_reduce_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one dtype and device by their sums over the ranks, in place, in large buckets."""
        if not self.is_distributed:
            return
        import torch.distributed as dist

        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            pending.append((dist.all_reduce(flat, group=self._group, async_op=True), flat, bucket))
        for work, flat, bucket in pending:
            assert work is not None
            work.wait()
            for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def destroy(self) -> None:
        """End torch's process group, if this context has initialised it."""
        if self._owns_group:
            import torch.distributed as dist

            dist.destroy_process_group()


def _join_group(ranks: DistributedContext, uses_gpu: bool) -> DistributedContext:
    """The ranks of a process group that Ray, or the caller's own program, has made; checked as if it were ours."""
    if not ranks.is_distributed:
        return ranks
    import torch.distributed as dist

    problem = group_problem(dist.get_backend_config(), uses_gpu)
    if problem is not None:  # equal in all processes, which may be unable to tell each other
        raise FledgeError(problem[0], where=problem[1], hint=problem[2])
    check_ranks(ranks.all_gather_object(local_facts(uses_gpu)))
    return ranks


def _rendezvous_store(rank: int, world_size: int) -> Any:
    """The store through which the ranks exchange addresses. torchrun keeps one store for all attempts, so keys get a prefix
    per attempt: otherwise a rank would find the address of a process that has ended."""
    import torch.distributed

    dist: Any = torch.distributed
    agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # hosted by the agent, not by rank 0
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, world_size, is_master=rank == 0 and not agent_store, timeout=timedelta(minutes=15))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    store.add("ready", 1)
    while store.add("ready", 0) < world_size:  # poll instead of waiting inside the library, where signals are not handled
        time.sleep(POLL_INTERVAL)
    return store


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(member.numel() for member in bucket) + tensor.numel() > BUCKET_NUMEL:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
