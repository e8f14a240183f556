"""Processes that cannot train together are refused at the start, with the cause."""

from typing import Any

import pytest

from fledge.distributed.context import DistributedContext
from fledge.distributed.startup import check_ranks, gpu_of, local_facts
from fledge.errors import FledgeError
from tests.support.ranks import run_ranks

CPU: dict[str, Any] = {"host": "a", "fledge": "1.0", "torch": "2.13.0", "gpu": None, "problem": None}


def ranks_with(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of several processes."""
    return [{**CPU, **change} for change in changes]


@pytest.mark.parametrize(
    ("local_rank", "processes", "visible", "gpu"),
    [(0, 1, 1, 0), (3, 4, 4, 3), (3, 4, 8, 3), (3, 4, 1, 0)],  # the last: each process sees a GPU of its own
)
def test_a_process_takes_its_gpu(local_rank: int, processes: int, visible: int, gpu: int) -> None:
    assert gpu_of(local_rank, processes, visible) == gpu


@pytest.mark.parametrize("local_rank", [0, 7])
def test_more_processes_than_gpus_are_refused_by_every_process(local_rank: int) -> None:
    with pytest.raises(FledgeError, match="8 processes on this machine have 4 GPUs among them") as error:
        gpu_of(local_rank, 8, 4)
    assert "start 4 processes" in str(error.value.hint)


GPU_A, GPU_B = {"gpu": "GPU-a"}, {"gpu": "GPU-b"}
REFUSED = [
    (({}, {"torch": "2.11.0", "host": "b"}), "process 1 on b runs torch 2.11.0, process 0 on a 2.13.0"),
    (({}, {}, {"fledge": "0.9"}), "process 2 on a runs fledge 0.9"),
    ((GPU_A, GPU_B, GPU_A), "processes 0 and 2 on a have the same GPU"),
    ((GPU_A, {"host": "b"}), "process 0 on a has a GPU, process 1 on b has none"),
    (({}, GPU_A), "process 1 on a has a GPU, process 0 on a has none"),
    (
        ({}, {"problem": ["this build of torch has no NCCL", "runtime.device"]}),
        "process 1 on a: this build of torch has no NCCL",
    ),
    (({"problem": ["4 GPUs", "--processes", "start 4"]},), "process 0 on a: 4 GPUs"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_processes_that_do_not_fit_together_are_refused(changes: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(FledgeError, match=message) as error:
        check_ranks(ranks_with(*changes))
    assert error.value.where and error.value.hint


def test_processes_that_fit_together_are_not_refused() -> None:
    check_ranks(ranks_with({}, {}))
    check_ranks(ranks_with(GPU_A, GPU_B, {**GPU_A, "host": "b"}))


def facts_here(ranks: DistributedContext) -> list[dict[str, Any]]:
    """The facts of all processes, as they exchange them."""
    return ranks.all_gather_object(local_facts(uses_gpu=False))


def test_two_processes_of_one_installation_meet() -> None:
    for facts in run_ranks(2, facts_here):
        assert len(facts) == 2 and facts[0] == facts[1] and facts[0]["problem"] is None
