"""Latent targets (Baevski et al., 2022, arXiv:2202.03555): predict what a teacher makes of the unmasked text.

Shape suffixes: B rows, S tokens, N masked tokens of the batch, H width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.last_layer import ask_last_layer, states_at
from sslnlp.masks import is_causal
from sslnlp.nn import Teacher
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import IGNORED, row_count
from sslnlp.packed import all_hidden_states
from sslnlp.types import Batch, Encoding, StepOutput


class Data2Vec(Objective):
    """The student reads the masked row, its teacher (an average of its past weights) the row as it was.

    The target of a masked token is what the teacher's top layers give there: each normalised over its features, then
    averaged, then normalised. No word is predicted, so there is no vocabulary head. The regression head is thrown away.

    Reads `input_ids`, `attention_mask`, `labels` [B, S] (what stood there, -100 where nothing is asked), `target_index`
    [N] and, for packed rows, `document_ids`, `position_ids`. Loss: mean over masked tokens of `distance`.
    Metrics: `explained_variance`, the share of the targets' variance over tokens that is predicted (R², 0 = no better
    than one vector for all, 1 = all); `target_std`, their standard deviation over tokens, averaged over features: at
    most 1, and falling to 0 when the teacher says the same everywhere (collapse), however small the loss.

    Another distance is a subclass with another `name` and `distance`, in a file of its own.

    Options:
        layers: how many of the top layers make a target; five sixths of all by default (10 of 12, as published).
        momentum, momentum_end: share of the teacher's weights kept at each step, moving linearly over the run. As
            published, 0.999 to 0.9999, for a million steps; shorter runs want a teacher that moves.
        beta: below this difference the loss is quadratic, above it linear (smooth L1); 0 is quadratic everywhere.
    """

    name: ClassVar[str] = "data2vec"
    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels", "target_index"})
    collator: ClassVar[str] = "masked_lm"
    wraps = AutoModel
    # The loss also falls when the targets shrink; their explained share does not.
    best: ClassVar[tuple[str, str]] = ("explained_variance", "max")

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layers: int | None = None,
        momentum: float = 0.99,
        momentum_end: float = 0.999,
        beta: float = 4.0,
    ) -> None:
        super().__init__(model)
        depth, width = model.config.num_hidden_layers, model.config.hidden_size
        self.layers = max(1, round(depth * 5 / 6)) if layers is None else layers
        if not 1 <= self.layers <= depth:
            raise UserError(f"objective.layers={layers} of a model of {depth} layers; choose from 1 to {depth}")
        if beta < 0:
            raise UserError(f"objective.beta={beta} must not be negative; 0 is the squared error")
        self.beta = beta
        ask_last_layer(model)
        self.teacher = Teacher(model, momentum=momentum, momentum_end=momentum_end)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)).to(model.dtype)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if (reason := super().refuses(config)) is not None:
            return reason
        if config.is_encoder_decoder or is_causal(config):
            return "it reads from left to right, so a masked place would know nothing of what follows"
        return None

    def forward(self, batch: Batch) -> StepOutput:
        index_N = batch["target_index"]
        target_NH = self.targets(batch)
        predicted_NH = self.head(states_at(self.model, batch, index_N)).float()
        # Divided by at least 1: a micro-batch without targets gives 0, and still a gradient to every parameter.
        loss = self.distance(predicted_NH, target_NH).sum() / max(1, len(index_N))
        return StepOutput(loss, _metrics(predicted_NH.detach(), target_NH))

    def distance(self, predicted_NH: Tensor, target_NH: Tensor) -> Tensor:
        """[N]: how far each prediction is from its target; here smooth L1, averaged over the features."""
        if self.beta == 0:
            return (predicted_NH - target_NH).square().mean(-1) / 2
        return F.smooth_l1_loss(predicted_NH, target_NH, beta=self.beta, reduction="none").mean(-1)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """float32 [N, H]: what the teacher, reading the unmasked rows, says at the masked places."""
        labels_BS = batch["labels"]
        original: Encoding = {**batch, "input_ids": torch.where(labels_BS != IGNORED, labels_BS, batch["input_ids"])}
        states = all_hidden_states(self.teacher.module, original)[-self.layers :]
        index_N = batch["target_index"]
        mean_NH = torch.stack([_normalised(state.flatten(0, 1)[index_N]) for state in states]).mean(0)
        return _normalised(mean_NH)

    def num_targets(self, batch: Batch) -> Tensor:
        return row_count(batch["target_index"])

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.model, progress)


def _normalised(x_NH: Tensor) -> Tensor:
    """Layer norm without weights, in float32: mean 0 and variance 1 over the features of each token."""
    return F.layer_norm(x_NH.float(), x_NH.shape[-1:])


def _metrics(predicted_NH: Tensor, target_NH: Tensor) -> dict[str, Tensor]:
    """`explained_variance` as a ratio of sums of squares about the mean target of the batch, and `target_std`."""
    tokens = target_NH.new_full((), float(len(target_NH)))
    if not len(target_NH):
        nothing = target_NH.new_zeros(2)
        return {"explained_variance": nothing, "target_std": nothing}
    centred_NH = target_NH - target_NH.mean(0)
    total = centred_NH.square().sum()
    left = (predicted_NH - target_NH).square().sum()
    spread = centred_NH.square().mean(0).sqrt().mean()
    return {
        "explained_variance": torch.stack([total - left, total]),
        "target_std": torch.stack([spread * tokens, tokens]),
    }
