"""The linear map between pooling and length one, a `Dense` of sentence-transformers: written and read."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslnlp.errors import UserError
from sslnlp.types import LinearMap
from sslnlp.writing import write_json

log = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
LINEAR = "torch.nn.modules.linear.Identity"
"""The activation of a `Dense` that has none."""


def save_dense(folder: Path, place: str, linear: LinearMap) -> None:
    """The module `place` of a folder, as sentence-transformers (2.3 and later) reads it."""
    (folder / place).mkdir()
    tensors = {"linear.weight": linear.weight, "linear.bias": linear.bias}
    save_file({k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}, folder / place / WEIGHTS)
    outputs, width = linear.weight.shape
    config = {"in_features": width, "out_features": outputs, "bias": True, "activation_function": LINEAR}
    write_json(folder / place / "config.json", config)


def places_of_maps(steps: Sequence[tuple[str, str]]) -> list[str]:
    """Of (kind, path) of a folder's modules in order, the paths of the `Dense` before vectors are scaled to length one:
    what stands behind that is a head, as that of a few-shot classifier."""
    kinds = [kind for kind, _ in steps]
    end = kinds.index("Normalize") if "Normalize" in kinds else len(kinds)
    return [path for kind, path in steps[:end] if kind == "Dense"]


def read_map(folder: Path, places: Sequence[str]) -> LinearMap | None:
    """The `Dense` modules at `places` as one map; None where there is none. `UserError` for one that is not linear."""
    found: LinearMap | None = None
    for place in places:
        step = _read_dense(folder / place)
        found = step if found is None else LinearMap(step.weight @ found.weight, step.weight @ found.bias + step.bias)
    return found


def _read_dense(folder: Path) -> LinearMap:
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        if activation.rsplit(".", 1)[-1] != "Identity":
            raise UserError(f"{folder} is no linear map: it ends in {activation.rsplit('.', 1)[-1]}")
        if (folder / WEIGHTS).is_file():
            tensors = load_file(folder / WEIGHTS)
        else:
            tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        weight: Tensor = tensors["linear.weight"].float()
        bias = tensors.get("linear.bias")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read the Dense module {folder}: {error}") from error
    return LinearMap(weight, weight.new_zeros(len(weight)) if bias is None else bias.float())


def map_of_model(name: str) -> LinearMap | None:
    """What a pretrained model of this name or folder does to its pooled vectors, where it says so and it is linear."""
    folder = Path(name)
    if not name or not (folder / "modules.json").is_file():
        return None
    try:
        steps = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        named = [(str(step["type"]).rsplit(".", 1)[-1], str(step["path"])) for step in steps]
        return read_map(folder, places_of_maps(named))
    except (UserError, ValueError, KeyError, TypeError) as error:
        log.warning("the start is the model alone, without what it does to its vectors: %s", error)
        return None
