"""`sslnlp report`: measure the exports of runs and write what was found beside them.

What measures is imported once the folders and files are found to be there: it brings torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from sslnlp.data.files import check_there
from sslnlp.errors import UserError
from sslnlp.report.run_facts import read_runs, run_of

log = logging.getLogger(__name__)

Tell = Callable[[str], None]


def report_runs(
    runs: Sequence[Path],
    tell: Tell = lambda line: None,
    *,
    against: list[str] | None = None,
    out: str | None = None,
    title: str | None = None,
    measures: bool = True,
    texts: str | None = None,
    pictures: str | None = None,
    pairs: str | None = None,
    sts: str | None = None,
    probe_train: str | None = None,
    probe_test: str | None = None,
    label: str | None = None,
    templates: list[str] | None = None,
    beir: str | None = None,
    documents: int | None = None,
) -> Path:
    """Measure the exports of runs and write report.json, report.html and figures/; returns the page's path.

    What is not given is taken from `report.*` of the first run's recipe; all runs are measured on the same texts (or
    pictures), those that the first run with such held out unless `texts` (`pictures`) names others. Each run's model
    card gets the short form of its own, where it can be written.

    Args:
        runs: their folders; of a run's export/ its run is meant.
        tell: called with the run and the name of each measure before it is made.
        against: further runs, as if they stood among `runs`.
        out: where to write; the first run's folder otherwise.
        measures: False measures nothing: shown are what the runs logged and what reports in their folders hold.
        texts, pictures, pairs, sts, probe_train, probe_test, label, templates, beir, documents: see `ReportConfig`.
    """
    facts = read_runs([run_of(folder) for folder in (*runs, *map(Path, against or []))])
    given = {
        "texts": texts, "pictures": pictures, "pairs": pairs, "sts": sts, "probe_train": probe_train,
        "probe_test": probe_test, "label": label, "templates": templates, "beir": beir, "documents": documents,
    }  # fmt: skip
    if measures:
        check_there(texts, pictures, pairs, sts, probe_train, probe_test)
    from sslnlp.report.measuring import into_model_card, measured, measured_before
    from sslnlp.report.runs import make_report

    if measures:
        cards = measured(facts, {name: value for name, value in given.items() if value is not None}, tell)
        for run in facts:
            if (card := cards.get(run.name)) is not None and card.figures:  # else what it says is still what is known
                try:
                    into_model_card(run.path / "export" / "README.md", card)
                except UserError as error:  # of a run of somebody else, say; the report goes to `out` all the same
                    log.warning("%s: its model card stays as it is: %s", run.name, str(error).partition(";")[0])
    else:
        cards = {run.name: card for run in facts if (card := measured_before(run)) is not None}
    return make_report(facts[0].path, against=[str(run.path) for run in facts[1:]], out=out, title=title, cards=cards)
