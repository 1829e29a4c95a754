"""Pictures and words to vectors in one space: what searches pictures by words, as `Encoder` does texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslnlp.errors import UserError
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.pictures import BrokenPicture
from sslnlp.quiet import quiet_loading
from sslnlp.search.encoder import Kind, Reads
from sslnlp.search.model_folder import called, fingerprint, resolve


class DualEncoder:
    """A frozen dual encoder, with the interface of `Encoder`: documents are pictures, queries are words.

    `fingerprint` identifies weights, tokenizer and settings together.
    """

    reads: Reads = "pictures"
    described = True
    cosines = False
    """Those of words and pictures are all small, however well they match (Liang et al., 2022, arXiv:2203.02053)."""

    def __init__(self, model: PictureEncoder, name: str, fingerprint: str) -> None:
        self.model, self.name, self.fingerprint = model, name, fingerprint
        self.dimension = model.dimension

    @classmethod
    def load(cls, name: str) -> DualEncoder:
        """The dual encoder in folder `name`, or of that name on the hub. Raises UserError when it cannot be loaded."""
        folder = resolve(name)
        with quiet_loading():
            model = PictureEncoder.load(str(folder))
        return cls(model, called(name), fingerprint(folder))

    @property
    def max_length(self) -> int:
        """Tokens of the longest query that is read; longer ones are cut."""
        return self.model.max_length

    def encode(self, things: Sequence[Any], kind: Kind, *, batch_size: int = 32) -> NDArray[np.float32]:
        """Vectors float32 [N, D] of texts (`kind` "query") or of the bytes of files of pictures ("document").

        Raises UserError for bytes that are no picture.
        """
        if kind == "query":
            return self.model.texts(things, batch_size=batch_size)
        try:
            return self.model.pictures(things, batch_size=batch_size)
        except BrokenPicture as error:
            raise UserError(f"{self.name} was given what is no picture ({error})") from error
