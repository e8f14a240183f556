"""The stage summary for a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from fledge.report.read_run import gather
from fledge.report.summary_table import stage_rows

if TYPE_CHECKING:
    from rich.table import Table


def stage_table(run_directory: Path) -> "Table":
    """One row per measure and one column per stage; names are shown as they are, never as markup."""
    from rich.table import Table
    from rich.text import Text

    run = gather(Path(run_directory))
    table = Table(title=Text(run.name), title_justify="left", header_style="bold")
    table.add_column("")
    for stage in run.stages:
        table.add_column(Text(stage.name), overflow="fold")
    for row in stage_rows(run.stages):
        cells = [
            Text("not recorded", style="dim")
            if cell is None
            else Text(cell.plain, style={True: "green", False: "red"}.get(cell.better, ""))  # type: ignore[arg-type]
            for cell in row.cells
        ]
        table.add_row(Text(row.label.en), *cells)
    return table
