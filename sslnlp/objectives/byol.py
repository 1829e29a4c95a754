"""Agreement without negatives: predict what a slow copy of the model makes of another view."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Unpack

from sslnlp.errors import UserError
from sslnlp.nn import Projector, Teacher
from sslnlp.objectives import functional
from sslnlp.objectives.embedding import Cut, Documents, Embedding, SharedOptions, live, ordered_pairs, views
from sslnlp.types import Batch, StepOutput


class BYOL(Embedding):
    """BYOL (Grill et al., 2020, arXiv:2006.07733): `2 - 2 cos` of a prediction from one view and the slow projection of
    another, averaged over both directions.

    The model and a projector make z of a view; a predictor makes of it a guess at z of the other view by the moving
    averages of model and projector, which get no gradient. Nothing but predictor and average keeps all vectors from
    becoming one, so watch `spread` and `mrr@10`; the loss falls either way. With layer norm in place of batch norm
    (Richemond et al., 2020, arXiv:2010.10241) no row depends on others: an update may be split in any way.

    Metrics: those of `Embedding`; `compared_spread` is that of the projections at length one, times the root of their
    width. Projector, predictor and averages are not exported.

    Options besides those of `Embedding`:
        hidden: width of the hidden layer of projector and predictor; None: twice the model's.
        momentum, momentum_end: share of the averages kept at each step, moving linearly over the run.
    """

    name: ClassVar[str] = "byol"
    couples_rows: ClassVar[bool] = False
    # The loss also falls when all vectors become one; what is found by them does not rise.
    best: ClassVar[tuple[str, str]] = ("mrr@10", "max")

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        hidden: int | None = None,
        momentum: float = 0.99,
        momentum_end: float | None = 1.0,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(model, **shared)
        width = model.config.hidden_size
        hidden = 2 * width if hidden is None else hidden
        if hidden < 1:
            raise UserError(f"objective.hidden must be at least 1, got {hidden}")
        self.projector = Projector(width, hidden, width).to(model.dtype)
        self.predictor = Projector(width, hidden, width).to(model.dtype)
        self.teacher = Teacher(model, momentum=momentum, momentum_end=momentum_end)
        self.slow_projector = Teacher(self.projector, momentum=momentum, momentum_end=momentum_end)

    def forward(self, batch: Batch) -> StepOutput:
        documents, sides = Documents.of(batch), list(views(batch))
        own = [self.vectors(side, documents) for side in sides]
        with torch.no_grad():
            slow = [self.vectors(side, documents, self.teacher.module) for side in sides]

        def loss(cut: Cut) -> Tensor:
            guesses = [self.predictor(self.projector(cut(vectors))) for vectors in own]
            targets = [self.slow_projector(cut(vectors)) for vectors in slow]
            pairs = ordered_pairs(len(own), symmetric=True)
            return torch.stack([functional.cosine_distance(guesses[i], targets[j]) for i, j in pairs]).mean()

        with torch.no_grad():
            compared = F.normalize(self.slow_projector(slow[0]), dim=-1)
        return StepOutput(self.nested(loss), live(own[0], own[1], compared * compared.shape[1] ** 0.5))

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.model, progress)
        self.slow_projector.update(self.projector, progress)
