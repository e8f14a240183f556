"""Processes that cannot train together are refused at the start, with the cause."""

from typing import Any

import pytest
import torch

from fledge.distributed.context import DistributedContext
from fledge.distributed.startup import check_ranks, gpu_of, group_problem, local_facts
from fledge.errors import FledgeError
from fledge.launch.ray import check_cluster
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


# -- a process group that somebody else has made: Ray, or the caller's own program -----------------------------------------


@pytest.mark.parametrize(
    ("config", "uses_gpu", "problem"),
    [
        ("cpu:gloo,cuda:nccl", True, None),
        ("cpu:gloo,cuda:gloo", False, None),
        ("cpu:gloo", False, None),
        ("cuda:nccl", True, "carries no tensors of main memory"),
        ("cuda:nccl", False, "carries no tensors of main memory"),
        ("cpu:gloo,cuda:gloo", True, "no NCCL"),
        ("cpu:gloo", True, "no NCCL"),
    ],
)
def test_a_group_needs_a_way_for_main_memory_and_for_gpus(config: str, uses_gpu: bool, problem: str | None) -> None:
    found = group_problem(config, uses_gpu)
    if problem is None:
        assert found is None
    else:
        assert found is not None and problem in found[0] and config in found[0]
        assert ("cpu:gloo,cuda:nccl" if uses_gpu else "'gloo'") in found[2]


def join_again_with(ranks: DistributedContext, versions: list[str]) -> str:
    """What a process says that joins the group of before, as Ray's workers do, with a version of torch of its own."""
    torch.__version__ = versions[ranks.rank]  # type: ignore[assignment]
    try:
        joined = DistributedContext.init_distributed()
    except FledgeError as error:
        return error.what
    return f"joined as {joined.rank} of {joined.world_size}"


def test_processes_in_a_group_of_somebody_else_are_checked_too() -> None:
    assert run_ranks(2, join_again_with, ["2.13.0", "2.13.0"]) == ["joined as 0 of 2", "joined as 1 of 2"]
    for said in run_ranks(2, join_again_with, ["2.13.0", "2.11.0"]):
        assert "process 1 on" in said and "runs torch 2.11.0, process 0" in said


RAY_REFUSED = [
    ({"CPU": 8, "GPU": 2}, "auto", r"4 workers need 4 GPUs, and the Ray cluster has 2", "at most 2 workers"),
    ({"CPU": 8}, "cuda", r"4 workers need 4 GPUs, and the Ray cluster has 0", "runtime.device"),
    ({"CPU": 2, "GPU": 8}, "cpu", r"4 workers need 4 CPUs, and the Ray cluster has 2", "at most 2 workers"),
]


@pytest.mark.parametrize(("resources", "device", "message", "hint"), RAY_REFUSED)
def test_a_ray_cluster_without_room_is_refused_or_told_of_where_it_can_grow(
    resources: dict[str, float], device: str, message: str, hint: str
) -> None:
    with pytest.raises(FledgeError, match=message) as error:
        check_cluster(resources, 4, device, can_grow=False)
    assert hint in str(error.value.hint)
    _, note = check_cluster(resources, 4, device, can_grow=True)
    assert note is not None and "waiting" in note


def test_ray_workers_get_gpus_where_the_cluster_has_them_and_the_recipe_wants_them() -> None:
    with_gpus = {"CPU": 8.0, "GPU": 4.0}
    assert check_cluster(with_gpus, 4, "auto", can_grow=False) == (True, None)
    assert check_cluster(with_gpus, 4, "cuda", can_grow=False) == (True, None)
    assert check_cluster(with_gpus, 4, "cpu", can_grow=False) == (False, None)
    assert check_cluster({"CPU": 8.0}, 4, "auto", can_grow=False) == (False, None)
