"""The words everyone shares: a row, an encoding, a batch, the output of one step.

Shapes use B = rows of a micro-batch, S = tokens of a row, N = scored positions of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:  # who prepares data has rows and no tensors: torch is seconds and hundreds of MB of each process
    from torch import Tensor

Row = Mapping[str, Any]
"""One training row.

From packed text: `input_ids` int64 [S], `document_ids` int32 [S] (0, 1, ... inside the row; -1 = padding).
From a labelled or paired table: the columns (`text`, `label`, `query`, ...).
Rows that come out of a `Stream` also carry `position` (int): their place in the run, the key of every random draw.
"""

Encoding: TypeAlias = "dict[str, Tensor]"
"""Model inputs [B, S]: `input_ids`, `attention_mask` and, when rows are packed, `document_ids`, `position_ids`."""

Batch = dict[str, Any]
"""A collated micro-batch: tensors, or (for pairs and views) named encodings."""


class StepOutput(NamedTuple):
    """What an objective returns for one micro-batch."""

    loss: Tensor
    """Scalar: mean over this micro-batch's targets."""
    metrics: dict[str, Tensor]
    """Detached figures to report, never summed into the loss: a scalar is a mean over the (first kind of) targets, a
    tensor [2] is a sum and the number of things it was taken over."""
    terms: Tensor | None = None
    """[K]: the parts whose sum is `loss` when they have targets of K different kinds (masked tokens, documents, ...),
    each a mean over its own. `num_targets` is then [K] too, and the update is exact for every part."""


class LinearMap(NamedTuple):
    """What turns vectors [B, H] into others or into logits [B, C]: `weight @ vector + bias`."""

    weight: Tensor
    """[C, H]."""
    bias: Tensor
    """[C]."""
