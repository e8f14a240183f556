"""Numbers and curves of the report: number formats, units, smoothing and downsampling."""

import json
import math

import pytest

from fledge.report import formatting
from fledge.report.charts import stage_charts
from fledge.report.facts import facts
from fledge.report.figures import noisy
from fledge.report.i18n import example_text
from fledge.report.loss_charts import _percentiles, _positions
from fledge.report.read_run import read_run
from fledge.report.series import bucket_means, downsample, smooth
from fledge.report.summary_table import stage_rows


def test_downsampling_keeps_both_ends_and_every_spike() -> None:
    curve = [(float(step), 1.0) for step in range(100_000)]
    curve[54_321] = (54_321.0, 99.0)
    kept = downsample(curve)
    assert len(kept) <= 802
    assert kept[0] == curve[0] and kept[-1] == curve[-1] and curve[54_321] in kept
    assert kept == sorted(kept)


def test_a_long_noisy_curve_keeps_its_spikes_and_the_means_that_smoothing_starts_from() -> None:
    curve = [(float(step), float(step % 2)) for step in range(50_000)]
    curve[31_000] = (31_000.0, 77.0)
    [series] = noisy(curve)
    values = series.specification()
    assert max(values["y"]) == 77 and min(values["y"]) == 0 and len(values["y"]) <= 802
    means = bucket_means(curve)
    assert len(means) <= 402 and [means[0][0], means[-1][0]] == [0, 49_999]
    assert all(0.4 < mean < 0.6 for step, mean in means[1:-1] if abs(step - 31_000) > 200)
    assert values["means"][1] == pytest.approx([mean for _, mean in means], rel=1e-5)
    [short] = noisy(curve[:100])
    assert "means" not in short.specification() and len(short.specification()["x"]) == 100


def test_smoothing_keeps_a_constant_and_averages_noise() -> None:
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
        (formatting.three_figures, 2_022.4, "2,022"),
        (formatting.three_figures, 4e7, "4.00e+07"),
        (formatting.three_figures, float("inf"), "∞"),
        (formatting.whole, float("nan"), "NaN"),
    ],
)
def test_numbers_are_formatted_with_separators_and_units(format_, value: float, expected: str) -> None:
    assert format_(value) == expected


def test_stages_are_listed_from_disk_when_the_summary_is_missing(run_directory) -> None:
    (run_directory / "summary.json").unlink()
    run = read_run(run_directory)
    assert [stage.name for stage in run.stages] == ["pretrain", "sft", "dpo"]
    assert run.name == "quickstart"


def test_every_fact_has_the_unit_of_its_key() -> None:
    values = {"matmul_peak_flops": 211_840_075_847.0, "compile_seconds": 5.4, "memory_bytes": 2**30, "cores": 2}
    texts = dict(facts(values, "pretrain"))
    assert texts["pretrain · matmul peak flops"] == "212 GFLOP/s"
    assert texts["pretrain · compile"] == "5.4 s" and texts["pretrain · memory"] == "1.00 GiB"
    assert texts["pretrain · cores"] == "2 cores"


def test_a_stage_of_an_unknown_kind_is_reported_with_the_labels_of_its_plan(run_directory) -> None:
    plan = json.loads((run_directory / "dpo" / "plan.json").read_text())
    changes = {"kind": "ranking", "label": "ranked list", "loss_unit": "nats/list"}
    (run_directory / "dpo" / "plan.json").write_text(json.dumps({**plan, **changes}))
    stage = read_run(run_directory).stages[2]
    loss = next(row for row in stage_rows([stage]) if row.label.en == "Validation loss").cells[0]
    assert loss is not None and loss.plain == "0.693 → 0.214 nats/list"
    assert {"rewards", "margins", "accuracy"} <= {chart.name for chart in stage_charts(stage)}
    assert example_text(stage.label).en == "examples" and example_text("pair").en == "pairs"


def test_stages_without_a_summary_are_listed_in_the_order_of_the_recipe(run_directory) -> None:
    (run_directory / "summary.json").unlink()
    (run_directory / "recipe.yaml").write_text("stages: {dpo: {}, sft: {}}\n")
    assert [stage.name for stage in read_run(run_directory).stages] == ["dpo", "sft", "pretrain"]
    (run_directory / "recipe.yaml").write_text("{")
    assert [stage.name for stage in read_run(run_directory).stages] == ["dpo", "pretrain", "sft"]


def test_losses_that_are_no_numbers_leave_the_page_whole() -> None:
    losses = {"loss_percentiles": [{"percent": 50, "loss": math.nan}, {"percent": 95, "loss": 2.0}]}
    losses["loss_by_position"] = [{"from": 0, "loss": math.inf}, {"from": 16, "loss": 1.5}]
    assert (_percentiles(losses), _positions(losses)) == ([(95, 2.0)], [(16, 1.5)])
