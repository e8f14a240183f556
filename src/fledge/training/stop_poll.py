"""Whether a rank was asked to stop, agreed upon by all ranks."""

from collections.abc import Callable

from fledge.distributed.context import DistributedContext


class StopPoll:
    """Asks all ranks whether one of them got a signal to stop.

    Several ranks exchange an answer while they compute: what one call asks is answered at the next call, so that no call waits
    for a round trip. All ranks get equal answers. A single process is answered at once.
    """

    def __init__(self, ranks: DistributedContext, requested: Callable[[], int | None]) -> None:
        """`requested`: the number of the signal that this process got."""
        self.ranks, self.requested = ranks, requested
        self.signal: int | None = None  # the signal that all ranks know of
        self._asked: Callable[[], list[float]] | None = None

    def __call__(self) -> bool:
        """Whether to stop. Collective."""
        if self.signal is not None:
            return True
        if not self.ranks.is_distributed:
            self.signal = self.requested()
            return self.signal is not None
        if self._asked is not None:
            self.signal = int(self._asked()[0]) or None
        self._asked = None if self.signal is not None else self.ranks.begin_all_reduce_max([self.requested() or 0])
        return self.signal is not None
