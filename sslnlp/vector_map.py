"""The linear map between pooling and length one, a `Dense` of sentence-transformers: fitted, written and read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import cached_file

from sslnlp.errors import UserError
from sslnlp.types import LinearMap
from sslnlp.writing import write_json

log = logging.getLogger(__name__)
WEIGHTS, WEIGHTS_OF_OLD = "model.safetensors", "pytorch_model.bin"
_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "weightedmean": "weighted"}
_POOLING_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
LINEAR = "torch.nn.modules.linear.Identity"
"""The activation of a `Dense` that has none."""


def apply(linear: LinearMap, x: Tensor) -> Tensor:
    """What it makes of vectors [..., H], in float32 or wider."""
    kind = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(kind), *(part.to(x.device, kind) for part in linear))


def joined(first: LinearMap | None, second: LinearMap) -> LinearMap:
    """One map that does what both do, one behind the other."""
    return second if first is None else LinearMap(second.weight @ first.weight, apply(second, first.bias))


def whitener(vector_NH: Tensor, exponent: float) -> LinearMap:
    """The map for vectors like these: less their mean, every direction divided by its variance to the power of
    `exponent` (0.5 whitens; why: `objectives.whitening`), by the symmetric matrix (ZCA).

    Variances of few vectors in many directions are shrunk towards their mean (Ledoit and Wolf, 2004): little is then
    made of directions of which little is known. The identity where no two vectors differ, or one is not finite.
    """
    from sklearn.covariance import ledoit_wolf

    x = vector_NH.cpu().double()
    mean_H = x.mean(0)
    apart = (x - mean_H).norm(dim=1).mean()
    if not apart.isfinite() or apart <= 1e-6 * mean_H.norm():  # a run that failed, which the export says; or one text
        return LinearMap(torch.eye(x.shape[1]), torch.zeros(x.shape[1]))
    covariance_HH, _ = ledoit_wolf((x - mean_H).numpy(), assume_centered=True)
    variance_H, direction_HH = torch.linalg.eigh(torch.from_numpy(covariance_HH))
    scale_H = variance_H.clamp(min=1e-12) ** -exponent
    weight_HH = (direction_HH * scale_H) @ direction_HH.T
    weight_HH = (weight_HH + weight_HH.T) / 2  # to the last bit, which is how one is known
    weight_HH /= ((x - mean_H) @ weight_HH).norm(dim=1).mean()
    return LinearMap(weight_HH.float(), -(weight_HH @ mean_H).float())


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
        found = joined(found, _read_dense(folder / place))
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
            tensors = torch.load(folder / WEIGHTS_OF_OLD, map_location="cpu", weights_only=True)
        weight: Tensor = tensors["linear.weight"].float()
        bias = tensors.get("linear.bias")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read the Dense module {folder}: {error}") from error
    return LinearMap(weight, weight.new_zeros(len(weight)) if bias is None else bias.float())


def is_encoder(name: str, pooling: str | None) -> bool:
    """Whether a pretrained model of this name or folder says how its vectors are made, and not by another pooling: it
    is a sentence encoder, and its vectors were trained to be compared."""
    return _described(name) is not None and pooling_of_model(name) in (None, pooling)


def pooling_of_model(name: str) -> str | None:
    """How a pretrained model of this name or folder pools (a name of `nn.POOLINGS`); None where it does not say, or
    says what is unknown here."""
    file = _described(name)
    if file is None:
        return None
    try:
        place = next((path for kind, path in _steps(file) if kind == "Pooling"), None)
        found = _fetched(name, f"{place}/config.json") if place is not None else None
        return None if found is None else pooling_of(json.loads(found.read_text(encoding="utf-8")))
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def pooling_of(config: Mapping[str, Any]) -> str:
    """The name in `nn.POOLINGS` of what the configuration of a `Pooling` asks for; else `UserError`."""
    flags = [flag for flag, on in config.items() if flag.startswith("pooling_mode_") and on]
    mode = config.get("pooling_mode") or "+".join(_POOLING_FLAGS.get(flag, flag) for flag in flags) or "mean"
    if mode not in _POOLINGS:
        raise UserError(f"pools by {mode!r}; sslnlp knows {', '.join(_POOLINGS)}")
    return _POOLINGS[mode]


def _steps(file: Path) -> list[tuple[str, str]]:
    """(kind, path) of the modules that a `modules.json` names."""
    steps = json.loads(file.read_text(encoding="utf-8"))
    return [(str(step["type"]).rsplit(".", 1)[-1], str(step["path"])) for step in steps]


def map_of_model(name: str, pooling: str | None = None) -> LinearMap | None:
    """What a pretrained model of this name or folder does to its pooled vectors, where it says so, it is linear, and it
    was fitted to vectors of this `pooling` (None: any)."""
    file = _described(name)
    if file is None or (pooling is not None and not is_encoder(name, pooling)):
        return None
    try:
        places = places_of_maps(_steps(file))
        for place in places:
            for part in ("config.json", WEIGHTS, WEIGHTS_OF_OLD):
                _fetched(name, f"{place}/{part}")
        return read_map(file.parent, places)
    except (UserError, ValueError, KeyError, TypeError) as error:
        log.warning("the start is the model alone, without what it does to its vectors: %s", error)
        return None


def _described(name: str) -> Path | None:
    return _fetched(name, "modules.json") if name else None


def _fetched(name: str, file: str) -> Path | None:
    """A file of a model in a folder or on the hub; None where it has none."""
    found = cached_file(
        name, file, _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)
