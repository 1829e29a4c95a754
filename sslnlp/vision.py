"""Stock vision towers, by a named size or from a folder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel, ViTConfig, ViTModel

from sslnlp.errors import UserError, suggest

VISION_SIZES: dict[str, tuple[int, int, int]] = {
    "nano": (32, 2, 2),
    "tiny": (128, 4, 2),
    "mini": (192, 6, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
"""Width, layers and heads of a ViT (Dosovitskiy et al., 2021, arXiv:2010.11929); `small` and `base` as published."""

IMAGE_SIZE, PATCH_SIZE = 64, 8
"""Pixels, of a fresh tower."""


def build_vision(vision: str, *, image_size: int | None = None, patch_size: int | None = None) -> PreTrainedModel:
    """A stock ViT in float32: fresh, of one of `VISION_SIZES`, or with the weights of a folder or hub name.

    image_size, patch_size (pixels): of a fresh tower 64 and 8 where not given; a folder has its own.
    Raises `UserError` for an unknown size, pictures that patches do not tile, and a folder without a vision tower.
    """
    if vision in VISION_SIZES:
        width, layers, heads = VISION_SIZES[vision]
        size, patch = image_size or IMAGE_SIZE, patch_size or PATCH_SIZE
        if size < 1 or patch < 1 or size % patch:
            raise UserError(f"objective.image_size={size} is not a multiple of objective.patch_size={patch}")
        return ViTModel(
            ViTConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
                image_size=size, patch_size=patch,
            )
        ).float()  # fmt: skip
    config = _stock_config(vision)
    for name, given in (("image_size", image_size), ("patch_size", patch_size)):
        if given is not None and given != getattr(config, name):
            raise UserError(f"objective.{name}={given}, and {vision} has {getattr(config, name)}: leave it out")
    try:
        model: PreTrainedModel = AutoModel.from_pretrained(vision, dtype=torch.float32)
    except Exception as error:  # missing weights, corrupt safetensors: all are the folder's fault
        raise UserError(f"cannot load objective.vision={vision}: {' '.join(str(error).split())[:300]}") from error
    if getattr(model, "pooler", None) is None:
        raise UserError(f"objective.vision={vision} has no pooler, through which a picture becomes one vector")
    return model


def picture_size(vision: str, image_size: int | None) -> int:
    """Pixels of a side of what the tower reads."""
    if vision in VISION_SIZES:
        return image_size or IMAGE_SIZE
    return int(_stock_config(vision).image_size)


def _stock_config(vision: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(vision)
    except Exception as error:  # no such folder, no such name
        raise UserError(
            f"objective.vision={vision} is neither a size nor a folder of a model.{suggest(vision, VISION_SIZES)}"
        ) from error
    if not isinstance(getattr(config, "image_size", None), int):
        raise UserError(f"objective.vision={vision} is a {config.model_type!r} model, which reads no pictures")
    return config
