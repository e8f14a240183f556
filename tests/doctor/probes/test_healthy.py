"""The probes of a healthy run: what they must give, and that they change nothing."""

import hashlib
import math
from pathlib import Path

import pytest
import torch

from fledge.diagnosis.measures import MEASURES
from fledge.doctor.probes import PROBES, ProbeReport, probe_figures, probe_run
from fledge.errors import FledgeError

STAGES = ("pretrain", "sft", "dpo", "lora")
LN_VOCABULARY = math.log(400)


@pytest.fixture(scope="module")
def reports(run: Path) -> dict[tuple[str, str], ProbeReport]:
    """The reports of all stages at their last checkpoint and at their start."""
    return {(stage, where): probe_run(run, stage, checkpoint=where) for stage in STAGES for where in ("last", "start")}


def _value(report: ProbeReport, name: str) -> object:
    assert f"probe/{name}" in report.figures, report.left_out.get(f"probe/{name}")
    return report.figures[f"probe/{name}"].value


def test_every_figure_of_the_table_is_a_known_measure_and_every_measure_of_probes_has_a_probe() -> None:
    of_probes = [name for probe in PROBES for name in probe.figures]
    assert sorted(of_probes) == sorted(name for name in MEASURES if name.startswith("probe/"))


@pytest.mark.parametrize("where", ["last", "start"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_trainer_itself_is_right_in_every_stage(
    reports: dict[tuple[str, str], ProbeReport], stage: str, where: str
) -> None:
    report = reports[stage, where]
    assert _value(report, "shift_gradient") == 1
    assert _value(report, "accumulation_ratio") == pytest.approx(1, abs=1e-4)
    assert _value(report, "accumulation_cosine") == pytest.approx(1, abs=1e-6)
    for name in ("unchanged_tensors", "changed_frozen", "missing_from_optimizer", "files_damaged"):
        assert _value(report, name) == []
    assert _value(report, "head_tied") is True
    for name in ("evaluation_dropout", "two_passes", "future_leak"):
        assert _value(report, name) == pytest.approx(0, abs=1e-5)
    assert not any("failed with" in reason for reason in report.left_out.values()), report.left_out


def test_steps_and_start_are_told_apart(reports: dict[tuple[str, str], ProbeReport]) -> None:
    assert [reports[stage, "last"].step for stage in STAGES] == [8, 8, 6, 4]
    assert {reports[stage, "start"].step for stage in STAGES} == {0}
    assert "start model itself" in reports["sft", "start"].left_out["probe/base_answer_loss"]
    assert "no update" in reports["sft", "start"].left_out["probe/unmoved_tensors"]
    assert _value(reports["sft", "last"], "unmoved_tensors") == []


def test_losses_by_the_doctors_own_code_are_those_that_were_logged(reports: dict[tuple[str, str], ProbeReport]) -> None:
    for stage in ("pretrain", "sft", "lora"):
        for where in ("last", "start"):
            assert _value(reports[stage, where], "logged_loss") == pytest.approx(0, abs=1e-5)
    assert "no mean loss of tokens" in reports["dpo", "last"].left_out["probe/logged_loss"]


def test_new_weights_know_nothing(reports: dict[tuple[str, str], ProbeReport]) -> None:
    report = reports["pretrain", "start"]
    for name in ("training_loss", "validation_loss"):
        assert _value(report, name) == pytest.approx(LN_VOCABULARY, abs=0.2)
    assert "new weights" in reports["pretrain", "last"].left_out["probe/base_repetition"]
    assert "probe/answer_gain" not in report.figures and "probe/answer_gain" not in report.left_out  # no answers in documents


def test_answers_and_prompts_are_measured_where_there_are_some(reports: dict[tuple[str, str], ProbeReport]) -> None:
    report = reports["sft", "last"]
    for name in ("prompt_loss", "answer_loss", "base_answer_loss", "base_text_loss", "base_text_loss_before"):
        assert 3 < float(_value(report, name)) < 8  # type: ignore[arg-type]
    for name in ("ended", "prompt_copy", "equal_answers", "identity_answers", "end_probability", "base_ended", "repetition"):
        assert 0 <= float(_value(report, name)) <= 1  # type: ignore[arg-type]
    assert abs(float(_value(report, "answer_gain"))) < 0.2  # type: ignore[arg-type]
    assert "'pretrain'" in report.figures["probe/base_text_loss"].note


def test_the_policy_against_itself_has_the_loss_of_even_chances(reports: dict[tuple[str, str], ProbeReport]) -> None:
    for where in ("last", "start"):
        report = reports["dpo", where]
        assert _value(report, "reference_loss") == pytest.approx(math.log(2), abs=1e-5)
        assert _value(report, "reference_loss_expected") == pytest.approx(math.log(2))
        assert _value(report, "reference_margin") == pytest.approx(0, abs=1e-3)
        assert _value(report, "reference_moved") == pytest.approx(0, abs=1e-3)
        assert _value(report, "preference_loss_slope") == pytest.approx(-0.05, abs=0.005)  # −β/2 at Δ = 0
        assert -0.06 < float(_value(report, "beta_effect")) < -0.03  # type: ignore[arg-type]
    assert "probe/reference_loss" not in reports["sft", "last"].left_out


def test_an_adapter_is_new_at_the_start_and_has_moved_at_the_end(reports: dict[tuple[str, str], ProbeReport]) -> None:
    assert _value(reports["lora", "start"], "adapter_b_norm") == 0
    assert float(_value(reports["lora", "last"], "adapter_b_norm")) > 0.01  # type: ignore[arg-type]
    assert set(reports["lora", "last"].figures["probe/update_ratios"].value) == {"adapter"}
    assert "28" in reports["lora", "last"].figures["probe/unchanged_tensors"].note
    assert "no low-rank adapter" in reports["sft", "last"].left_out["probe/adapter_b_norm"]


def test_figures_carry_their_depth_and_the_share_of_unused_rows_is_none(reports: dict[tuple[str, str], ProbeReport]) -> None:
    for report in reports.values():
        assert {figure.depth for figure in report.figures.values()} == {"probe"}
        assert not set(report.figures) & set(report.left_out)
        assert _value(report, "embedding_rows_unused") == 0


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_probes_are_repeatable_and_change_neither_the_run_nor_the_random_numbers_of_the_process(copied: Path) -> None:
    before = _digests(copied)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    reports = [probe_run(copied, "dpo") for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert _digests(copied) == before
    first, second = ({name: figure.value for name, figure in report.figures.items()} for report in reports)
    assert first == second and len(first) > 25


def test_only_some_figures_are_measured_if_these_are_asked_for(run: Path) -> None:
    names = {"probe/two_passes", "probe/shift_gradient", "probe/reference_loss"}
    assert set(probe_figures(run, "sft", only=names)) == {"probe/two_passes", "probe/shift_gradient"}


def test_what_there_is_no_time_for_is_told(run: Path) -> None:
    report = probe_run(run, "sft", deadline_seconds=0.0)
    assert not report.figures
    assert set(report.left_out.values()) == {"there was no time for it within 0 seconds"}


def test_a_stage_or_checkpoint_that_is_not_there_is_an_error_that_names_those_that_are(run: Path) -> None:
    with pytest.raises(FledgeError, match="no stage 'rl'") as error:
        probe_run(run, "rl")
    assert "pretrain, sft, dpo, lora" in str(error.value.hint)
    with pytest.raises(FledgeError, match="no checkpoint '77'") as error:
        probe_run(run, "sft", checkpoint="77")
    assert "step-00000008" in str(error.value.hint)
