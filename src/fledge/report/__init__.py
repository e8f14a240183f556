"""The report of a finished run: one self-contained HTML page, and a summary table for a terminal."""

from fledge.report.page import write_report
from fledge.report.table import stage_table

__all__ = ["stage_table", "write_report"]
