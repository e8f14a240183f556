"""Events taken one by one: a long run keeps some of its times, and all of its losses."""

import numpy as np

from fledge.training_log.event_columns import EventColumns


def test_of_a_long_run_some_system_events_are_kept_and_all_others() -> None:
    columns = EventColumns(most_sampled=100)
    for step in range(1, 1001):
        columns.take({"kind": "step", "step": step, "train/loss": 1.0 / step})
        columns.take({"kind": "system", "step": step, "system/step_seconds": step / 8, "system/phases": {"data": 0.5}})
    series = columns.series()
    assert len(series["train/loss"]) == 1000 and columns.records == 2000
    times = series["system/step_seconds"]
    assert 100 <= len(times) < 200 and times.steps[-1] > 990 and len(series["system/phases/data"]) == len(times)
    np.testing.assert_array_equal(times.values, times.steps / 8)
    assert len(set(np.diff(times.steps))) == 1, "those that are kept stand at equal distances"


def test_numbers_inside_of_lists_and_what_is_none_is_kept_and_words_are_counted() -> None:
    columns = EventColumns(left_out=frozenset({"router/load"}))
    columns.take({"kind": "step", "step": 1, "train/loss": None, "grad_noise/half_losses": [1, 2.5], "router/load": [[1.0]]})
    columns.take({"kind": "eval", "step": 1, "eval/loss": 2.0, "eval/name": "x"})
    columns.take({"kind": "guard", "step": 1, "check": "divergence"})
    series = columns.series()
    assert set(series) == {"train/loss", "grad_noise/half_losses/0", "grad_noise/half_losses/1", "eval/loss"}
    assert np.isnan(series["train/loss"].values).all() and series["grad_noise/half_losses/1"].values.tolist() == [2.5]
    assert columns.unread == {"eval/name: no numbers": 1} and columns.events[0]["check"] == "divergence"
