"""The report of a run, or of several side by side: report.json for programs, report.html for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.registry import on_first_use
from sslnlp.report.config import ReportConfig

if TYPE_CHECKING:
    from sslnlp.report.page import Chart, Report, Section, Table
    from sslnlp.report.run_facts import RunFacts, read_run
    from sslnlp.report.runs import make_report
else:  # the keys of a recipe are read and checked without what measures
    __getattr__ = on_first_use(
        __name__,
        {
            "page": ("Chart", "Report", "Section", "Table"),
            "run_facts": ("RunFacts", "read_run"),
            "runs": ("make_report",),
        },
    )

__all__ = ["Chart", "Report", "ReportConfig", "RunFacts", "Section", "Table", "make_report", "read_run"]
