from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fledge.diagnosis.case import Figure
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.records import CaseRecord, plain, records, restored

NUMBERS = st.floats(allow_nan=False) | st.integers(-(10**9), 10**9) | st.booleans() | st.text(max_size=5) | st.none()
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: not (isinstance(value, dict) and set(value) == {"number"}))


@given(VALUES)
def test_values_come_back_from_json(value: object) -> None:
    assert restored(plain(value)) == value


def test_a_number_that_is_none_comes_back() -> None:
    back = restored(plain([float("nan"), float("inf"), float("-inf")]))
    assert back[0] != back[0]
    assert back[1:] == [float("inf"), float("-inf")]


def test_a_record_comes_back(tmp_path: Path) -> None:
    key = CaseKey(group="dev", shape="sft", condition="prompt not masked", level="all", seed=3, is_fault=True)
    folder = tmp_path / "cases" / key.folder
    folder.mkdir(parents=True)
    figures = {
        "last": {
            "probe/loss_at_offsets": Figure([4.0, 2.5, 3.0], "probe", (60.0, 60.0), "on 64 rows"),
            "probe/head_tied": Figure(True, "probe"),
        }
    }
    record = CaseRecord(key=key.text, log="run/sft", figures=figures, clean_loss=1.5, seconds={"training": 2.0})
    record.write(folder)
    ((where, back),) = records(tmp_path)
    assert where == folder
    assert back == record
    assert back.case == key
