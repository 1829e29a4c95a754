"""From files, folders and hub data sets to rows at positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.data.config import DataConfig
from sslnlp.registry import on_first_use

if TYPE_CHECKING:
    from sslnlp.data.packing import PackedRows, PaddedRows
    from sslnlp.data.prepare import Prepared, prepare_text, sample_texts
    from sslnlp.data.sources import Source, open_source
    from sslnlp.data.store import TokenStore
    from sslnlp.data.stream import Stream
else:  # what is said about data is read and checked without what reads them
    __getattr__ = on_first_use(
        __name__,
        {
            "packing": ("PackedRows", "PaddedRows"),
            "prepare": ("Prepared", "prepare_text", "sample_texts"),
            "sources": ("Source", "open_source"),
            "store": ("TokenStore",),
            "stream": ("Stream",),
        },
    )

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
