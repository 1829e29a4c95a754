"""The model card: what a run knows about itself, as a README that a hub and a person can both read."""

from __future__ import annotations

from sslnlp.card.facts import CardFacts, ReportRow
from sslnlp.card.page import model_card, report_section, with_report
from sslnlp.card.text import public

__all__ = ["CardFacts", "ReportRow", "model_card", "public", "report_section", "with_report"]
