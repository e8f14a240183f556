import math
import random
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.sweep.journal import Journal, TrialRecord, best_record
from fledge.sweep.proposals import Outcome, Search, importances
from fledge.sweep.space import parse_parameter

SPACE = (parse_parameter("rate=log:1e-4..1e-2"), parse_parameter("rows=int:2..8"), parse_parameter("name=adamw,muon"))


def loss(values: dict) -> float:
    return (math.log10(values["rate"]) + 3) ** 2 + 0.01 * values["rows"]


def search(sampler: str = "tpe", **more: object) -> Search:
    return Search(**{"space": SPACE, "sampler": sampler, "seed": 3, "higher_is_better": False, **more})  # type: ignore[arg-type]


def sweep(one: Search, trials: int, group: int = 1) -> list[Outcome]:
    """Trials of a known function, proposed in groups."""
    known: list[Outcome] = []
    while len(known) < trials:
        beside: list[dict] = []
        for number in range(len(known) + 1, len(known) + group + 1):
            beside.append(one.propose(number, known, beside))
        known += [Outcome(values=values, state="complete", value=loss(values)) for values in beside]
    return known


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_proposal_depends_on_nothing_but_earlier_results(sampler: str) -> None:
    whole = sweep(search(sampler), 16, group=2)
    random.seed(99)  # what a resumed process has drawn before must not matter
    again = search(sampler).propose(15, whole[:14], [])
    assert again == whole[14].values
    assert search(sampler).propose(16, whole[:14], [again]) == whole[15].values
    assert len({str(one.values) for one in whole}) == len(whole)


def test_tpe_finds_what_random_search_does_not() -> None:
    def mean_of_later_half(sampler: str) -> float:
        return sum(one.value or 0 for seed in (1, 2, 3) for one in sweep(search(sampler, seed=seed), 30)[15:]) / 45

    assert mean_of_later_half("tpe") < 0.8 * mean_of_later_half("random")
    by_tpe = sweep(search(), 30)
    shares = importances(search(), by_tpe)
    assert next(iter(shares)) == "rate" and shares["rate"] > 0.5
    assert importances(search(), by_tpe[:3]) == {}


def test_values_are_as_the_recipe_takes_them() -> None:
    for one in sweep(search(), 12):
        assert 1e-4 <= one.values["rate"] <= 1e-2 and float(f"{one.values['rate']:.4g}") == one.values["rate"]
        assert type(one.values["rows"]) is int and one.values["name"] in ("adamw", "muon")


def test_a_grid_has_every_point_once_and_needs_choices() -> None:
    space = (parse_parameter("a=1,2"), parse_parameter("b=x,y,z"))
    grid = Search(space=space, sampler="grid", seed=0, higher_is_better=False, first={"a": 2, "b": "z"})
    assert [tuple(grid.propose(n, (), ()).values()) for n in range(1, 7)] == [
        (1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z"),
    ]  # fmt: skip
    with pytest.raises(FledgeError, match="needs values, not a range"):
        search("grid").propose(1, (), ())


def test_the_recipe_itself_is_tried_first() -> None:
    own = {"rate": 5e-4, "rows": 2, "name": "muon"}
    assert search(first=own).propose(1, (), ()) == own
    assert search(first=own).propose(2, (), ()) != own


def test_the_journal_gives_back_what_was_written_and_drops_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "journal.log"
    journal = Journal(file, search())
    records = [
        TrialRecord(number=1, values=sweep(search(), 1)[0].values, state="complete", value=1.5, seed_values=(1.0, 2.0)),
        TrialRecord(number=2, values=sweep(search(), 2)[1].values, state="pruned", value=2.5, looks={1: 2.5}, reason="worse"),
        TrialRecord(number=3, values=sweep(search(), 3)[2].values, state="failed", value=None, reason="it diverged"),
    ]
    for record in records:
        journal.append(record)
    assert Journal(file, search()).records == records
    with file.open("ab") as stream:
        stream.write(b'{"op_code":4,"worker_id":"x","study')  # a process was killed while it wrote
    (tmp_path / "journal.log.lock").symlink_to(file)  # and left its lock
    again = Journal(file, search())
    assert again.records == records
    again.append(records[0])
    assert Journal(file, search()).records == [*records, records[0]]
    assert best_record(records, higher_is_better=False) == records[0]
    assert best_record(records[1:], higher_is_better=False) is None


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    file = tmp_path / "journal.log"
    Journal(file, search()).append(TrialRecord(number=1, values=sweep(search(), 1)[0].values, state="complete", value=1.5))
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], b"{not json", *lines[1:]]))
    with pytest.raises(FledgeError, match="damaged") as caught:
        Journal(file, search())
    assert caught.value.where == str(file)
