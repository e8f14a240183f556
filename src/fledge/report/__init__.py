"""The report of a run and the comparison of runs: self-contained HTML pages, figures as files, and a table for a terminal."""

from fledge.report.page import write_report
from fledge.report.table import stage_table

__all__ = ["stage_table", "write_report"]
