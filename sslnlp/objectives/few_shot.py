"""A classifier from few labels: texts of one class come together, then a linear head is fitted on their vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.arrays import Ints
from sslnlp.distributed import gather, own_rows
from sslnlp.errors import UserError
from sslnlp.label_spreading import check_pseudo_labels, spread_labels, vectors_of
from sslnlp.objectives import functional
from sslnlp.objectives.fitted_head import fitted_head
from sslnlp.objectives.pooled import Pooled
from sslnlp.types import Batch, LinearMap, StepOutput


class FewShot(Pooled):
    """Supervised contrastive learning of a sentence encoder, then logistic regression on its frozen vectors.

    As SetFit (Tunstall et al., 2022, arXiv:2209.11055): pairs of one class are drawn from few texts, far more pairs
    than texts. The loss is that of Khosla et al. (2020, arXiv:2004.11362) over the 2B texts of a batch: each names
    every other text of its class among all of them. `train.steps=0` leaves the encoder as it is: frozen features and
    logistic regression. Rows: a text and its class.

    With unlabelled texts (`data.unlabelled`) the labels spread over all vectors, from neighbour to neighbour
    (`label_spreading`): once before the first update, so that the surest of these texts train too, and once more at the
    end: the head is then fitted to all texts under the labels that they have by now, weighted by how sure these are.

    The export is a sentence-transformers model whose last module is the head, so that it encodes texts to logits.

    Options:
        temperature: divides the cosine; above 0.
        pooling: how the tokens of a text become its vector: "mean", "cls", "last" or "weighted".
        whitening: what all texts share is taken out of the pooled vectors, and every direction divided by its variance
            to this power, up to 0.5 (`whitening`): a map that does not train, fitted to the texts before and after
            training, a `Dense` layer of the export. 0: none. None: 0.25 where the start is no sentence encoder.
        strength: C of the logistic regression (see `fitted_head`): the larger, the less it is regularised.
        neighbours: of each text, in the graph that labels spread over.
        pseudo_labels: share of the unlabelled texts of each class that train as if labelled, the surest first; 0: none.
    """

    name: ClassVar[str] = "few_shot"
    needs: ClassVar[frozenset[str]] = frozenset({"first", "second", "labels"})
    collator: ClassVar[str] = "same_class"
    measures: ClassVar[tuple[str, ...]] = ("classification",)
    best: ClassVar[tuple[str, str]] = ("macro_f1", "max")
    concludes: ClassVar[bool] = True
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 0.05,
        pooling: str = "mean",
        whitening: float | None = None,
        strength: float = 10.0,
        neighbours: int = 10,
        pseudo_labels: float = 0.8,
    ) -> None:
        super().__init__(model, pooling)
        for name, value in (("temperature", temperature), ("strength", strength)):
            if value <= 0:
                raise UserError(f"objective.{name}={value} must be above 0")
        check_pseudo_labels(pseudo_labels)
        self.whiten(whitening, 0.25)
        self.pseudo_labels = pseudo_labels
        if neighbours < 1:
            raise UserError(f"objective.neighbours must be at least 1, got {neighbours}")
        self.temperature, self.strength, self.neighbours = temperature, strength, neighbours
        self.divisor = 1.0
        classes = int(model.config.num_labels)
        self.register_buffer("weight", torch.zeros(classes, model.config.hidden_size))
        self.register_buffer("bias", torch.zeros(classes))

    def forward(self, batch: Batch) -> StepOutput:
        """In training the contrastive loss, and `accuracy`: the share of the texts whose nearest other text is of their
        class. In evaluation the cross-entropy of the head, and its accuracy."""
        labels_B = batch["labels"]
        if not self.training:
            return self.scored(batch)[0]
        sides = {side: batch[side] for side in ("first", "second")}
        both = tuple(self.embed_sides(sides, batch.get("places")).values())
        everyone = torch.cat([gather(side_BH) for side_BH in both])
        classes = gather(labels_B).repeat(2)
        own_B = own_rows(labels_B)
        own_N = torch.cat([own_B, len(everyone) // 2 + own_B])
        loss, nearest = functional.supervised_contrastive(
            torch.cat(both), everyone, labels_B.repeat(2), classes, own_N, temperature=self.temperature
        )
        return StepOutput(loss, {"accuracy": nearest})

    def num_targets(self, batch: Batch) -> Tensor:
        """The rows of the batch."""
        return functional.row_count(batch["labels"])

    def pooled_texts(self, batch: Batch) -> Tensor:
        return self.pooled(batch["first"])

    def guess(self, batches: Iterable[Batch]) -> tuple[Ints, NDArray[np.float32]]:
        _, labels_N, sure_N = self._vectors_of(batches)
        return labels_N, sure_N

    def conclude(self, batches: Iterable[Batch]) -> None:
        """Fit the head to the vectors of all rows; those without a label (-100) get one from their neighbours."""
        vector_NH, found_N, sure_N = self._vectors_of(batches)
        reached_N = found_N >= 0
        vector_NH, found_N, sure_N = vector_NH[reached_N], found_N[reached_N], sure_N[reached_N]
        weight, bias = fitted_head(vector_NH, found_N, len(self.bias), strength=self.strength, sure_N=sure_N)
        self.weight.copy_(torch.from_numpy(weight))
        self.bias.copy_(torch.from_numpy(bias))

    def calibrate(self, temperature: float) -> None:
        self.divisor = temperature

    @property
    def linear_head(self) -> LinearMap:
        return LinearMap(self.weight / self.divisor, self.bias / self.divisor)

    def scored(self, batch: Batch) -> tuple[StepOutput, dict[str, Tensor]]:
        predicted = self.predict(batch)
        logits_BC, labels_B = predicted["logits"], predicted["labels"]
        accuracy = functional.accuracy(logits_BC, labels_B)
        return StepOutput(functional.cross_entropy(logits_BC, labels_B), {"accuracy": accuracy}), predicted

    def _vectors_of(self, batches: Iterable[Batch]) -> tuple[NDArray[np.float32], Ints, NDArray[np.float32]]:
        """Vectors [N, H] of all rows, their labels [N], spread to those that have none, and how sure these are [N]."""
        vector_NH, label_N = vectors_of(self, batches, lambda batch: self.embed(batch["first"]))
        if not (label_N == functional.IGNORED).any():
            return vector_NH, label_N, np.ones(len(label_N), np.float32)
        return vector_NH, *spread_labels(vector_NH, label_N, neighbours=self.neighbours)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """`logits` float [B, C] of the head and `labels` int64 [B]."""
        return {"logits": self._logits(self.embed(batch["first"])), "labels": batch["labels"]}

    def _logits(self, vectors_BH: Tensor) -> Tensor:
        return F.linear(vectors_BH, self.weight.to(vectors_BH.dtype), self.bias.to(vectors_BH.dtype))
