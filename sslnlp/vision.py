"""Stock vision towers, by a named size or from a folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel

from sslnlp.architectures import ARCHITECTURES, IMAGE_SIZE, PATCH_SIZE, VISION_SIZES
from sslnlp.errors import UserError, reason_of, suggest


def build_vision(vision: str, *, image_size: int | None = None, patch_size: int | None = None) -> PreTrainedModel:
    """A stock ViT in float32: fresh, of one of `VISION_SIZES`, or with the weights of a folder or hub name.

    image_size, patch_size (pixels): of a fresh tower 64 and 8 where not given; a folder has its own.
    Raises `UserError` for an unknown size, pictures that patches do not tile, and a folder without a vision tower.
    """
    if vision in VISION_SIZES:
        size, patch = image_size or IMAGE_SIZE, patch_size or PATCH_SIZE
        if size < 1 or patch < 1 or size % patch:
            raise UserError(f"objective.image_size={size} is not a multiple of objective.patch_size={patch}")
        fields = ARCHITECTURES["vit"](VISION_SIZES[vision], 0) | {"image_size": size, "patch_size": patch}
        return ViTModel(ViTConfig(**fields)).float()
    config = _stock_config(vision)
    for name, given in (("image_size", image_size), ("patch_size", patch_size)):
        if given is not None and given != getattr(config, name):
            raise UserError(f"objective.{name}={given}, and {vision} has {getattr(config, name)}: leave it out")
    try:
        model, info = AutoModel.from_pretrained(vision, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # missing weights, corrupt safetensors: all are the folder's fault
        raise UserError(f"cannot load objective.vision={vision}: {reason_of(error)}") from error
    if getattr(model, "pooler", None) is None:
        raise UserError(f"objective.vision={vision} has no pooler, through which a picture becomes one vector")
    if any(name.startswith("pooler.") for name in info["missing_keys"]):  # a tower that was trained by itself
        begin_as_identity(model.pooler)
    tower: PreTrainedModel = model
    return tower


def begin_as_identity(pooler: nn.Module) -> None:
    """A new pooler hands on (the tanh of) the first state, instead of mixing what was learned at random."""
    assert isinstance(pooler.dense, nn.Linear)
    nn.init.eye_(pooler.dense.weight)
    nn.init.zeros_(pooler.dense.bias)


def refuses_pictures(config: PreTrainedConfig) -> str | None:
    """Why a model of this configuration reads no pictures; None when it does."""
    return None if reads_pictures(config) else "it reads no pictures"


def reads_pictures(config: Any) -> bool:
    """Whether a model of this configuration is a tower that reads pictures alone."""
    return isinstance(getattr(config, "image_size", None), int)


def states_of_some(tower: ViTModel, pixel_BCHW: Tensor, patch_BK: Tensor) -> Tensor:
    """The last states [B, 1 + K, H] of the whole picture and of the patches `patch_BK` (int64, from 0) that are read:
    the stock forward pass between its parts."""
    states_BSH: Any = tower.embeddings(pixel_BCHW.to(tower.dtype))  # as `ViTModel.forward` does
    index = torch.cat([torch.zeros_like(patch_BK[:, :1]), patch_BK + 1], 1)
    states_BSH = states_BSH.gather(1, index[..., None].expand(-1, -1, states_BSH.shape[2]))
    for layer in tower.layers:
        states_BSH = layer(states_BSH, None)
    last_BSH: Tensor = tower.layernorm(states_BSH)
    return last_BSH


def picture_sizes(vision: str, image_size: int | None, patch_size: int | None) -> tuple[int, int]:
    """Pixels of a side of what the tower reads, and of its patches."""
    if vision in VISION_SIZES:
        return image_size or IMAGE_SIZE, patch_size or PATCH_SIZE
    config = _stock_config(vision)
    return int(config.image_size), int(config.patch_size)


def _stock_config(vision: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(vision)
    except Exception as error:  # no such folder, no such name
        raise UserError(
            f"objective.vision={vision} is neither a size nor a folder of a model.{suggest(vision, VISION_SIZES)}"
        ) from error
    if not reads_pictures(config):
        raise UserError(f"objective.vision={vision} is a {config.model_type!r} model, which reads no pictures")
    return config
