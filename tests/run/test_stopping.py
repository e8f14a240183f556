"""The first signal is obeyed where nothing is at stake, or held until something is safe; later ones change nothing."""

import os
import signal

import pytest

from fledge.run.stopping import Interrupted, SignalHandler


def _send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_is_obeyed_at_once_and_named() -> None:
    said: list[str] = []
    with pytest.raises(Interrupted) as caught, SignalHandler(said.append, "kept"):
        _send(signal.SIGINT)
        raise AssertionError("it should have stopped")
    assert (caught.value.number, caught.value.text, said) == (signal.SIGINT, "kept", [])


def test_a_held_signal_is_told_and_left_to_whoever_holds() -> None:
    said: list[str] = []
    reached = []
    with (
        pytest.raises(Interrupted, match="done by itself"),
        SignalHandler(said.append, "kept") as stopping,
        stopping.deferred(),
    ):
        _send()
        _send()
        _send(signal.SIGINT)
        reached.append(stopping.asked)
        raise Interrupted(signal.SIGTERM, "done by itself")
    assert reached == [signal.SIGTERM] and len(said) == 1


def test_a_held_signal_that_nobody_looked_at_is_obeyed_on_leaving() -> None:
    with pytest.raises(Interrupted, match="kept"), SignalHandler(lambda text: None, "kept") as stopping:
        with stopping.deferred():
            with stopping.deferred():
                _send()
            reached = True
        raise AssertionError("it should have stopped")
    assert reached


def test_an_error_inside_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="mine"), SignalHandler(lambda text: None, "kept") as stopping, stopping.deferred():
        _send()
        raise ValueError("mine")


def test_afterwards_signals_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler(lambda text: None, "kept"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_on_the_way_takes_it_for_a_failure_of_its_own() -> None:
    assert not issubclass(Interrupted, Exception)
