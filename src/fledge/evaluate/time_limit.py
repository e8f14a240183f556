"""Limits for the time that one check or reward may take: regular expressions, schemas and code of users can take longer than
any run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

REPEAT = 0.1  # seconds until the next interruption, where code has swallowed the first one


class TimeLimitReached(TimeoutError):
    """Raised where the time of a limit is over, and by nothing else."""


class _Interrupt(BaseException):
    """Raised by the timer; not an Exception, so that the code in between does not catch it."""


def cpu_time_limit(seconds: float) -> AbstractContextManager[None]:
    """A context that raises TimeoutError when the process has computed inside it for this time.

    The time is of the processor, so that a busy machine changes no result. It also ends a regular expression in the middle of a
    search. Only the main thread has the limit, and only systems that have timers.
    """
    return _time_limit(seconds, "SIGPROF", "ITIMER_PROF")


def wall_time_limit(seconds: float) -> AbstractContextManager[None]:
    """A context that raises TimeoutError after this time, also while it waits for something; otherwise as `cpu_time_limit`."""
    return _time_limit(seconds, "SIGALRM", "ITIMER_REAL")


@contextmanager
def _time_limit(seconds: float, signal_name: str, timer_name: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Interrupt

    number, timer = getattr(signal, signal_name), getattr(signal, timer_name)
    previous = signal.signal(number, interrupt)
    try:
        signal.setitimer(timer, seconds, REPEAT)
        try:
            yield
        finally:
            signal.setitimer(timer, 0)
    except _Interrupt:
        raise TimeLimitReached(f"not done after {seconds:g} s") from None
    finally:
        signal.signal(number, previous)
