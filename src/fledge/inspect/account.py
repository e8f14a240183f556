"""The account of every row: totals of each source that add up, and the rows with location, reason and detail."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.text import Text

from fledge.data import is_complete
from fledge.data.build.directory import REPORT_FILE, BuildDirectory
from fledge.data.build.report import report_rows, report_tokens
from fledge.data.report import SavedReport, source_lines
from fledge.data.row_events import BUILD_AGAIN, SAMPLED_STATES, STATES
from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.inspect.builds import builds_of
from fledge.inspect.row_lookup import row_events_of
from fledge.inspect.row_trace import trace_row
from fledge.inspect.target import Overrides
from fledge.run import Log
from fledge.run.terminal import Terminal
from fledge.run.text_files import read_json


@dataclass(frozen=True)
class Filter:
    """A filter on rows. `source` and `reason` match a part of the name, in any case; None matches everything."""

    source: str | None = None
    reason: str | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in STATES:
            raise FledgeError(f"there is no state '{self.state}'", where="--state", hint=f"it is one of {', '.join(STATES)}")

    @property
    def empty(self) -> bool:
        """Whether the filter matches every row."""
        return self.source is None and self.reason is None and self.state is None

    def matches_source(self, name: str, path: str) -> bool:
        """Whether the rows of a source may match."""
        return self.source is None or self.source.lower() in f"{name}\n{path}".lower()

    def matches(self, event: dict[str, Any]) -> bool:
        """Whether the recorded event of a row matches."""
        reason_matches = self.reason is None or self.reason.lower() in event["reason"].lower()
        return reason_matches and self.state in (None, event["state"])


def totals(folder: Path) -> list[dict[str, Any]]:
    """The totals of a build's sources, as in data_report.json. For an incomplete build, the rows counted so far."""
    if is_complete(folder):
        return read_json(folder / REPORT_FILE, SavedReport, BUILD_AGAIN)["sources"]
    build = BuildDirectory.open(folder)
    return report_tokens(report_rows(build), build).as_dict()["sources"]


def matching_events(folder: Path, row_filter: Filter) -> Iterator[dict[str, Any]]:
    """The recorded row events of a build that match the filter, each with the name of its source."""
    build = BuildDirectory.open(folder)
    for shard in sorted(build.plan.shards, key=lambda shard: (shard.source, shard.number)):
        source = build.plan.source_of(shard)
        if row_filter.matches_source(source.name, source.path):
            for event in row_events_of(build, shard):
                if row_filter.matches(event):
                    yield {"source": source.name, **{key: event[key] for key in ("where", "state", "reason", "detail")},
                           "amount": event.get("amount", 0)}  # fmt: skip


def account(
    targets: Sequence[str],
    overrides: Overrides,
    stage: str | None,
    row_filter: Filter,
    row: str | None,
    limit: int,
    as_json: bool,
    log: Log,
) -> None:
    """Print the totals of a run, a built directory or a recipe, and the rows that match a filter. With `row`: print its
    trace."""
    if limit < 1:
        raise FledgeError("--limit must be above 0")
    with builds_of(targets, overrides, stage, log) as builds:
        if row is not None:
            if builds.error:
                raise builds.error
            trace_row(builds, row, as_json)
            return
        all_accounts = [_stage(name, folder, row_filter, limit) for name, folder in builds.folders.items()]
        accounts = [stage_account for stage_account in all_accounts if stage_account["sources"]]
        if row_filter.source is not None and not accounts:
            raise FledgeError(f"no source is called '{row_filter.source}'", where="--source")
        if as_json:
            print(escaped_json(orjson.dumps({"stages": accounts}, option=orjson.OPT_INDENT_2).decode()))
        else:
            _print(accounts)
        if builds.error:
            raise builds.error


def _stage(name: str, folder: Path, row_filter: Filter, limit: int) -> dict[str, Any]:
    """The account of one stage as JSON values: at most `limit` rows, and the number of `matching` rows."""
    sources = [source for source in totals(folder) if row_filter.matches_source(source["name"], source["path"])]
    result: dict[str, Any] = {"stage": name, "sources": sources}
    if not row_filter.empty:
        events = matching_events(folder, row_filter)
        shown = list(islice(events, limit))
        result |= {"rows": shown, "matching": len(shown) + sum(1 for _ in events)}
    return result


def _print(stages: Sequence[dict[str, Any]]) -> None:
    terminal = Terminal(soft_wrap=True)
    for stage in stages:
        terminal.print(Text(stage["stage"], style="bold"))
        for source in stage["sources"]:
            terminal.print(Text(f"  {_sum_line(source)}"))
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


def _sum_line(source: dict[str, Any]) -> str:
    """`rows = used + dropped`, with the events of the used rows."""
    trained = source["split"] == "train"
    split_label = "" if trained else f" ({source['split']})"
    dropped = sum(source["dropped"].values())
    details = [f"{source['validation_rows']:,} for validation"] if source["validation_rows"] and trained else []
    counts = {state: source[f"{state}_rows"] for state in ("truncated", "shortened", "split")}
    details += [f"{count:,} {state}" for state, count in counts.items() if count]
    used = f"{source['used_rows']:,} used" + (f" ({', '.join(details)})" if details else "")
    return f"{source['name']}{split_label}: {source['rows']:,} rows = {used} + {dropped:,} dropped"


STYLES = {"dropped": "red", "truncated": "yellow", "shortened": "yellow", "split": "yellow"}
