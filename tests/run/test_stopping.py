"""The first signal stops the run at once, or at the end of a deferred section; later signals change nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fledge.run.stopping import Interrupted, SignalHandler


def _send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_raises_interrupted_with_its_number_at_once() -> None:
    messages: list[str] = []
    with pytest.raises(Interrupted) as caught, SignalHandler(messages.append, "kept"):
        _send(signal.SIGINT)
        raise AssertionError("it should have stopped")
    assert (caught.value.number, caught.value.text, messages) == (signal.SIGINT, "kept", [])


def test_a_deferred_signal_is_logged_once_and_left_to_the_caller() -> None:
    messages: list[str] = []
    reached = []
    with (
        pytest.raises(Interrupted, match="done by itself"),
        SignalHandler(messages.append, "kept") as stopping,
        stopping.deferred(),
    ):
        _send()
        _send()
        _send(signal.SIGINT)
        reached.append(stopping.requested)
        raise Interrupted(signal.SIGTERM, "done by itself")
    assert reached == [signal.SIGTERM] and len(messages) == 1


def test_a_deferred_signal_raises_interrupted_when_the_outermost_section_ends() -> None:
    with pytest.raises(Interrupted, match="kept"), SignalHandler(lambda text: None, "kept") as stopping:
        with stopping.deferred():
            with stopping.deferred():
                _send()
            reached = True
        raise AssertionError("it should have stopped")
    assert reached


def test_an_error_inside_a_deferred_section_is_not_replaced_by_interrupted() -> None:
    with pytest.raises(ValueError, match="mine"), SignalHandler(lambda text: None, "kept") as stopping, stopping.deferred():
        _send()
        raise ValueError("mine")


def test_the_previous_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler(lambda text: None, "kept"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_interrupted_is_not_caught_by_except_exception() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_signal_while_libraries_are_loaded_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\n"
        "from fledge.run.stopping import SignalHandler\n"
        "with SignalHandler(lambda text: print(text, flush=True), 'stopped on request') as stopping, stopping.at_once():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(20)\n"
        "    except BaseException:\n"  # as some libraries swallow whatever is raised
        "        time.sleep(20)\n"
    )
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (130, "stopped on request\n") and time.monotonic() - started < 10
