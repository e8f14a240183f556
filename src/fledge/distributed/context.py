"""The processes that train together, called ranks, and what they tell each other.

What is decided is decided by the first rank and told to the others; what is measured is summed. Small figures travel in
main memory, so that nothing waits for a GPU, and as JSON or float64, never pickled.
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

from fledge.errors import PeerLostError

PROCESS_GROUP_TIMEOUT = timedelta(hours=12)  # the others wait so long for the first rank, which reads and builds the data
POLL_INTERVAL = 0.02  # seconds between two looks for the others
BUCKET = 2**23  # numbers that are summed over the ranks at a time

P = ParamSpec("P")
R = TypeVar("R")


def _raise_peer_lost(exchange: Callable[P, R]) -> Callable[P, R]:
    """The transport's error about a closed connection, as Gone."""

    @wraps(exchange)
    def guarded(*given: P.args, **named: P.kwargs) -> R:
        try:
            return exchange(*given, **named)
        except RuntimeError as error:
            if is_peer_lost_error(error):
                raise PeerLostError from error
            raise

    return guarded


def is_peer_lost_error(error: RuntimeError) -> bool:
    """Whether this is how gloo or NCCL say that another process is not there any more."""
    said = str(error).lower()
    return any(words in said for words in ("connection", "timed out", "timeout", "broken pipe", "nccl"))


class DistributedContext:
    """This process, number `rank` of `size`. One by itself is rank 0 of 1; then nothing here costs anything.

    Every method but `share` must be called by all ranks, in the same order. Gone where another one has ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None, joined: bool = False) -> None:
        """`group`: the process group that talks (None: the one that was begun with); `joined`: begun here, so ended here."""
        self.rank, self.world_size, self._group, self._joined = rank, size, group, joined

    @classmethod
    def init_distributed(cls) -> "DistributedContext":
        """Together with the others, as the environment says (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: what torchrun sets),
        or as somebody has begun a process group already; alone where there is neither."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "RANK" not in os.environ:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        rank = int(os.environ["RANK"])
        dist.init_process_group(
            backends(), store=_rendezvous_store(rank, size), rank=rank, world_size=size, timeout=PROCESS_GROUP_TIMEOUT
        )
        return cls(rank, size, joined=True)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the rank that writes and decides."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world_size == 1

    def new_group(self) -> "DistributedContext":
        """The same ranks on connections of their own, for another thread."""
        if self.alone:
            return self
        import torch.distributed as dist

        return DistributedContext(self.rank, self.world_size, dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT))

    @property
    def group(self) -> Any:
        """torch's process group; None for the one that was begun with."""
        return self._group

    def shard_range(self, first: int, stop: int) -> tuple[int, int]:
        """This rank's part of a range; the parts of all ranks are the range, in order, as even as can be."""
        count = stop - first
        return first + count * self.rank // self.world_size, first + count * (self.rank + 1) // self.world_size

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the ranks, in float64."""
        return self._reduced(values, "SUM")

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over the ranks."""
        return self._reduced(values, "MAX")

    @_raise_peer_lost
    def _reduced(self, values: Sequence[float], operation: str) -> list[float]:
        if self.alone:
            return list(values)
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation), group=self._group)
        return tensor.tolist()

    @_raise_peer_lost
    def all_gather_object(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in their order."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([raw.numel()]), group=self._group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: raw.numel()] = raw
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, group=self._group)
        return [json.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def broadcast_object(self, value: Any) -> Any:
        """The JSON value of the first rank; that of the others does not matter."""
        return value if self.alone else self.all_gather_object(value if self.is_main_process else None)[0]

    def barrier(self) -> None:
        """Until all ranks are here."""
        self.all_reduce_sum([0.0])

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first rank does what is inside; then the others do, who find what it left on disk."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()

    @_raise_peer_lost
    def all_reduce_(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors of one dtype and device their sums over the ranks, in place, many at a time."""
        if self.alone:
            return
        import torch.distributed as dist

        waiting = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            waiting.append((dist.all_reduce(flat, group=self._group, async_op=True), flat, bucket))
        for work, flat, bucket in waiting:
            assert work is not None
            work.wait()
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def destroy(self) -> None:
        """Say goodbye to the others, where this process has joined them."""
        if self._joined:
            import torch.distributed as dist

            dist.destroy_process_group()


def _rendezvous_store(rank: int, size: int) -> Any:
    """Where the ranks tell each other how to be reached. torchrun keeps one store for all attempts: without a name for each,
    a rank would find the address of one that is dead."""
    import torch.distributed

    dist: Any = torch.distributed
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by the agent, and not by rank 0
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=rank == 0 and not kept, timeout=timedelta(minutes=15))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    store.add("here", 1)
    while store.add("here", 0) < size:  # here and not in the library, which would not hear a signal
        time.sleep(POLL_INTERVAL)
    return store


def backends() -> str:
    """What carries tensors: gloo those in main memory, NCCL those on GPUs."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
