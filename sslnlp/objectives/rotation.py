"""The innate relationship of a picture: which side of it is up."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import row_count
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, StepOutput
from sslnlp.vision import refuses_pictures

TURNS = 4


class Rotation(Objective):
    """Rotation prediction (Gidaris et al., 2018, arXiv:1803.07728): by how many quarters was the picture turned?

    Cross-entropy of a linear layer on the state of the whole picture; the layer is thrown away. It says nothing about
    pictures that look alike from all sides.

    Reads `pixel_values` and `labels` (`collators.images.RotationCollator`). Its targets are pictures. Metrics:
    `accuracy`; chance is a quarter.
    """

    name: ClassVar[str] = "rotation"
    needs: ClassVar[frozenset[str]] = frozenset({"pixel_values", "labels"})
    collator: ClassVar[str] = "rotation"
    wraps: ClassVar[Any] = AutoModel
    best: ClassVar[tuple[str, str]] = ("accuracy", "max")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.head = nn.Linear(model.config.hidden_size, TURNS, dtype=model.dtype)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        return super().refuses(config) or refuses_pictures(config)

    def forward(self, batch: Batch) -> StepOutput:
        labels_B = batch["labels"]
        logits_BC: Tensor = self.head(hidden_states(self.model, batch)[:, 0]).float()
        right = (logits_BC.argmax(-1) == labels_B).float().mean()
        return StepOutput(F.cross_entropy(logits_BC, labels_B), {"accuracy": right.detach()})

    def num_targets(self, batch: Batch) -> Tensor:
        """The pictures of the batch."""
        return row_count(batch["labels"])
