"""`evaluate` modules that live in this package: no script is fetched from a hub, nothing is written to disk."""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import evaluate

VECTOR_PAIRS = datasets.Features(
    {
        "predictions": datasets.Sequence(datasets.Value("float32")),
        "references": datasets.Sequence(datasets.Value("float32")),
    }
)
"""Two vectors an example."""


class LocalMetric(evaluate.Metric):  # type: ignore[misc]  # `evaluate` ships no types
    """A metric like those of `evaluate.load`, defined here. Subclasses set `describes`, `features` and `_compute`.

    `compute`, `add`, `add_batch` and `evaluate.combine` work as for any `evaluate.Metric`.
    """

    describes: str
    features_of: datasets.Features

    def __init__(self, **options: Any) -> None:
        # `evaluate` makes its cache folder even when it keeps everything in memory: not in the user's home.
        options = {"keep_in_memory": options.get("num_process", 1) == 1, "cache_dir": tempfile.gettempdir(), **options}
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.describes, citation="", inputs_description="", features=self.features_of
        )
