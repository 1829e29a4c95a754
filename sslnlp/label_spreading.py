"""From few labels to all texts: each text takes on what its neighbours are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslnlp.arrays import Ints, Vectors
from sslnlp.errors import UserError
from sslnlp.nn import evaluating
from sslnlp.types import Batch

TEMPERATURE = 0.05
"""Divides cosine - 1 in the weight of an edge: at 0.9 it weighs an eighth of one between equal texts."""
ROUNDS = 40
_BLOCK = 2048


def spread_labels(
    vector_NH: Vectors, label_N: Ints, *, neighbours: int = 10, keep: float = 0.1
) -> tuple[Ints, Vectors]:
    """A class for every text, int64 [N], and how sure it is, in (0, 1] [N]; what `label_N` knows stays, at 1.

    Label spreading (Zhou et al., 2004, "Learning with local and global consistency") over the graph of the nearest
    `neighbours` of each vector, by cosine from the mean of all, so that what all texts share tells nobody apart: in
    every round a text takes a share 1 - `keep` from its neighbours and keeps `keep` of what it was told. Classes are
    scaled to their share among the known labels before the largest is taken (class mass normalisation; Zhu et al.,
    2003), so a class with many neighbours does not flood the others. A text that no label reaches stays -100, at 0.
    """
    known = label_N >= 0
    classes = int(label_N[known].max()) + 1
    told_NC = np.zeros((len(label_N), classes), np.float32)
    told_NC[known, label_N[known]] = 1.0
    apart_NH = vector_NH - vector_NH.mean(0)
    apart_NH /= np.maximum(np.linalg.norm(apart_NH, axis=1, keepdims=True), 1e-12)
    graph = neighbour_graph(apart_NH, min(neighbours, len(label_N) - 1))
    believed_NC = told_NC.copy()
    for _ in range(ROUNDS):
        believed_NC = (1 - keep) * (graph @ believed_NC) + keep * told_NC
    reached = believed_NC.sum(1) > 0
    believed_NC = believed_NC * (told_NC.mean(0) / np.maximum(believed_NC.sum(0), 1e-12))
    spread_N = np.where(reached, believed_NC.argmax(1), -100)
    filled: Ints = np.where(known, label_N, spread_N).astype(np.int64)
    sure_N = believed_NC.max(1) / np.maximum(believed_NC.sum(1), 1e-30)
    return filled, np.where(known, 1.0, np.where(reached, sure_N, 0.0)).astype(np.float32)


def vectors_of(module: nn.Module, batches: Iterable[Batch], embed: Callable[[Batch], Tensor]) -> tuple[Vectors, Ints]:
    """The vectors [N, H] that `embed` makes of all rows, `module` being in evaluation mode, and their `labels` [N]."""
    vectors, labels = [], []
    with evaluating(module), torch.no_grad():
        for batch in batches:
            vectors.append(embed(batch).float().cpu().numpy())
            labels.append(batch["labels"].cpu().numpy())
    return np.concatenate(vectors), np.concatenate(labels)


def check_pseudo_labels(share: float) -> None:
    """Refuse what is no share of the unlabelled texts."""
    if not 0 <= share <= 1:
        raise UserError(f"objective.pseudo_labels={share} is a share from 0 to 1")


def neighbour_graph(vector_NH: Vectors, neighbours: int) -> Any:
    """Sparse [N, N]: each text's nearest among vectors of length 1, in both directions, scaled by the degrees
    (D^-½ W D^-½)."""
    from scipy import sparse

    count = len(vector_NH)
    rows, columns, weights = [], [], []
    for start in range(0, count, _BLOCK):
        block = vector_NH[start : start + _BLOCK]
        similarity = block @ vector_NH.T
        similarity[np.arange(len(block)), start + np.arange(len(block))] = -np.inf  # nobody is his own neighbour
        nearest = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
        rows.append(np.repeat(start + np.arange(len(block)), neighbours))
        columns.append(nearest.ravel())
        weights.append(np.exp((np.take_along_axis(similarity, nearest, 1).ravel() - 1) / TEMPERATURE))
    place = (np.concatenate(rows), np.concatenate(columns))
    one_way = sparse.csr_matrix((np.concatenate(weights), place), shape=(count, count))
    both = one_way.maximum(one_way.T)
    scale = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(both.sum(1)).ravel(), 1e-12)))
    return scale @ both @ scale
