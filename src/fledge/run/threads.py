"""Work beside training, each piece in a thread of its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def start_thread(name: str, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call `function(*arguments)` in a new thread, which ends with the call; returns the result to come.

    A thread that stayed would keep the OpenMP threads that PyTorch has started for it, although they do nothing. As soon as a
    process has more of them than cores, GNU's OpenMP puts a thread that waits to sleep at once, those of training too: each
    parallel piece of work then begins by waking a thread (decision 005).
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    future = executor.submit(function, *arguments)
    executor.shutdown(wait=False)  # the thread does this one call and ends
    return future
