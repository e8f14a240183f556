"""One self-contained page about a finished run, and the same summary for a terminal."""

from fledge.report.page import write_report
from fledge.report.table import stage_table

__all__ = ["stage_table", "write_report"]
