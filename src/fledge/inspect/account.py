"""The account of every row: totals of each source that add up, and the rows themselves with place, reason and detail."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from fledge.data import is_complete
from fledge.data.build.report import account_rows
from fledge.data.build.shards import BuildPlan
from fledge.data.report import STATES, account_lines
from fledge.errors import FledgeError
from fledge.inspect.row_lookup import notes_of
from fledge.inspect.row_trace import trace_row
from fledge.inspect.target import Overrides, Say, builds_of
from fledge.run.text_files import read_json


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted. `source` and `reason` are parts of the name, in any case; None: any."""

    source: str | None = None
    reason: str | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in STATES:
            raise FledgeError(f"there is no state '{self.state}'", where="--state", hint=f"it is one of {', '.join(STATES)}")

    @property
    def empty(self) -> bool:
        """Whether nothing was asked for."""
        return self.source is None and self.reason is None and self.state is None

    def takes_source(self, name: str, path: str) -> bool:
        """Whether a source is wanted."""
        return self.source is None or self.source.lower() in f"{name}\n{path}".lower()

    def takes(self, note: dict[str, Any]) -> bool:
        """Whether a remark on a row is wanted."""
        wanted = self.reason is None or self.reason.lower() in note["reason"].lower()
        return wanted and self.state in (None, note["state"])


def totals(folder: Path) -> list[dict[str, Any]]:
    """The accounts of a build's sources, as in data_report.json; of an incomplete one, what is counted up to now."""
    if is_complete(folder):
        return read_json(folder / "data_report.json")["sources"]
    return account_rows(folder, BuildPlan.read(folder / "build_plan.json"), encoded=True).as_dict()["sources"]


def remarks(folder: Path, wanted: Filter) -> Iterator[dict[str, Any]]:
    """The wanted remarks of a build, each with the name of its source."""
    plan = BuildPlan.read(folder / "build_plan.json")
    for shard in sorted(plan.shards, key=lambda shard: (shard.source, shard.number)):
        planned = plan.sources[shard.source]
        if wanted.takes_source(planned.name, planned.path):
            for note in notes_of(folder, shard.folder):
                if wanted.takes(note):
                    yield {"source": planned.name, **{key: note[key] for key in ("where", "state", "reason", "detail")},
                           "amount": note.get("amount", 0)}  # fmt: skip


def account(
    targets: Sequence[str],
    overrides: Overrides,
    stage: str | None,
    wanted: Filter,
    row: str | None,
    limit: int,
    as_json: bool,
    say: Say,
) -> None:
    """Print the account of a run, a built directory or a recipe; the rows where any are asked for; or the way of one row."""
    if limit < 1:
        raise FledgeError("--limit must be above 0")
    with builds_of(targets, overrides, stage, say) as builds:
        if row is not None:
            if builds.error:
                raise builds.error
            trace_row(builds, row, as_json)
            return
        every = [_stage(name, folder, wanted, limit) for name, folder in builds.folders.items()]
        made = [one for one in every if one["sources"]]
        if wanted.source is not None and not made:
            raise FledgeError(f"no source is called '{wanted.source}'", where="--source")
        if as_json:
            print(orjson.dumps({"stages": made}, option=orjson.OPT_INDENT_2).decode())
        else:
            _print(made)
        if builds.error:
            raise builds.error


def _stage(name: str, folder: Path, wanted: Filter, limit: int) -> dict[str, Any]:
    """One stage's account as JSON: `rows` are at most `limit`, `matching` says how many there are."""
    sources = [source for source in totals(folder) if wanted.takes_source(source["name"], source["path"])]
    found: dict[str, Any] = {"stage": name, "sources": sources}
    if not wanted.empty:
        all_notes = remarks(folder, wanted)
        shown = list(islice(all_notes, limit))
        found |= {"rows": shown, "matching": len(shown) + sum(1 for _ in all_notes)}
    return found


def _print(stages: Sequence[dict[str, Any]]) -> None:
    terminal = Console(highlight=False, soft_wrap=True)
    for stage in stages:
        terminal.print(Text(stage["stage"], style="bold"))
        for source in stage["sources"]:
            terminal.print(Text(f"  {_sum(source)}"))
            for line in account_lines(source)[1:]:
                terminal.print(Text(f"  {line}", style="dim"))
        if "rows" not in stage:
            continue
        for note in stage["rows"]:
            line = Text(f"  {note['where']}  ")
            line.append(f"{note['state']}: {note['reason']}", style=STYLES.get(note["state"], ""))
            line.append(f"  {note['detail']}" if note["detail"] else "", style="dim")
            terminal.print(line)
        if any(note["state"] in ("changed", "noticed") for note in stage["rows"]):
            terminal.print(
                Text("  (all changes and notices are counted, but only the first few of each are noted)", style="italic")
            )
        more = stage["matching"] - len(stage["rows"])
        if more:
            terminal.print(Text(f"  … and {more:,} more: --limit {stage['matching']}", style="italic"))
        elif not stage["matching"]:
            terminal.print(Text("  no such row", style="italic"))


def _sum(source: dict[str, Any]) -> str:
    """`rows = used + dropped`, and what else happened to the used ones."""
    part = "" if source["part"] == "train" else f" ({source['part']})"
    dropped = sum(source["dropped"].values())
    more = [f"{source['validation']:,} for validation"] if source["validation"] and source["part"] == "train" else []
    more += [f"{source[state]:,} {state}" for state in ("truncated", "shortened", "split") if source[state]]
    used = f"{source['used']:,} used" + (f" ({', '.join(more)})" if more else "")
    return f"{source['name']}{part}: {source['rows']:,} rows = {used} + {dropped:,} dropped"


STYLES = {"dropped": "red", "truncated": "yellow", "shortened": "yellow", "split": "yellow"}
