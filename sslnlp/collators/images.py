"""Pictures without words: two views of each, a turn to be named, or patches to be filled in.

Shapes: B pictures, P pixels of a side, N patches of a picture (its states are 1 + N: one stands for the whole).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sslnlp.arrays import Bytes, Ints
from sslnlp.augment import IMAGE_TEXT, VIEWS, Augment, quarter_turn
from sslnlp.collators.base import Collator
from sslnlp.collators.tokens import FreshPositions
from sslnlp.errors import UserError
from sslnlp.pictures import Pixels, decode, normalised, whole
from sslnlp.rng import mix, uniform
from sslnlp.types import Batch, Encoding, Row

AUGMENTS: dict[str, Augment | None] = {"crop": IMAGE_TEXT, "strong": VIEWS, "none": None}


@dataclass(kw_only=True)
class PictureCollator(Collator):
    """What all that read pictures share: rows have `image`, the bytes of a file. Held out, pictures are whole. Rows
    without a position get new draws at every call."""

    reads: ClassVar[str] = "pictures"
    reads_text: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("image",)

    tokenizer: Any = None
    image_size: int = 64
    """Pixels of a side of what the model reads; settled by the model."""
    patch_size: int = 8
    """Pixels of a side of its patches; settled by the model."""
    augment: Literal["crop", "strong", "none"] = "crop"
    """`crop`: 60 to 100 % of the picture; `strong`: also colours, blur and mirroring, as in SimCLR; `none`."""
    training: bool = True
    """Whether pictures are augmented; set by the loop."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"collator.{name} must be at least 1, got {getattr(self, name)}")
        self._fresh = FreshPositions()

    @property
    def patches(self) -> int:
        """N."""
        return int((self.image_size // self.patch_size) ** 2)

    def opened(self, row: Row, augment: Augment | None) -> Pixels:
        """uint8 [H, W, 3]: the picture of a row; a large JPEG no larger than its smallest crop needs it."""
        shrunk = 1.0 if augment is None else augment.scale[0] ** 0.5
        return decode(row["image"], size=math.ceil(self.image_size / shrunk))

    def seen(self, picture_HWC: Pixels, position: int, augment: Augment | None, view: int = 0) -> Pixels:
        """uint8 [P, P, 3]: a picture as it is read, whole or as `augment` makes it."""
        if augment is None:
            return whole(picture_HWC, self.image_size)
        return augment(picture_HWC, self.image_size, self.seed, position, view)

    def usual(self, row: Row, position: int) -> Pixels:
        """The picture of a row under `augment`, while training."""
        augment = AUGMENTS[self.augment] if self.training else None
        return self.seen(self.opened(row, augment), position, augment)

    def encoding(self, pixels_BHWC: Bytes) -> Encoding:
        """`pixel_values` float32 [B, 3, P, P], from -1 to 1, with `attention_mask` and `document_ids` [B, 1 + N]: each
        picture is one document."""
        shape = len(pixels_BHWC), 1 + self.patches
        return {
            "pixel_values": normalised(pixels_BHWC),
            "attention_mask": torch.ones(shape, dtype=torch.int64),
            "document_ids": torch.zeros(shape, dtype=torch.int64),
        }

    def for_evaluation(self, seed: int) -> PictureCollator:
        return replace(self, seed=seed, horizon=None, training=False)


@dataclass(kw_only=True)
class ImageViewsCollator(PictureCollator):
    """Views of each picture, cropped, recoloured, blurred and mirrored by draws of their own (Chen et al., 2020).

    Makes what `views` makes, one document a row: `view_0`, `view_1`, ... with `pixel_values`, `attention_mask` and
    `document_ids`, and `hashes` int64 [B, 1, 2] (of the picture, and of the view of it); `present` bool [B, 1],
    `documents` int64 [B]; `position` [B]. Held out, the views are drawn too, the same ones every time.
    """

    name: ClassVar[str] = "image_views"
    makes: ClassVar[frozenset[str]] = frozenset({"view_0", "view_1", "present", "documents", "position"})

    augment: Literal["crop", "strong", "none"] = "strong"
    views: int = 2
    """How many of a picture."""
    crop_min: float | None = None
    """Share of the picture that a crop has at least; None: what `augment` says (0.08 of `strong`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 2:
            raise UserError(f"collator.views needs two views to compare, got {self.views}")
        self._augment = AUGMENTS[self.augment]
        if self._augment is not None and self.crop_min is not None:
            if not 0 < self.crop_min <= 1:
                raise UserError(f"collator.crop_min is a share above 0 and at most 1, got {self.crop_min}")
            self._augment = replace(self._augment, scale=(self.crop_min, self._augment.scale[1]))

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions: list[int] = self._fresh.of(rows).tolist()
        pictures = [self.opened(row, self._augment) for row in rows]
        picture = np.array([int(row["picture"]) for row in rows], dtype=np.int64)
        batch: Batch = {f"view_{v}": self._view(pictures, picture, positions, v) for v in range(self.views)}
        batch["present"] = torch.ones(len(rows), 1, dtype=torch.bool)
        batch["documents"] = torch.arange(len(rows))
        batch["position"] = torch.tensor(positions, dtype=torch.int64)
        return batch

    def _view(self, pictures: Sequence[Pixels], picture: Ints, positions: Sequence[int], view: int) -> Encoding:
        pixels = [self.seen(one, at, self._augment, view) for one, at in zip(pictures, positions, strict=True)]
        with np.errstate(over="ignore"):  # 64-bit hashes wrap around
            own = mix(picture.view(np.uint64) + np.uint64(view + 1)).view(np.int64)
        hashes = torch.from_numpy(np.stack([picture, own], -1)[:, None])
        return {**self.encoding(np.stack(pixels)), "hashes": hashes}


@dataclass(kw_only=True)
class RotationCollator(PictureCollator):
    """Each picture turned left by 0 to 3 quarters, and how often: `labels` int64 [B] (Gidaris et al., 2018).

    Makes also `pixel_values`, `attention_mask`, `document_ids` (see `PictureCollator.encoding`) and `position` [B].
    """

    name: ClassVar[str] = "rotation"
    makes: ClassVar[frozenset[str]] = frozenset({"pixel_values", "attention_mask", "labels", "position"})

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions: list[int] = self._fresh.of(rows).tolist()
        turned = [quarter_turn(self.usual(row, at), self.seed, at) for row, at in zip(rows, positions, strict=True)]
        batch: Batch = dict(self.encoding(np.stack([pixels for pixels, _ in turned])))
        batch["labels"] = torch.tensor([turns for _, turns in turned], dtype=torch.int64)
        batch["position"] = torch.tensor(positions, dtype=torch.int64)
        return batch


@dataclass(kw_only=True)
class MaskedPatchesCollator(PictureCollator):
    """Pictures of which most patches are to be hidden: `masked` bool [B, N], as many in every row (He et al., 2022).

    Makes also `pixel_values`, `attention_mask`, `document_ids` (see `PictureCollator.encoding`) and `position` [B].
    """

    name: ClassVar[str] = "masked_patches"
    makes: ClassVar[frozenset[str]] = frozenset({"pixel_values", "attention_mask", "masked", "position"})

    rate: float = 0.75
    """Share of the patches that are hidden: at least one is, and at least one is not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < 1:
            raise UserError(f"collator.rate is a share between 0 and 1, got {self.rate}")
        if self.patches < 2:
            raise UserError(
                f"pictures of {self.image_size} pixels have one patch of {self.patch_size}: nothing is left to fill it "
                "in from"
            )

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions: list[int] = self._fresh.of(rows).tolist()
        pixels = [self.usual(row, at) for row, at in zip(rows, positions, strict=True)]
        batch: Batch = dict(self.encoding(np.stack(pixels)))
        batch["masked"] = self._masked(positions)
        batch["position"] = torch.tensor(positions, dtype=torch.int64)
        return batch

    def _masked(self, positions: Sequence[int]) -> Tensor:
        number = min(self.patches - 1, max(1, round(self.rate * self.patches)))
        draws_BN = uniform(self.seed, "masked patches", positions, self.patches)
        order_BN = np.argsort(draws_BN, axis=1, kind="stable")
        masked_BN = np.zeros(draws_BN.shape, dtype=np.bool_)
        np.put_along_axis(masked_BN, order_BN[:, :number], True, axis=1)
        return torch.from_numpy(masked_BN)
