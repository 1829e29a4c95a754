"""Late interaction: a query and a document are compared token by token, each token having a vector of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from sslnlp.distributed import all_reduce_max, gather, own_rows, world_size
from sslnlp.errors import UserError
from sslnlp.objectives import functional
from sslnlp.objectives.base import Objective
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, Encoding, StepOutput

# Q = queries, T = tokens of a query, D = documents, S = tokens of a document, H = width of a vector.


def max_sim(query_QTH: Tensor, query_QT: Tensor, document_DSH: Tensor, document_DS: Tensor) -> Tensor:
    """MaxSim of every query with every document, [Q, D] (Khattab and Zaharia, 2020, ColBERT, arXiv:2004.12832).

    Each token of the query looks for the token of the document with the largest dot product; these are summed.
    `query_QT` and `document_DS` (1 = a token, 0 = padding) are the attention masks. In the type of the vectors under
    autocast too, as `functional.dot_products`.
    """
    unseen_DS = document_DS == 0
    rows = []
    with torch.autocast(query_QTH.device.type, enabled=False):
        for query_TH, mask_T in zip(query_QTH, query_QT, strict=True):  # one query at a time: Q × T × D × S do not fit
            similar_TDS = torch.einsum("th,dsh->tds", query_TH, document_DSH).masked_fill(unseen_DS, float("-inf"))
            rows.append((similar_TDS.max(-1).values * mask_T[:, None]).sum(0))
    return torch.stack(rows)


class LateInteraction(Objective):
    """In-batch cross-entropy over MaxSim (ColBERT; Khattab and Zaharia, 2020, arXiv:2004.12832).

    Between a bi-encoder and a cross-encoder: documents are encoded without their query, as in `ranking`, and no word is
    averaged away. Rows and negatives are those of `ranking`: every other positive and every negative of the batch, over
    all processes, except texts that a pair of the batch says are relevant. The loss compares rows, so a batch split
    for accumulation has fewer negatives: raise the batch size, not the accumulation.

    Against the paper: vectors are the model's own, at length one, without a projection to 128 dimensions, so that what
    is left behind is a stock model; the projection makes an index of token vectors small, and here MaxSim reranks
    what another search found. Queries are not filled up with mask tokens.

    Option `temperature`: divides the mean of the query's best cosines (not their sum: it then means the same for long
    queries and short ones); above 0.
    """

    name: ClassVar[str] = "late_interaction"
    needs: ClassVar[frozenset[str]] = frozenset({"query", "positive", "query_hash", "positive_hash"})
    collator: ClassVar[str] = "ranking"
    wraps: ClassVar[Any] = AutoModel
    couples_rows: ClassVar[bool] = True
    per_token: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, *, temperature: float = 0.05) -> None:
        super().__init__(model)
        if temperature <= 0:
            raise UserError(f"objective.temperature={temperature} must be above 0")
        self.temperature = temperature

    def embed(self, encoding: Encoding) -> Tensor:
        """A vector of length 1 for each token, in float32 or wider: [B, S, H]; what stands at padding is no vector."""
        return functional.unit(hidden_states(self.model, encoding))

    def forward(self, batch: Batch) -> StepOutput:
        """Mean loss over this process's queries, `accuracy` (own positive first among all candidates) and
        `positive_similarity` (mean over queries of the mean best cosine with the positive)."""
        query_QTH, query_QT = self.embed(batch["query"]), batch["query"]["attention_mask"]
        parts = [_gathered(self.embed(batch["positive"]), batch["positive"]["attention_mask"])]
        asked, texts = gather(batch["query_hash"]), gather(batch["positive_hash"])
        hashes = [texts]
        if "negative" in batch:
            parts.append(_gathered(self.embed(batch["negative"]), batch["negative"]["attention_mask"]))
            hashes.append(gather(batch["negative_hash"]))
        # Positives and negatives are padded to different lengths, and need not be compared in one go.
        sums_QD = torch.cat([max_sim(query_QTH, query_QT, *documents) for documents in parts], 1)
        target_Q = own_rows(query_QTH)
        relevant_QD = functional.relevant_pairs(batch["query_hash"], torch.cat(hashes), asked, texts)
        loss, similarity_QD = functional.contrasted(
            sums_QD / query_QT.sum(1, keepdim=True), target_Q, temperature=self.temperature, excluded_QD=relevant_QD
        )
        return StepOutput(loss, functional.first_among(similarity_QD, target_Q))

    def num_targets(self, batch: Batch) -> Tensor:
        """The queries of the batch."""
        return functional.row_count(batch["query_hash"])


def _gathered(token_DSH: Tensor, mask_DS: Tensor) -> tuple[Tensor, Tensor]:
    """The documents of all processes, padded to the longest of them."""
    if world_size() == 1:
        return token_DSH, mask_DS
    longest = int(all_reduce_max(torch.tensor([mask_DS.shape[1]], device=mask_DS.device)))
    missing = longest - mask_DS.shape[1]
    return gather(F.pad(token_DSH, (0, 0, 0, missing))), gather(F.pad(mask_DS, (0, missing)))
