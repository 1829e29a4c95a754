"""Instance discrimination: a view of a document names the other view among those of all documents of the batch."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Unpack

from sslnlp.distributed import gather_ragged
from sslnlp.errors import UserError
from sslnlp.objectives import functional
from sslnlp.objectives.embedding import Cut, Documents, Embedding, SharedOptions, live, ordered_pairs, views
from sslnlp.objectives.grad_cache import in_parts
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
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(model, **shared)
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
        documents, sides = Documents.of(batch), list(views(batch))
        own = [self.vectors(side, documents) for side in sides]
        hashes = [documents.pick(side["hashes"]) for side in sides]
        everyone, start = [], 0
        for vectors_MH in own:
            gathered, start = gather_ragged(vectors_MH)
            everyone.append(gathered)
        texts = [gather_ragged(side)[0] for side in hashes]
        target_M = start + torch.arange(len(own[0]), device=own[0].device)
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
                one, figures[f"{i}{j}"], _ = contrast(
                    F.normalize(cut(own[i]), dim=-1),
                    F.normalize(cut(torch.cat(candidates)), dim=-1),
                    target_M,
                    Texts(hashes[i], torch.cat(candidate_texts), texts[i], texts[j]),
                    temperature=temperature,
                    size=self.mini_batch_size,
                )
                losses.append(one)
            return torch.stack(losses).mean()

        total = self.nested(loss)  # the full width comes last, so the accuracies are of that
        shown = {"accuracy": figures["01"], "temperature": temperature.detach().sum()}
        return StepOutput(total, shown | live(own[0], own[1]))

    def _negatives(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The vectors [n, H] and hashes [n, T] of the hard negatives of all processes."""
        if "negative" not in batch:
            return None
        encoding = batch["negative"]
        hashes_NCT = encoding["hashes"]
        every = Documents(hashes_NCT.shape[1], torch.arange(hashes_NCT[..., 0].numel(), device=hashes_NCT.device))
        copies = len(hashes_NCT) // max(1, len(batch["present"]))
        vectors, _ = gather_ragged(self.vectors(encoding, every, copies=copies))
        texts, _ = gather_ragged(every.pick(hashes_NCT))
        return vectors, texts

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self.log_scale.requires_grad:
            self.log_scale.clamp_(max=-math.log(COLDEST))


class Texts(NamedTuple):
    """The hashes that tell which candidates are no negatives: arguments of `functional.false_negatives`."""

    query: Tensor
    """int64 [Q, T]."""
    document: Tensor
    """int64 [D, T]."""
    pair_query: Tensor
    pair_document: Tensor
    """int64 [P, T], both."""
    empty: Tensor | None = None
    """bool [D]: candidates that are none."""

    def left_out(self, part: slice) -> Tensor:
        """bool, a row for each query of a part [part, D]."""
        out_QD = functional.false_negatives(self.query[part], self.document, self.pair_query, self.pair_document)
        return out_QD if self.empty is None else out_QD | self.empty


def contrast(
    query_QH: Tensor,
    document_DH: Tensor,
    target_Q: Tensor,
    texts: Texts,
    *,
    temperature: float | Tensor,
    size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`functional.info_nce` of vectors of length 1, the share of the queries whose own document is the nearest, and the
    loss where all documents are equally near.

    size: queries that are compared at a time, so that no matrix of all with all is kept.
    """

    def some(part: slice) -> tuple[Tensor, Tensor]:
        loss, similarity_QD = functional.info_nce(
            query_QH[part], document_DH, target_Q[part], temperature=temperature, excluded_QD=texts.left_out(part)
        )
        hits = functional.nearest_own(similarity_QD, target_Q[part]).float().sum()
        return loss * len(similarity_QD), torch.stack([hits, (~similarity_QD.isneginf()).sum(1).log().sum()])

    losses, figures = zip(*in_parts(some, len(query_QH), size), strict=True)
    number = max(1, len(query_QH))
    hits, chance = torch.stack(figures).sum(0) / number
    return torch.stack(losses).sum() / number, hits, chance


def check_temperature(temperature: float) -> None:
    """Refuse what cannot divide a cosine."""
    if temperature <= 0:
        raise UserError(f"objective.temperature={temperature} must be above 0")
