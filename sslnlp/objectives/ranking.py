"""A bi-encoder for search: queries and documents become vectors, the relevant document's the nearest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.distributed import gather, own_rows
from sslnlp.errors import UserError, suggest
from sslnlp.nn import evaluating
from sslnlp.objectives import functional
from sslnlp.objectives.grad_cache import check_mini_batch_size, encode_in_parts
from sslnlp.objectives.pooled import Pooled
from sslnlp.objectives.whitening import TEXTS, Pairs, Whitening, better
from sslnlp.types import Batch, Encoding, StepOutput
from sslnlp.vector_map import is_encoder, map_of_model, whitener

DISTILLATIONS = {"margin_mse": functional.margin_mse, "kl": functional.listwise_kl}


class Ranking(Pooled):
    """In-batch InfoNCE over the cosine of pooled vectors (dense passage retrieval; Karpukhin et al., 2020).

    Rows: a query, its positive, optional negatives. Every other positive and every negative of the batch, over all
    processes, is a negative of a query, except texts that a pair of the batch says are relevant to it: those are left
    out of its sum. The loss compares rows, so a batch split for accumulation has fewer negatives: raise the batch
    size, not the accumulation.

    With `distill` a teacher's `scores` of each query's positive and own negatives are learnt as well (a
    cross-encoder's, from `sslnlp search mine --reranker`). The student's score is what the softmax of InfoNCE sees,
    cosine / temperature: a difference of two such scores is the log-odds that the one text is the relevant one, and so
    is a difference of a cross-encoder's logits. Hence no scale is learnt: one would be free to take the teacher's
    margins into itself while InfoNCE asks for another spread of cosines. Scores of another unit: `distill_temperature`.

    Options:
        temperature: divides the cosine; above 0.
        pooling: how a row of token vectors becomes one (see `sslnlp.nn.Pooling`), "mean" or "cls".
        symmetric: also let each positive find its query (as CLIP does), and average the two losses.
        whitening: what all texts share is taken out of the pooled vectors, and every direction divided by its variance
            to this power, up to 0.5 (`whitening`): a map that does not train, fitted to the first pairs before and
            after training, a `Dense` layer of the export. 0: none. None: none where the start is a sentence encoder
            without one; else what the start has, and behind it 0.25 or 0.5 where with that pairs find each other
            clearly better.
        mini_batch_size: rows of the batch that are encoded at a time, so that a large batch fits the memory of a small
            one (GradCache, `grad_cache`): equal gradients for a third more work. None: all at once.
        distill: "none", "margin_mse" (`functional.margin_mse`) or "kl" (`functional.listwise_kl`).
        distill_weight: the share of that in the loss, in (0, 1]; the rest is InfoNCE.
        distill_temperature: divides the teacher's scores; above 0.
    """

    name: ClassVar[str] = "ranking"
    needs: ClassVar[frozenset[str]] = frozenset({"query", "positive", "query_hash", "positive_hash"})
    collator: ClassVar[str] = "ranking"
    measures: ClassVar[tuple[str, ...]] = ("ranking",)
    best: ClassVar[tuple[str, str]] = ("mrr@10", "max")
    begin_rows: ClassVar[int] = TEXTS // 2

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 0.05,
        pooling: str = "mean",
        symmetric: bool = False,
        whitening: float | None = None,
        mini_batch_size: int | None = None,
        distill: str = "none",
        distill_weight: float = 0.5,
        distill_temperature: float = 1.0,
    ) -> None:
        super().__init__(model, pooling)
        for option, value in (("temperature", temperature), ("distill_temperature", distill_temperature)):
            if value <= 0:
                raise UserError(f"objective.{option}={value} must be above 0")
        accepted = ("none", *DISTILLATIONS)
        if distill not in accepted:
            raise UserError(f"objective.distill={distill!r} is not known.{suggest(distill, accepted)}")
        if not 0 < distill_weight <= 1:
            raise UserError(f"objective.distill_weight={distill_weight} must be above 0 and at most 1")
        self.distill, self.distill_weight, self.distill_temperature = distill, distill_weight, distill_temperature
        check_mini_batch_size(mini_batch_size)
        kept = map_of_model(model.name_or_path, pooling)
        self.tries = whitening is None and (kept is not None or not is_encoder(model.name_or_path, pooling))
        if self.tries:  # what the start has, and behind it what the pairs ask for
            self.whitening = Whitening(model.config.hidden_size) if kept is None else Whitening.of(kept)
            self.begins = self.refits = True
        else:
            self.whiten(whitening or 0.0, 0.0)
        self.temperature, self.symmetric, self.mini_batch_size = temperature, symmetric, mini_batch_size

    def begin(self, batches: Iterable[Batch]) -> None:
        """Fit the whitening to the pooled vectors of the first pairs."""
        pairs = self._pairs(batches)
        self._whiten(pairs.part(0), pairs.part(1), pairs)

    def refit(self, batches: Iterable[Batch], held_out: Iterable[Batch]) -> None:
        """And to what has become of them, which held-out pairs have to bear out: the first may have been learnt."""
        pairs, others = self._pairs(batches), self._pairs(held_out)
        self._whiten(pairs, others, pairs)

    def _whiten(self, learnt: Pairs, judged: Pairs, pairs: Pairs) -> None:
        assert self.whitening is not None
        if self.tries:
            self.whitening.set(better(learnt, judged, pairs, self.whitening.map))
        else:
            self.whitening.set(whitener(pairs.vectors, self.exponent))

    def _pairs(self, batches: Iterable[Batch]) -> Pairs:
        found: list[Pairs] = []
        with evaluating(self), torch.no_grad():
            for batch in batches:
                queries, documents = self.pooled(batch["query"]), self.pooled(batch["positive"])
                found.append(Pairs(queries, documents, batch["query_hash"], batch["positive_hash"]))
        return Pairs.joined(found)

    def _embed_all(self, batch: Batch) -> dict[str, Tensor]:
        """The vectors of each side of the batch that is there."""
        sides: dict[str, Encoding] = {name: batch[name] for name in ("query", "positive", "negative") if name in batch}
        if (size := self.mini_batch_size) is not None:
            rows = len(batch["query_hash"])
            return {
                name: encode_in_parts(self.embed, encoding, size, copies=len(encoding["input_ids"]) // rows)
                for name, encoding in sides.items()
            }
        return self.embed_sides(sides, batch.get("places"))

    def forward(self, batch: Batch) -> StepOutput:
        """Mean loss over this process's queries, `accuracy` (own positive first among all candidates),
        `positive_similarity` (mean cosine of a query and its positive) and, with a teacher, `distillation` (its loss).

        Raises `UserError` in training when there is something to distil and the rows have no scores.
        """
        vectors = self._embed_all(batch)
        query_BH, positive_BH = vectors["query"], vectors["positive"]
        asked, texts = gather(batch["query_hash"]), gather(batch["positive_hash"])
        documents, document_hash = [gather(positive_BH)], [texts]
        if "negative" in batch:
            documents.append(gather(vectors["negative"]))
            document_hash.append(gather(batch["negative_hash"]))
        target_B = own_rows(query_BH)
        relevant_BD = functional.relevant_pairs(batch["query_hash"], torch.cat(document_hash), asked, texts)
        loss, similarity_BD = functional.info_nce(
            query_BH, torch.cat(documents), target_B, temperature=self.temperature, excluded_QD=relevant_BD
        )
        if self.symmetric:
            relevant_BQ = functional.relevant_pairs(asked, batch["positive_hash"], asked, texts).T
            back, _ = functional.info_nce(
                positive_BH, gather(query_BH), target_B, temperature=self.temperature, excluded_QD=relevant_BQ
            )
            loss = (loss + back) / 2
        metrics = functional.first_among(similarity_BD, target_B)
        if (taught := self._distilled(batch, vectors)) is not None:
            metrics["distillation"] = taught.detach()
            loss = (1 - self.distill_weight) * loss + self.distill_weight * taught
        return StepOutput(loss, metrics)

    def _distilled(self, batch: Batch, vectors: dict[str, Tensor]) -> Tensor | None:
        """The loss against the teacher's scores, over the queries of this process: each has its own documents."""
        if self.distill == "none":
            return None
        if "scores" not in batch:
            if self.training:  # held-out pairs may have none: there the loss is InfoNCE
                raise UserError(
                    f"objective.distill={self.distill} needs rows with 'negatives' and a teacher's 'scores' of the "
                    "positive and each of them: make them with sslnlp search mine --reranker"
                )
            return None
        query_BH, positive_BH = vectors["query"], vectors["positive"]
        negative_BNH = vectors["negative"].view(len(query_BH), -1, query_BH.size(1))
        document_BKH = torch.cat([positive_BH[:, None], negative_BNH], 1)
        logits_BK = (query_BH[:, None] * document_BKH).sum(-1) / self.temperature
        return DISTILLATIONS[self.distill](logits_BK, batch["scores"].to(logits_BK.dtype) / self.distill_temperature)

    def num_targets(self, batch: Batch) -> Tensor:
        """The queries of the batch."""
        return functional.row_count(batch["query_hash"])

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """`query`, `document` float [B, H] and the hashes of their texts, int64 [B]: a known-item collection."""
        return {
            "query": self.embed(batch["query"]),
            "document": self.embed(batch["positive"]),
            "query_hash": batch["query_hash"],
            "document_hash": batch["positive_hash"],
        }
