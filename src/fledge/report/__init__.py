"""One self-contained page about a finished run, and the same summary for a terminal."""

from .page import write_report
from .table import stage_table

__all__ = ["stage_table", "write_report"]
