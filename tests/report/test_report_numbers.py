from __future__ import annotations

import pytest

from fledge.report import formatting
from fledge.report.facts import facts
from fledge.report.read_run import gather
from fledge.report.series import smooth, thin


def test_thinning_keeps_ends_and_spikes() -> None:
    curve = [(float(step), 1.0) for step in range(100_000)]
    curve[54_321] = (54_321.0, 99.0)
    kept = thin(curve)
    assert len(kept) <= 802
    assert kept[0] == curve[0] and kept[-1] == curve[-1] and curve[54_321] in kept
    assert kept == sorted(kept)


def test_smoothing_keeps_a_constant_and_calms_noise() -> None:
    assert smooth([(float(step), 2.5) for step in range(50)])[49][1] == pytest.approx(2.5)
    noisy = smooth([(float(step), float(step % 2)) for step in range(400)])
    assert all(0.4 < value < 0.6 for _, value in noisy[20:-20])


@pytest.mark.parametrize(
    ("format_", "value", "expected"),
    [
        (formatting.compact, 9_999, "9,999"),
        (formatting.compact, 12_345, "12.3 k"),
        (formatting.compact, 999_700, "1.00 M"),
        (formatting.compact, 1_234_567_890, "1.23 B"),
        (formatting.duration, 4.21, "4.2 s"),
        (formatting.duration, 59.7, "1 min 00 s"),
        (formatting.duration, 3_725, "1 h 02 min"),
        (formatting.size, 512, "512 B"),
        (formatting.size, 1.5 * 2**30, "1.50 GiB"),
        (formatting.percent, 0.1234, "12.3"),
        (formatting.loss, -0.5, "−0.500"),
        (formatting.three, 2_022.4, "2,022"),
        (formatting.three, 4e7, "4.00e+07"),
        (formatting.three, float("inf"), "∞"),
        (formatting.whole, float("nan"), "NaN"),
    ],
)
def test_spelling_of_numbers(format_, value: float, expected: str) -> None:
    assert format_(value) == expected


def test_stages_are_found_without_a_summary(run_directory) -> None:
    (run_directory / "summary.json").unlink()
    run = gather(run_directory)
    assert [stage.name for stage in run.stages] == ["pretrain", "sft", "dpo"]
    assert run.name == "quickstart"


def test_facts_say_their_units() -> None:
    told = {"matmul_peak_flops": 211_840_075_847.0, "compile_seconds": 5.4, "memory_bytes": 2**30, "cores": 2}
    spelled = dict(facts(told, "pretrain"))
    assert spelled["pretrain · matmul peak flops"] == "212 GFLOP/s"
    assert spelled["pretrain · compile"] == "5.4 s" and spelled["pretrain · memory"] == "1.00 GiB"
    assert spelled["pretrain · cores"] == "2 cores"
