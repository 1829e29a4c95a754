"""A stand-in encoder of small whole numbers: equal texts tie exactly, and every text encoded is counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIMENSION = 8


class Letters:
    """How often each of the first eight letters stands in a text."""

    name, fingerprint, dimension, reads, described, cosines = "letters", "0", DIMENSION, "texts", True, False

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str], kind: str, *, batch_size: int = 32) -> np.ndarray:
        self.encoded += [text for text in texts if kind == "document"]
        return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)
