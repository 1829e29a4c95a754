"""What the objectives that compare views share: the vectors of documents, nested widths, frozen layers, live measures.

Shapes: B rows, C documents of a row at most, M documents of the batch, H width, T kinds of hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.nn import POOLINGS, Pooling, document_pool, uncompiled
from sslnlp.objectives import functional
from sslnlp.objectives.grad_cache import check_mini_batch_size, encode_in_parts
from sslnlp.objectives.whitening import Whitened
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, Encoding

MEASURED = 128
"""Documents of a batch that the live measures are taken on: their cost grows with the square, or the cube."""

Cut = Callable[[Tensor], Tensor]
"""Vectors [..., H] -> the same, of one of the nested widths."""


class SharedOptions(TypedDict, total=False):
    """The options of `Embedding`, which those built on it pass on: `**shared: Unpack[SharedOptions]`."""

    pooling: str
    whitening: float | None
    dimensions: list[int] | None
    train_layers: int | None
    mini_batch_size: int | None


class Documents(NamedTuple):
    """Which documents the rows of a batch hold."""

    most: int
    """C: of a row."""

    places: Tensor
    """int64 [M], ascending: where in [B × C] there is one."""

    @classmethod
    def of(cls, batch: Batch) -> Documents:
        """From `present`, and `documents` where the collator tells it: to find its length the CPU waits for a GPU."""
        present: Tensor = batch["present"]
        places = batch["documents"] if "documents" in batch else present.flatten().nonzero().squeeze(1)
        return cls(present.shape[1], places)

    def pick(self, values_BCX: Tensor) -> Tensor:
        """[B, C, X] -> [M, X]."""
        return values_BCX.flatten(0, 1).index_select(0, self.places)


class Embedding(Whitened):
    """An encoder whose pooled vectors are compared: views of one document with each other, or with other documents'.

    Reads `view_0`, `view_1`, ... with their `hashes`, `present`, and `documents` where there is (`collators.views`).
    Its targets are documents.
    The export is a sentence-transformers model with the pooling that was trained. Held out, the documents' second views
    are searched with their first (`mrr@10` and others), but where both are the same text, which would find itself.

    Metrics of `live`: `effective_rank`, `spread`, `alignment`, `uniformity` of the vectors that are exported.

    Options of all of them:
        pooling: how the tokens of a document become its vector: "mean", "cls", "last" or "weighted".
        whitening: what all texts share is taken out of the pooled vectors, and every direction divided by its variance
            to this power, up to 0.5 (`whitening`): a map that does not train, fitted to the first documents before and
            after training, a `Dense` layer of the export. 0: none. None: 0.5 where the start is no sentence encoder.
        dimensions: widths at which the vector is to be of use when it is cut; the loss is the mean of the losses at
            these widths and at the full one (Matryoshka; Kusupati et al., 2022, arXiv:2205.13147).
        train_layers: only the last so many layers of the model train, what comes before them is frozen; None: all.
        mini_batch_size: rows of a view that are encoded at a time, so that a large batch fits the memory of a small one
            (GradCache, `grad_cache`): equal gradients for a third more work. None: all at once.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"view_0", "view_1", "present"})
    collator: ClassVar[str] = "views"
    wraps: ClassVar[Any] = AutoModel
    couples_rows: ClassVar[bool] = True
    pooling: str | None = "mean"  # type: ignore[misc]  # the class's default; an instance carries its own
    measures: ClassVar[tuple[str, ...]] = ("ranking",)

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pooling: str = "mean",
        whitening: float | None = None,
        dimensions: list[int] | None = None,
        train_layers: int | None = None,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__(model)
        if pooling not in POOLINGS:
            raise UserError(f"unknown objective.pooling {pooling!r}; accepted: {', '.join(POOLINGS)}")
        width = model.config.hidden_size
        for dimension in dimensions or []:
            if not 1 <= dimension <= width:
                raise UserError(f"objective.dimensions={dimensions} of vectors of {width}; choose from 1 to {width}")
        check_mini_batch_size(mini_batch_size)
        self.pooling, self.mini_batch_size = pooling, mini_batch_size
        self.whiten(whitening, 0.5)
        self.dimensions = sorted({*(dimensions or []), width})
        if train_layers is not None:
            freeze_below(model, train_layers)

    def vectors(
        self, encoding: Encoding, documents: Documents, model: nn.Module | None = None, *, copies: int = 1
    ) -> Tensor:
        """float32 [M, H]: the pooled vectors of the documents of an encoding, by row.

        copies: rows of the encoding for each row of the batch.
        """
        return self.mapped(self._pooled(encoding, documents, self.model if model is None else model, copies))

    def _pooled(self, encoding: Encoding, documents: Documents, model: nn.Module, copies: int = 1) -> Tensor:
        pooling, backbone = self.pooling, cast(Any, model)
        assert pooling is not None

        def encode(part: Encoding) -> Tensor:
            return document_pool(hidden_states(backbone, part), part["document_ids"], pooling, documents.most)

        vectors_MH = documents.pick(encode_in_parts(encode, encoding, self.mini_batch_size, copies=copies))
        return vectors_MH.to(torch.promote_types(vectors_MH.dtype, torch.float32))

    def pooled_texts(self, batch: Batch) -> Tensor:
        """Of the first views."""
        return self._pooled(batch["view_0"], Documents.of(batch), self.model)

    def embed(self, encoding: Encoding) -> Tensor:
        """Vectors of length 1 [B, H], in float32 or wider, of an encoding [B, S] of one text a row."""
        assert self.pooling is not None
        pooled_BH = Pooling(self.pooling)(hidden_states(self.model, encoding), encoding["attention_mask"])
        return functional.unit(self.mapped(pooled_BH))

    def nested(self, loss: Callable[[Cut], Tensor]) -> Tensor:
        """The mean of a loss over the widths. Features beyond a width are zero: for any cosine, left out."""

        def cut_at(width: int) -> Cut:
            return lambda x: torch.cat([x[..., :width], torch.zeros_like(x[..., width:])], -1)

        return torch.stack([loss(cut_at(width)) for width in self.dimensions]).mean()

    def num_targets(self, batch: Batch) -> Tensor:
        """The documents of the batch."""
        present: Tensor = batch["present"]
        return present.sum()

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """The first view of each document as a query, its second as what is to be found, and hashes of their texts."""
        found: dict[str, Tensor] = {}
        documents = Documents.of(batch)
        for name, view in zip(("query", "document"), views(batch), strict=False):
            found[name] = F.normalize(self.vectors(view, documents), dim=-1)
            found[f"{name}_hash"] = documents.pick(view["hashes"])[:, 1]
        return found


def views(batch: Batch) -> Iterator[Encoding]:
    """The views of a batch, in order."""
    number = 0
    while f"view_{number}" in batch:
        yield batch[f"view_{number}"]
        number += 1


def ordered_pairs(number: int, symmetric: bool) -> list[tuple[int, int]]:
    """Which view looks for which: the first for each of the others, or every one for every other."""
    return [(i, j) for i in range(number if symmetric else 1) for j in range(number) if i != j]


@uncompiled
@torch.no_grad()
def live(first_MH: Tensor, second_MH: Tensor, compared_MZ: Tensor | None = None) -> dict[str, Tensor]:
    """Figures that show a collapse, as pairs of (sum, documents), on at most `MEASURED` documents and their two views.

    Of the vectors at length one: `effective_rank` of the first view; `spread`, the standard deviation of a feature over
    documents, times the root of the width (1: as for random directions, 0: all documents have one vector); `alignment`
    and `uniformity`. `compared_spread`: the standard deviation of a feature of what the loss compares, if that is
    something else. A batch of less than two documents says nothing.
    """
    first, second = (F.normalize(x[:MEASURED].detach(), dim=-1) for x in (first_MH, second_MH))
    names = ["effective_rank", "spread", "alignment", "uniformity"]
    if compared_MZ is not None:
        names.append("compared_spread")
    if len(first) < 2:
        return {name: first.new_zeros(2) for name in names}
    figures = [
        functional.effective_rank(first),
        functional.spread(first) * first.shape[1] ** 0.5,
        functional.alignment(first, second),
        functional.uniformity(first),
    ]
    if compared_MZ is not None:
        figures.append(functional.spread(compared_MZ[:MEASURED].detach()))
    count = torch.full((), float(len(first_MH)), device=first.device)
    return {name: torch.stack([value * count, count]) for name, value in zip(names, figures, strict=True)}


def freeze_below(model: PreTrainedModel, layers: int) -> None:
    """Freeze every parameter of the backbone that stands before its last `layers` layers: embeddings and lower layers.

    Raises `UserError` when the model has no stack of as many layers.
    """
    backbone, depth = model.base_model, model.config.num_hidden_layers
    stacks = [part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not 1 <= layers <= depth or not stacks:
        raise UserError(f"objective.train_layers={layers} of a model of {depth} layers; choose from 1 to {depth}")
    first = next(stacks[0][depth - layers].parameters())
    for parameter in backbone.parameters():  # in the order in which the parts of a model follow each other
        if parameter is first:
            return
        parameter.requires_grad_(False)
