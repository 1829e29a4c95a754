"""Pictures and what is written about them, for objectives that bring both into one space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sslnlp.collators.base import Collator
from sslnlp.collators.images import ImageViewsCollator, PictureCollator
from sslnlp.collators.pairs import check_room, single_texts
from sslnlp.data.hashes import hash_same
from sslnlp.errors import UserError
from sslnlp.pictures import normalised
from sslnlp.registry import bound_class
from sslnlp.rng import uniform
from sslnlp.types import Batch, Encoding, Row


@dataclass(kw_only=True)
class ImageTextCollator(PictureCollator):
    """Decodes and crops each picture and tokenizes some of its captions, drawn anew each pass.

    Rows: `image` (the bytes of a file), `captions` (a list of texts) and `picture` (a hash of the picture). Batch, with
    K captions of B pictures: `pixel_values` float32 [B, 3, P, P], from -1 to 1; `text`, an encoding [K, S];
    `text_row` int64 [K], which picture a caption is of, ascending; `image_hash` int64 [B] and `text_hash` int64 [K],
    equal for equal ones; `position` int64 [B]; with `views`, also what `image_views` makes.

    Held out, pictures are whole and all their captions are read. Captions may say left and right, so `augment=crop`
    mirrors nothing.
    """

    name: ClassVar[str] = "image_text"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"pixel_values", "text", "text_row", "image_hash", "text_hash", "position"}
    )
    reads_text: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("image", "captions")
    requires: ClassVar[frozenset[str]] = frozenset({"pad"})
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 64
    """Tokens of a caption, special tokens included; the end of a longer one is cut off."""
    captions: int = 1
    """Captions of a picture in a batch, or all where it has fewer."""
    views: int = 0
    """Further views of each picture, for self-supervision beside its captions; settled by the objective."""
    crop_min: float | None = None
    """Share of the picture that the crop of a further view has at least; None: 0.08."""

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Collator]:
        if not options.get("views"):
            return cls
        more = frozenset({"view_0", "view_1", "present", "documents"})
        return bound_class(cls, options, makes=cls.makes | more)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_room(self.tokenizer, max_length=self.max_length)
        if self.captions < 1:
            raise UserError(f"collator.captions must be at least 1, got {self.captions}")
        self._views = None
        if self.views:
            self._views = ImageViewsCollator(
                seed=self.seed, image_size=self.image_size, patch_size=self.patch_size, views=self.views,
                crop_min=self.crop_min,
            )  # fmt: skip

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions: list[int] = self._fresh.of(rows).tolist()
        pixels_BHWC = np.stack([self.usual(row, at) for row, at in zip(rows, positions, strict=True)])
        chosen = [self._captions(row, at) for row, at in zip(rows, positions, strict=True)]
        texts = [text for some in chosen for text in some]
        batch: Batch = {
            "pixel_values": normalised(pixels_BHWC),
            "text": self.encode(texts),
            "text_row": torch.tensor([n for n, some in enumerate(chosen) for _ in some]),
            "image_hash": torch.tensor([int(row["picture"]) for row in rows], dtype=torch.int64),
            "text_hash": torch.from_numpy(hash_same(texts).view(np.int64).copy()),
        }
        if self._views is not None:
            batch = {**self._views(rows), **batch}
        batch["position"] = torch.tensor(positions, dtype=torch.int64)
        return batch

    def encode(self, captions: Sequence[str]) -> Encoding:
        """The `text` of a batch, of these captions."""
        encoded = single_texts(self.tokenizer, captions, self.max_length)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _captions(self, row: Row, position: int) -> list[str]:
        captions: list[str] = list(row["captions"])
        if not self.training or len(captions) <= self.captions:
            return captions
        order = np.argsort(uniform(self.seed, "caption", [position], len(captions))[0], kind="stable")
        return [captions[at] for at in sorted(order[: self.captions].tolist())]

    def for_evaluation(self, seed: int) -> ImageTextCollator:
        return dataclasses.replace(self, seed=seed, horizon=None, training=False)
