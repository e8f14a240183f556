import pytest

from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.effects import effects_of, sign_flip_p_value
from fledge.doctor_bench.records import CaseRecord


def _record(condition: str, seed: int, is_fault: bool, **values: object) -> CaseRecord:
    level = "8x" if is_fault else ""
    key = CaseKey(group="dev", shape="sft", condition=condition, level=level, seed=seed, is_fault=is_fault)
    return CaseRecord(key=key.text, log="run/sft", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [([1.0], 0.5), ([1.0, 2.0, 3.0], 1 / 8), ([1.0, -1.0], 3 / 4), ([-1.0, -2.0], 1.0), ([0.0, 0.0], 1.0)],
)
def test_signs_are_flipped(differences: list[float], p_value: float) -> None:
    assert sign_flip_p_value(differences) == pytest.approx(p_value)


def _effect(losses: list[float]) -> object:
    records = [_record("plain", seed, False, clean_loss=2.0) for seed in range(1, len(losses) + 1)]
    records += [_record("learning rate too high", seed, True, clean_loss=loss) for seed, loss in enumerate(losses, 1)]
    return effects_of(records)["dev", "sft", "learning rate too high", "8x"]


def test_a_worse_loss_in_every_seed_is_an_effect() -> None:
    effect = _effect([2.2, 2.3, 2.1, 2.4, 2.2])
    assert effect.is_material and effect.pairs == 5  # type: ignore[attr-defined]
    assert effect.p_value == pytest.approx(1 / 32)  # type: ignore[attr-defined]


@pytest.mark.parametrize("losses", [[2.001, 2.002], [2.5, 1.9], [1.5, 1.4]], ids=["too small", "not in every seed", "better"])
def test_other_changes_are_none(losses: list[float]) -> None:
    assert not _effect(losses).is_material  # type: ignore[attr-defined]


def test_a_run_that_ends_with_an_error_has_an_effect() -> None:
    records = [_record("plain", 1, False, clean_loss=2.0), _record("learning rate too high", 1, True, error="it diverged")]
    assert effects_of(records)["dev", "sft", "learning rate too high", "8x"].is_material


def test_without_a_healthy_run_nothing_is_known() -> None:
    assert not effects_of([_record("learning rate too high", 1, True, clean_loss=9.0)])
