"""What is done to a run of the bench: a fault, or something unusual that is no fault.

A condition acts from outside: it changes the recipe, the rows, or functions of the trainer in this process while the run goes
on. No code of the product knows about it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from fledge.diagnosis.cause import Category
from fledge.doctor_bench.setup import RunSetup

Prepare = Callable[[RunSetup, Any], None]
Patch = Callable[[RunSetup, Any], AbstractContextManager[None]]
Yardstick = Literal["clean loss", "logged evaluation", "memory", "always"]
"""How the effect of a fault is measured: by the loss on clean held-out data; by how far the logged validation loss is from it;
by the growth of memory; or not at all, where the fault itself is the damage."""


def leave(setup: RunSetup, amount: Any) -> None:
    """Change nothing."""


def unpatched(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """Patch nothing."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that is done to a run. An entry of a table.

    `shapes`: names of the shapes of stages (`shapes.SHAPES`) that it is tried on. `levels`: name of a severity → the amount
    that the functions get. `prepare` changes recipe and rows; `patch` gives a context in which the run is trained and examined;
    `finish` changes files after training. `is_resumed`: the run is stopped at half and goes on. `processes`: that train the run
    together.
    """

    name: str
    shapes: tuple[str, ...]
    levels: Mapping[str, Any]
    prepare: Prepare = leave
    patch: Patch = unpatched
    finish: Prepare = leave
    is_resumed: bool = False
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Fault(Condition):
    """A condition that is wrong. `category`: of the cause that names it rightly. `is_silent`: a fault of the pipeline that no
    message tells, to be named within 20 steps. `yardstick`: how its effect is measured."""

    category: Category
    is_silent: bool = False
    yardstick: Yardstick = "clean loss"


@dataclass(frozen=True, kw_only=True)
class Control(Condition):
    """A condition that is not wrong. `levels` has one entry, unless there are several ways to do it."""

    levels: Mapping[str, Any]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which an attribute of a class or a module is another one."""
    before = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def wrapping(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> AbstractContextManager[None]:
    """A context in which a function is what `make` gives for the original one."""
    return replaced(owner, name, make(getattr(owner, name)))


@contextmanager
def together(*patches: AbstractContextManager[None]) -> Iterator[None]:
    """A context with several patches."""
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
