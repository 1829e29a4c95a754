"""The report of a run, or of several side by side: report.json for programs, report.html for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.registry import on_first_use
from sslnlp.report.config import ReportConfig

if TYPE_CHECKING:
    from sslnlp.report.page import Chart, Report, Section, Table
    from sslnlp.report.runs import RunFacts, make_report, read_run
else:  # the keys of a recipe are read and checked without what measures
    __getattr__ = on_first_use(
        __name__,
        {"page": ("Chart", "Report", "Section", "Table"), "runs": ("RunFacts", "make_report", "read_run")},
    )

__all__ = ["Chart", "Report", "ReportConfig", "RunFacts", "Section", "Table", "make_report", "read_run"]
