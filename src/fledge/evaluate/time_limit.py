"""A limit for the time that one check may take: regular expressions and schemas can take longer than any run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT = 0.1  # seconds until the next interruption, where code has swallowed the first one


class _Interrupt(BaseException):
    """Raised by the timer; not an Exception, so that the code in between does not catch it."""


@contextmanager
def cpu_time_limit(seconds: float) -> Iterator[None]:
    """A context that raises TimeoutError when the process has computed inside it for this time.

    The time is of the processor, so that a busy machine changes no result. It also ends a regular expression in the middle of a
    search. Only the main thread has the limit, and only systems that have timers.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Interrupt

    previous = signal.signal(signal.SIGPROF, interrupt)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds, REPEAT)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _Interrupt:
        raise TimeoutError(f"not done after {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGPROF, previous)
