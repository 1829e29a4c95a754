"""Pictures and what is written about them, for objectives that bring both into one space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch

from sslnlp.augment import IMAGE_TEXT, VIEWS
from sslnlp.collators.base import Collator
from sslnlp.data.hashes import hash_same
from sslnlp.errors import UserError
from sslnlp.pictures import decode, normalised, whole
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row

AUGMENTS = {"crop": IMAGE_TEXT, "strong": VIEWS, "none": None}


@dataclass(kw_only=True)
class ImageTextCollator(Collator):
    """Decodes and crops each picture and tokenizes some of its captions, drawn anew each pass.

    Rows: `image` (the bytes of a file), `captions` (a list of texts) and `picture` (a hash of the picture). Batch, with
    K captions of B pictures: `pixel_values` float32 [B, 3, P, P], from -1 to 1; `text`, an encoding [K, S];
    `text_row` int64 [K], which picture a caption is of, ascending; `image_hash` int64 [B] and `text_hash` int64 [K],
    equal for equal ones; `position` int64 [B] when the rows carry it.

    Held out, pictures are whole and all their captions are read.
    """

    name: ClassVar[str] = "image_text"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"pixel_values", "text", "text_row", "image_hash", "text_hash", "position"}
    )
    reads: ClassVar[str] = "pictures"
    columns: ClassVar[tuple[str, ...]] = ("image", "captions")
    requires: ClassVar[frozenset[str]] = frozenset({"pad"})
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)

    max_length: int = 64
    """Tokens of a caption, special tokens included; the end of a longer one is cut off."""
    image_size: int = 64
    """Pixels of a side of what the vision tower reads; settled by the objective."""
    captions: int = 1
    """Captions of a picture in a batch, or all where it has fewer."""
    augment: Literal["crop", "strong", "none"] = "crop"
    """`crop`: 60 to 100 % of the picture, as large as the whole (captions may say left and right, so nothing is
    mirrored); `strong`: also colours, blur and mirroring, as in SimCLR; `none`."""
    training: bool = True
    """Whether pictures are augmented and captions drawn; set by the loop."""

    def __post_init__(self) -> None:
        around = self.tokenizer.num_special_tokens_to_add(pair=False)
        if self.max_length <= around:
            raise UserError(f"collator.max_length={self.max_length} leaves no room beside {around} special tokens")
        for name in ("image_size", "captions"):
            if getattr(self, name) < 1:
                raise UserError(f"collator.{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions = [int(row["position"]) if "position" in row else n for n, row in enumerate(rows)]
        pixels_BHWC = np.stack([self._pixels(row, at) for row, at in zip(rows, positions, strict=True)])
        chosen = [self._captions(row, at) for row, at in zip(rows, positions, strict=True)]
        texts = [text for some in chosen for text in some]
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=True, padding_side="right",
            return_token_type_ids=False, return_tensors="pt",
        )  # fmt: skip
        batch: Batch = {
            "pixel_values": normalised(pixels_BHWC),
            "text": {name: encoded[name] for name in ("input_ids", "attention_mask")},
            "text_row": torch.tensor([n for n, some in enumerate(chosen) for _ in some]),
            "image_hash": torch.tensor([int(row["picture"]) for row in rows], dtype=torch.int64),
            "text_hash": torch.from_numpy(hash_same(texts).view(np.int64).copy()),
        }
        if all("position" in row for row in rows):
            batch["position"] = torch.tensor(positions, dtype=torch.int64)
        return batch

    def _pixels(self, row: Row, position: int) -> np.ndarray:
        augment = AUGMENTS[self.augment] if self.training else None
        # A large JPEG is decoded no larger than its smallest crop needs it.
        shrunk = 1.0 if augment is None else augment.scale[0] ** 0.5
        picture = decode(row["image"], size=math.ceil(self.image_size / shrunk))
        if augment is None:
            return whole(picture, self.image_size)
        return augment(picture, self.image_size, self.seed, position)

    def _captions(self, row: Row, position: int) -> list[str]:
        captions: list[str] = list(row["captions"])
        if not self.training or len(captions) <= self.captions:
            return captions
        order = np.argsort(uniform(self.seed, "caption", [position], len(captions))[0], kind="stable")
        return [captions[at] for at in sorted(order[: self.captions].tolist())]

    def for_evaluation(self, seed: int) -> ImageTextCollator:
        return replace(self, seed=seed, horizon=None, training=False)
