"""Exports that are meant to be read in more than one way: each way's logits are stored, and compared before use.

A field of a configuration that an installation does not know is ignored without a word: a decoder with
`is_causal=False` would read left to right as ever and give figures that look like those of a bad model.

Shape suffixes: B rows, S tokens, C stored columns of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.nn import evaluating

SELF_CHECK = "self_check.safetensors"
"""The file of an export that holds the probe and the logits of each mode on it; its metadata say how it was made."""

Modes = Mapping[str, Mapping[str, Any]]
"""Mode -> fields of the configuration."""

_LENGTH, _COLUMNS = 12, 256
_TOLERANCE = 1e-4  # of the largest logit: other kernels and machines differ in the last bits of float32


def mode_logits(model: PreTrainedModel, fields: Mapping[str, Any], ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Logits [B, S, V] of a causal LM, float32, without dropout, while its configuration has these `fields`.

    The first row must be unpadded. It is run alone and without a mask as well, since stock models then take another
    path; `UserError` when that gives something else.
    """
    with torch.no_grad(), _configured(model, fields):
        logits: Tensor = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits.float()
        alone: Tensor = model(input_ids=ids_BS[:1], use_cache=False).logits.float()
    if _distance(alone, logits[:1]) > 1:
        raise UserError(
            f"transformers {transformers.__version__} computes something else with padding than without for {fields}; "
            "install a newer one"
        )
    return logits


def reads_ahead(model: PreTrainedModel, fields: Mapping[str, Any]) -> bool:
    """Whether the logits of a first token depend on tokens after it, while the configuration has these `fields`."""
    table_VH = model.get_input_embeddings().weight
    ids_BS = torch.arange(1, 9, device=model.device)[None]
    # Tokens that the text does not hold may all have one embedding (`embedding_init`), so not any other will do.
    unlike = (table_VH != table_VH[ids_BS[0, -1]]).any(1).int().argmax()
    other_BS = torch.cat([ids_BS[:, :-1], unlike.view(1, 1)], dim=1)
    one, other = (mode_logits(model, fields, ids, torch.ones_like(ids))[:, 0] for ids in (ids_BS, other_BS))
    return not torch.equal(one, other)


def write_self_check(model: PreTrainedModel, modes: Modes, folder: Path) -> None:
    """Write `self_check.safetensors` into the export `folder`: the logits of `model` in each of `modes` on a probe.

    Raises `UserError` when two modes give the same logits: then the installed transformers does not know the fields.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    # Two rows, the second padded; any ids will do, as long as they differ.
    ids_BS = (torch.arange(2 * _LENGTH).view(2, _LENGTH) * 7919 + 13) % vocabulary
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, _LENGTH // 2 + 1 :] = 0
    columns_C = torch.linspace(0, vocabulary - 1, min(vocabulary, _COLUMNS)).long()
    stored = {"input_ids": ids_BS, "attention_mask": mask_BS, "columns": columns_C}
    for name, fields in modes.items():
        logits = mode_logits(model, fields, ids_BS.to(model.device), mask_BS.to(model.device))
        stored[f"logits.{name}"] = logits[..., columns_C.to(model.device)].cpu().contiguous()
    for a, b in combinations(modes, 2):
        if _distance(stored[f"logits.{a}"][:1], stored[f"logits.{b}"][:1]) <= 1:
            raise UserError(
                f"transformers {transformers.__version__} computes the same in mode {a!r} ({dict(modes[a])}) and mode "
                f"{b!r} ({dict(modes[b])}) of a {type(model).__name__}; install a newer one"
            )
    about = {"modes": json.dumps({k: dict(v) for k, v in modes.items()}), "transformers": transformers.__version__}
    save_file(stored, folder / SELF_CHECK, metadata=about)


def self_check(folder: str | Path) -> None:
    """Compare what the installed transformers computes from the export `folder` with what was stored in it.

    Loads the model with the stock class its configuration names and runs it in each of its modes. A folder without
    `self_check.safetensors` passes. Raises `UserError`, naming the mode and the version that wrote the folder, where
    logits differ: an older transformers may read in one direction where the model was trained to read in both.
    """
    folder = Path(folder)
    if not (folder / SELF_CHECK).is_file():
        return
    try:
        with safe_open(folder / SELF_CHECK, framework="pt") as file:
            about, stored = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        modes, written_by = json.loads(about["modes"]), about["transformers"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SELF_CHECK} cannot be read ({error}); export the model again") from error
    model = getattr(transformers, name).from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    real_BS = stored["attention_mask"].bool()
    for mode, fields in modes.items():
        logits = mode_logits(model, fields, stored["input_ids"], stored["attention_mask"])[..., stored["columns"]]
        if (times := _distance(logits[real_BS], stored[f"logits.{mode}"][real_BS])) > 1:
            given = ", ".join(f"{key}={value}" for key, value in fields.items())
            raise UserError(
                f"transformers {transformers.__version__} computes something else from {folder} in mode {mode!r} "
                f"({given}) than was stored there by {written_by} ({times:.3g} times the tolerance); "
                f"install transformers {written_by} or newer"
            )


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, in tolerances."""
    return float((a - b).abs().max() / (_TOLERANCE * b.abs().max().clamp(min=1.0)))


@contextmanager
def _configured(model: PreTrainedModel, fields: Mapping[str, Any]) -> Iterator[None]:
    """Evaluation mode and these fields inside, all as it was after."""
    missing = object()
    before = {name: getattr(model.config, name, missing) for name in fields}
    try:
        for name, value in fields.items():
            setattr(model.config, name, value)
        with evaluating(model):
            yield
    finally:
        for name, value in before.items():
            delattr(model.config, name) if value is missing else setattr(model.config, name, value)
