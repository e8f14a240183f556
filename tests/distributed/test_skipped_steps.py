"""Optimizers of a sharded model skip a step by a flag on the device, as those of a whole model do: no rank waits for a GPU."""

import pytest
import torch

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import get_local_tensor
from fledge.monitor.phase_timer import PhaseTimer
from tests.distributed.test_context import CPU, RATE, Run
from tests.support.ranks import run_ranks


def weights_after(ranks: DistributedContext, optimizer: str, flag: float | None) -> list[list[float]]:
    """This rank's weights before and after the second update, which the optimizers get with this flag."""
    run = Run(ranks, True, optimizer, model={"qk_norm": True})
    run.train(1)

    def local() -> list[float]:
        return torch.cat([get_local_tensor(parameter.detach()).flatten() for parameter in run.model.parameters()]).tolist()

    before = local()
    run.train_step._gradients(run.loader.batch(1)[0], PhaseTimer(CPU), False)
    for built in run.trainable.optimizers:
        for group in built.param_groups:
            group["lr"] = RATE
        built.found_inf = None if flag is None else torch.tensor(flag)  # type: ignore[attr-defined]
        built.step()
    run.loader.close()
    return [before, local()]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_flag_on_the_device_skips_the_step_of_a_sharded_model_or_changes_nothing(optimizer: str) -> None:
    skipped, taken, without = (run_ranks(2, weights_after, optimizer, flag) for flag in (1.0, 0.0, None))
    for rank in range(2):
        assert skipped[rank][0] == skipped[rank][1]
        assert taken[rank][0] != taken[rank][1]
        torch.testing.assert_close(torch.tensor(taken[rank][1]), torch.tensor(without[rank][1]), atol=1e-6, rtol=1e-6)
