"""The account of every row: totals of each source that add up, and the rows themselves with location, reason and detail."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from fledge.data import is_complete
from fledge.data.build.directory import REPORT_FILE, BuildDirectory
from fledge.data.build.report import report_rows, report_tokens
from fledge.data.report import source_lines
from fledge.data.row_events import SAMPLED_STATES, STATES
from fledge.errors import FledgeError
from fledge.inspect.row_lookup import events_of
from fledge.inspect.row_trace import trace_row
from fledge.inspect.target import Overrides, Say, builds_of
from fledge.run.directory import read_json


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

    def takes(self, event: dict[str, Any]) -> bool:
        """Whether an event about a row is wanted."""
        wanted = self.reason is None or self.reason.lower() in event["reason"].lower()
        return wanted and self.state in (None, event["state"])


def totals(folder: Path) -> list[dict[str, Any]]:
    """The sources of a build's data_report.json; of an incomplete one, what is counted up to now."""
    if is_complete(folder):
        return read_json(folder / REPORT_FILE)["sources"]
    build = BuildDirectory.open(folder)
    return report_tokens(report_rows(build), build).as_dict()["sources"]


def row_events(folder: Path, wanted: Filter) -> Iterator[dict[str, Any]]:
    """The wanted events of a build, each with the name of its source."""
    build = BuildDirectory.open(folder)
    for shard in sorted(build.plan.shards, key=lambda shard: (shard.source, shard.number)):
        source = build.plan.source_of(shard)
        if wanted.takes_source(source.name, source.path):
            for event in events_of(build, shard):
                if wanted.takes(event):
                    yield {"source": source.name, **{key: event[key] for key in ("where", "state", "reason", "detail")},
                           "amount": event.get("amount", 0)}  # fmt: skip


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
        events = row_events(folder, wanted)
        shown = list(islice(events, limit))
        found |= {"rows": shown, "matching": len(shown) + sum(1 for _ in events)}
    return found


def _print(stages: Sequence[dict[str, Any]]) -> None:
    terminal = Console(highlight=False, soft_wrap=True)
    for stage in stages:
        terminal.print(Text(stage["stage"], style="bold"))
        for source in stage["sources"]:
            terminal.print(Text(f"  {_sum(source)}"))
            for line in source_lines(source)[1:]:
                terminal.print(Text(f"  {line}", style="dim"))
        if "rows" not in stage:
            continue
        for event in stage["rows"]:
            line = Text(f"  {event['where']}  ")
            line.append(f"{event['state']}: {event['reason']}", style=STYLES.get(event["state"], ""))
            line.append(f"  {event['detail']}" if event["detail"] else "", style="dim")
            terminal.print(line)
        if any(event["state"] in SAMPLED_STATES for event in stage["rows"]):
            terminal.print(
                Text("  (all changes and notices are counted, but only the first few of each are kept)", style="italic")
            )
        more = stage["matching"] - len(stage["rows"])
        if more:
            terminal.print(Text(f"  … and {more:,} more: --limit {stage['matching']}", style="italic"))
        elif not stage["matching"]:
            terminal.print(Text("  no such row", style="italic"))


def _sum(source: dict[str, Any]) -> str:
    """`rows = used + dropped`, and what else happened to the used ones."""
    split = "" if source["split"] == "train" else f" ({source['split']})"
    dropped = sum(source["dropped"].values())
    more = [f"{source['validation_rows']:,} for validation"] if source["validation_rows"] and source["split"] == "train" else []
    more += [f"{source[f'{state}_rows']:,} {state}" for state in ("truncated", "shortened", "split") if source[f"{state}_rows"]]
    used = f"{source['used_rows']:,} used" + (f" ({', '.join(more)})" if more else "")
    return f"{source['name']}{split}: {source['rows']:,} rows = {used} + {dropped:,} dropped"


STYLES = {"dropped": "red", "truncated": "yellow", "shortened": "yellow", "split": "yellow"}
