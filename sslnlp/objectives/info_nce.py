"""Instance discrimination: a view of a document names the other view among those of all documents of the batch."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslnlp.distributed import gather_ragged
from sslnlp.errors import UserError
from sslnlp.objectives import functional
from sslnlp.objectives.embedding import Cut, Embedding, live, ordered_pairs, views
from sslnlp.types import Batch, StepOutput

COLDEST = 0.01
"""The lowest temperature that is learned: below it the loss follows the hardest candidate alone (as in CLIP)."""


class InfoNCE(Embedding):
    """InfoNCE over the cosine of pooled vectors (van den Oord et al., 2018, arXiv:1807.03748), between views.

    What it is depends on the views: two times the same text is SimCSE (Gao et al., 2021, arXiv:2104.08821), which needs
    `model.dropout`; two crops is the in-batch Contriever (Izacard et al., 2022, arXiv:2112.09118); two columns
    (`collator.name=pair_views`) is weakly supervised pretraining (E5; Wang et al., 2022, arXiv:2212.03533). For the
    fine-tuning of a ranker see `ranking`.

    The candidates of a view are the other view of all documents of the batch, of all processes, and for the first view
    the hard `negative` texts. Left out are those that are known to be no negatives: made of the same text, or equal.
    The loss compares rows, so a batch that is split has fewer negatives: raise the batch size, not the accumulation.

    Reads `negative` where there is one. Metrics: those of `Embedding`, `accuracy` (the own second view is nearer to the
    first than any other candidate) and `temperature`.

    Options besides those of `Embedding`:
        temperature: divides the cosine; above 0.
        learn_temperature: it is a parameter that begins there, and does not fall below 0.01.
        symmetric: every view looks for every other; else the first looks for the others.
    """

    name: ClassVar[str] = "info_nce"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        symmetric: bool = True,
        pooling: str = "mean",
        dimensions: list[int] | None = None,
        train_layers: int | None = None,
    ) -> None:
        super().__init__(model, pooling=pooling, dimensions=dimensions, train_layers=train_layers)
        check_temperature(temperature)
        self.symmetric = symmetric
        # A vector of one number: a lone number could not be cut over processes.
        scale = torch.tensor([-math.log(temperature)])
        self.log_scale: Tensor
        if learn_temperature:
            if temperature < COLDEST:
                raise UserError(f"a learned objective.temperature begins at {COLDEST} or above, got {temperature}")
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    def forward(self, batch: Batch) -> StepOutput:
        present, sides = batch["present"], list(views(batch))
        own = [self.vectors(side, present) for side in sides]
        hashes = [side["hashes"][present] for side in sides]
        everyone, start = [], 0
        for vectors_MH in own:
            gathered, start = gather_ragged(vectors_MH)
            everyone.append(gathered)
        texts = [gather_ragged(side)[0] for side in hashes]
        target_M = start + torch.arange(len(own[0]), device=present.device)
        hard = self._negatives(batch)
        temperature = (-self.log_scale).exp()
        figures: dict[str, Tensor] = {}

        def loss(cut: Cut) -> Tensor:
            losses = []
            for i, j in ordered_pairs(len(own), self.symmetric):
                candidates, candidate_texts = [everyone[j]], [texts[j]]
                if hard is not None and i == 0:
                    candidates.append(hard[0])
                    candidate_texts.append(hard[1])
                excluded = functional.false_negatives(hashes[i], torch.cat(candidate_texts), texts[i], texts[j])
                one, similarity = functional.info_nce(
                    F.normalize(cut(own[i]), dim=-1),
                    F.normalize(cut(torch.cat(candidates)), dim=-1),
                    target_M,
                    temperature=temperature,
                    excluded_QD=excluded,
                )
                losses.append(one)
                if (i, j) == (0, 1):
                    nearest = similarity >= similarity.gather(1, target_M[:, None])
                    figures["accuracy"] = (nearest.sum(1) == 1).float().sum() / max(1, len(target_M))  # no ties
            return torch.stack(losses).mean()

        total = self.nested(loss)
        figures["temperature"] = temperature.detach().sum()
        return StepOutput(total, figures | live(own[0], own[1]))

    def _negatives(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The vectors [n, H] and hashes [n, T] of the hard negatives of all processes."""
        if "negative" not in batch:
            return None
        encoding = batch["negative"]
        present = torch.ones_like(encoding["hashes"][..., 0], dtype=torch.bool)
        vectors, _ = gather_ragged(self.vectors(encoding, present))
        texts, _ = gather_ragged(encoding["hashes"][present])
        return vectors, texts

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.log_scale.requires_grad:
            self.log_scale.clamp_(max=-math.log(COLDEST))


def check_temperature(temperature: float) -> None:
    """Refuse what cannot divide a cosine."""
    if temperature <= 0:
        raise UserError(f"objective.temperature={temperature} must be above 0")
