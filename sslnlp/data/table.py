"""Tables as rows: any columns (`TableRows`), for classification (`labelled`), for ranking (`paired`)."""

from sslnlp.data.labelled import Labelled, labelled, unlabelled
from sslnlp.data.paired import Paired, paired
from sslnlp.data.table_rows import TableRows

__all__ = ["Labelled", "Paired", "TableRows", "labelled", "paired", "unlabelled"]
