"""Figures of a device reach the host in one copy, bit for bit."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.checkpoint.state import TrainState
from fledge.distributed.context import DistributedContext
from fledge.model.moe import RouterStats
from fledge.monitor.phase_timer import PhaseTimer
from fledge.training.batch_source import StepBatch
from fledge.training.host_copy import HostCopy, PendingOutput
from fledge.training.metrics import step_metrics
from fledge.training.stop_poll import StopPoll
from fledge.training.train_step import HalfBatchStats, StepOutput
from tests.support.ranks import run_ranks

DTYPES = [torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8]


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (1,), (3,), (2, 3)])), min_size=1, max_size=12))
def test_tensors_of_every_dtype_and_shape_come_back_bit_for_bit(kinds: list[tuple[torch.dtype, tuple[int, ...]]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [(torch.randn(shape, generator=generator) * 100).to(dtype) for dtype, shape in kinds]
    for sent, got in zip(tensors, HostCopy(tensors).read(), strict=True):
        assert got.dtype == sent.dtype and got.shape == sent.shape and torch.equal(got, sent)


def test_a_copy_is_of_the_values_at_its_beginning() -> None:
    value = torch.ones(3)
    copy = HostCopy([value.mT if value.dim() > 1 else value, torch.arange(6.0).view(2, 3).mT])
    value.zero_()
    ones, turned = copy.read()
    assert torch.equal(ones, torch.ones(3)) and turned.tolist() == [[0, 3], [1, 4], [2, 5]]


def _output() -> StepOutput:
    values = iter(torch.rand(20, dtype=torch.float32) + 0.5)
    batch = StepBatch(
        step=0, rows=(0, 4), local_rows=(0, 4), batches=(), num_micro_steps=2, padding_batch=None, normalizer=9.0,
        num_tokens=12, num_target_tokens=9, by_source=(12,), epoch=0.5,
    )  # fmt: skip
    return StepOutput(
        batch=batch,
        lr=0.1,
        loss=next(values),
        metrics={"rewards/chosen": next(values), "rewards/margins": next(values)},
        grad_norm=next(values),
        is_skipped=torch.tensor(False),
        loss_scale=torch.tensor(1024.0),
        num_skipped_steps=torch.tensor(2**40 + 1),
        halves=HalfBatchStats((next(values), next(values)), next(values), (4.0, 5.0)),
        update_ratios={"embed": next(values), "mlp": next(values)},
        router_stats=RouterStats(
            counts=torch.tensor([[3.0, 5.0], [4.0, 4.0]]), tokens=torch.tensor(8.0), entropy=torch.rand(2),
            aux_loss=next(values), z_loss=next(values),
        ),
        timer=PhaseTimer(torch.device("cpu")),
    )  # fmt: skip


def test_the_event_of_an_update_is_equal_whether_its_figures_were_copied_or_not() -> None:
    for output in (_output(), replace(_output(), halves=None, router_stats=None, loss_scale=None, num_skipped_steps=None)):
        state = TrainState(step=1, tokens=12, target_tokens=9)
        expected = step_metrics(output, state, ("text",), True)
        assert step_metrics(PendingOutput(output).read(), state, ("text",), True) == expected


def test_a_single_process_is_told_at_once_and_once_for_all() -> None:
    signals = [None, 15, None]
    poll = StopPoll(DistributedContext(), lambda: signals.pop(0))
    assert [poll(), poll(), poll()] == [False, True, True] and poll.signal == 15


def stop_answers(ranks: DistributedContext, asked_at: int) -> list[bool]:
    """What each of six calls answers, if rank 1 gets a signal before call number `asked_at`; other exchanges lie between."""
    calls = iter(range(6))
    poll = StopPoll(ranks, lambda: 15 if ranks.rank == 1 and next(calls) >= asked_at else None)
    answers = []
    for number in range(6):
        answers.append(poll())
        assert ranks.all_reduce_sum([number])[0] == 2 * number
    return [*answers, poll.signal == 15]


def test_all_ranks_learn_of_a_signal_at_the_same_call_one_after_it_was_asked() -> None:
    for one in run_ranks(2, stop_answers, 2):
        assert one == [False, False, False, True, True, True, True]
