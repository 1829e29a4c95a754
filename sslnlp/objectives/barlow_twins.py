"""Redundancy reduction: the features of two views agree, and no feature tells what another does."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Unpack

from sslnlp.distributed import gather_ragged
from sslnlp.errors import UserError
from sslnlp.nn import Projector
from sslnlp.objectives import functional
from sslnlp.objectives.embedding import Cut, Documents, Embedding, SharedOptions, live, views
from sslnlp.types import Batch, StepOutput


class Projected(Embedding):
    """Views whose projections, of all processes together, are compared feature by feature: no negatives, no average."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        projector_width: int | None,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(model, **shared)
        width = 4 * model.config.hidden_size if projector_width is None else projector_width
        if width < 1:
            raise UserError(f"objective.projector must be at least 1, got {width}")
        self.projector = Projector(model.config.hidden_size, width, width).to(model.dtype)

    def compare(self, a_MZ: Tensor, b_MZ: Tensor) -> Tensor:
        """The loss of the projections of two views."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> StepOutput:
        documents = Documents.of(batch)
        own = [self.vectors(side, documents) for side in views(batch)]
        compared: list[Tensor] = []

        def loss(cut: Cut) -> Tensor:
            compared[:] = [gather_ragged(self.projector(cut(vectors)))[0] for vectors in own]
            pairs = [(i, j) for j in range(len(own)) for i in range(j)]
            with torch.autocast(own[0].device.type, enabled=False):  # sums of squares of small differences
                return torch.stack([self.compare(compared[i].float(), compared[j].float()) for i, j in pairs]).mean()

        total = self.nested(loss)  # the full width comes last, so `compared` is of that
        return StepOutput(total, live(own[0], own[1], compared[0]))


class BarlowTwins(Projected):
    """Barlow Twins (Zbontar et al., 2021, arXiv:2103.03230): the cross-correlation of the features of two views, over
    the documents of the batch and all processes, should be the identity.

    A small batch will do; a wide projector helps. It is normalised within each vector, not over the batch, and is not
    exported. With more than two views the loss is the mean over their pairs. The loss is of the batch as a whole, so
    splitting a batch changes it. A batch of a single document has no correlation: the loss is the projector's width,
    and nothing is learned from it.

    Metrics: those of `Embedding`; `compared_spread` is that of the projections.

    Options besides those of `Embedding`:
        projector: its width, hidden and out; None: four times the model's.
        off_diagonal: weight of the squared correlations of different features.
    """

    name: ClassVar[str] = "barlow_twins"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        projector: int | None = None,
        off_diagonal: float = 0.005,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(model, projector_width=projector, **shared)
        if off_diagonal < 0:
            raise UserError(f"objective.off_diagonal={off_diagonal} must not be negative")
        self.off_diagonal = off_diagonal

    def compare(self, a_MZ: Tensor, b_MZ: Tensor) -> Tensor:
        return functional.barlow_twins(a_MZ, b_MZ, off_diagonal=self.off_diagonal)
