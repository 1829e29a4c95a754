"""From files, folders and hub data sets to rows at positions."""

from sslnlp.data.config import DataConfig
from sslnlp.data.packing import PackedRows, PaddedRows
from sslnlp.data.prepare import Prepared, prepare_text, sample_texts
from sslnlp.data.sources import Source, open_source
from sslnlp.data.store import TokenStore
from sslnlp.data.stream import Stream

__all__ = [
    "DataConfig",
    "PackedRows",
    "PaddedRows",
    "Prepared",
    "Source",
    "Stream",
    "TokenStore",
    "open_source",
    "prepare_text",
    "sample_texts",
]
