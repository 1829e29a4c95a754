"""The report of a run, or of several side by side: report.json for programs, report.html for people."""

from __future__ import annotations

from sslnlp.report.config import ReportConfig
from sslnlp.report.page import Chart, Report, Section, Table
from sslnlp.report.runs import RunFacts, make_report, read_run

__all__ = ["Chart", "Report", "ReportConfig", "RunFacts", "Section", "Table", "make_report", "read_run"]
