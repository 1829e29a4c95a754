"""An export loaded again, as a stranger would, and compared with the model that it was written from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp import rng
from sslnlp.errors import UserError
from sslnlp.modes import self_check
from sslnlp.nn import evaluating
from sslnlp.types import LinearMap
from sslnlp.vector_map import map_of_model
from sslnlp.vision import reads_pictures

_COMPILED = "_orig_mod."
_PROBE_TOKENS = 16


class ExportError(RuntimeError):
    """The written model is not the model that was trained: a defect to report, not a user's mistake."""


def compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, max_length: int) -> None:
    """Load the folder as a stranger would and raise `ExportError` on the first difference."""
    (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    # A bare BERT gets a pooler by default; a model trained without one has no weights to give it.
    options = {"add_pooling_layer": False} if getattr(model, "pooler", model) is None else {}
    again = getattr(transformers, name).from_pretrained(folder, local_files_only=True, **options).to(model.device)
    ours, theirs = state_of(model), state_of(again)
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise ExportError(f"the export does not hold the same weights as the model: {', '.join(odd[:3])}")
    for key, tensor in ours.items():
        if tensor.shape != theirs[key].shape or not torch.equal(tensor, theirs[key].to(tensor.dtype)):
            raise ExportError(f"the export's weight {key!r} is not the model's")
    probe = _probe(model, tokenizer, max_length)
    for i, (a, b) in enumerate(zip(_outputs(model, probe), _outputs(again, probe), strict=True)):
        # Equal weights on the same device: only another attention kernel may move the last bits.
        worst = float((a - b).abs().max())
        if not worst <= 1e-4 * max(1.0, float(a.abs().max())):
            raise ExportError(f"the reloaded {name} computes something else (output {i} differs by {worst:.3g})")
    text = "One probe, 2 lines."
    if tokenizer is not None and _load_tokenizer(folder)(text)["input_ids"] != tokenizer(text)["input_ids"]:
        raise ExportError("the reloaded tokenizer splits a text differently")


def check_modes(folder: Path) -> None:
    try:
        self_check(folder)
    except UserError as error:
        raise ExportError(f"the reloaded model is not the one that was trained: {error}") from error


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under the names stock classes use, also when a part of the model was compiled."""
    return {name.replace(_COMPILED, ""): tensor for name, tensor in model.state_dict().items()}


def picture_size(model: PreTrainedModel) -> int | None:
    """Pixels of a side of the pictures that the model reads; None where it reads none."""
    vision = getattr(model.config, "vision_config", model.config)
    return int(vision.image_size) if reads_pictures(vision) else None


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> dict[str, Tensor]:
    """Two rows of what the model reads: pictures, texts or both."""
    batch = {} if tokenizer is None else _probe_texts(model, tokenizer, max_length)
    if (size := picture_size(model)) is not None:
        pixels = torch.from_numpy(rng.uniform(0, "export picture", [0, 1], 3 * size * size)).float()
        batch["pixel_values"] = pixels.view(2, 3, size, size).to(model.device)
    return batch


def _probe_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Tensor]:
    """Two rows of drawn tokens [2, S], the second padded when there is a padding token; each row ends with one eos."""
    length = max(2, min(_PROBE_TOKENS, max_length))
    special = set(tokenizer.all_special_ids)
    plain = np.array([i for i in range(len(tokenizer)) if i not in special] or range(len(tokenizer)))
    drawn = plain[(rng.uniform(0, "export probe", [0, 1], length) * len(plain)).astype(np.int64)]
    ids, mask = torch.from_numpy(drawn), torch.ones(2, length, dtype=torch.long)
    ends = [length, length]
    if tokenizer.pad_token_id is not None:
        ends[1] = math.ceil(length / 2)
        ids[1, ends[1] :], mask[1, ends[1] :] = tokenizer.pad_token_id, 0
    if tokenizer.eos_token_id is not None:  # sequence classifiers on BART and T5 read the state at eos
        for row, end in enumerate(ends):
            ids[row, end - 1] = tokenizer.eos_token_id
    batch = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    if model.config.is_encoder_decoder and "SequenceClassification" not in type(model).__name__:
        batch["decoder_input_ids"] = batch["input_ids"]
    return batch


def _outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Every floating tensor the model returns, in order, as float32; without dropout and without gradients."""
    with evaluating(model), torch.no_grad():
        return [t.float() for t in _tensors(model(**batch).to_tuple())]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def compare_map(expected: LinearMap | None, folder: Path) -> None:
    """What the folder says is done to pooled vectors is what is done to them, bit for bit."""
    found = map_of_model(str(folder))
    if (expected is None) != (found is None):
        raise ExportError("the map of the vectors is not the one that was written")
    if expected is not None and found is not None:
        for ours, theirs in zip(expected, found, strict=True):
            if not torch.equal(ours.detach().float().cpu(), theirs):
                raise ExportError("the map of the vectors was read back differently")
