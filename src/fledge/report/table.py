"""The stage summary for a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from fledge.localization import language
from fledge.report.read_run import read_run
from fledge.report.summary_table import stage_rows

if TYPE_CHECKING:
    from rich.table import Table


def stage_table(run_directory: Path) -> "Table":
    """The stage summary as a rich table: one row per measure, one column per stage. Names are shown literally, never as
    markup."""
    from rich.table import Table
    from rich.text import Text

    from fledge.run.terminal import Verbatim

    run, code = read_run(Path(run_directory)), language()
    table = Table(title=Text(run.name), title_justify="left", header_style="bold")
    table.add_column("")
    for stage in run.stages:
        table.add_column(Verbatim(stage.name), overflow="fold")
    for row in stage_rows(run.stages):
        cells = [
            Text("not recorded", style="dim")
            if cell is None
            else Verbatim(cell.plain_in(code), style={True: "green", False: "red"}.get(cell.better, ""))  # type: ignore[arg-type]
            for cell in row.cells
        ]
        table.add_row(Verbatim(getattr(row.label, code)), *cells)
    return table
