"""Each caption fits a picture or it does not: no candidate is compared with another."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Unpack

from sslnlp.objectives import functional
from sslnlp.objectives.clip import Clip, ClipOptions
from sslnlp.objectives.info_nce import Texts


class Siglip(Clip):
    """SigLIP (Zhai et al., 2023, arXiv:2303.15343): each caption fits a picture or it does not, by itself.

    The loss is the sum over all candidates of a query of the logistic loss of (cosine / temperature + bias), averaged
    over the queries. The bias is `ln(1 / negatives)`, from how many candidates there are, plus what is learned: the
    paper's -10 fits batches of 20,000, and with 32 the model would spend its first steps on unlearning it.

    Options are those of `clip`; the temperature begins at 0.1, as published.
    """

    name: ClassVar[str] = "siglip"

    def __init__(self, model: PreTrainedModel, *, temperature: float = 0.1, **options: Unpack[ClipOptions]) -> None:
        super().__init__(model, temperature=temperature, **options)
        self.bias = nn.Parameter(torch.zeros(1, dtype=model.dtype))

    def compare(
        self, query_QD: Tensor, candidate_ND: Tensor, target_Q: Tensor, texts: Texts
    ) -> tuple[Tensor, Tensor, Tensor]:
        similarity_QN = functional.dot_products(query_QD, candidate_ND)
        own_QN = F.one_hot(target_Q, len(candidate_ND)).bool()
        counted_QN = own_QN | ~texts.left_out(slice(0, len(query_QD)))
        others_Q = counted_QN.sum(1) - 1
        negatives_Q = others_Q.clamp(min=1)
        logits_QN = similarity_QN * self.log_scale.exp() - negatives_Q[:, None].log() + self.bias
        losses_QN = F.softplus(torch.where(own_QN, -logits_QN, logits_QN)).masked_fill(~counted_QN, 0)
        seen_QN = similarity_QN.detach().masked_fill(~counted_QN, float("-inf"))
        hits = functional.nearest_own(seen_QN, target_Q).float().mean()
        # Of candidates that are all given the share of the positive among them.
        chance_Q = (1 + others_Q).log() + others_Q * (1 / negatives_Q).log1p()
        return losses_QN.sum() / max(1, len(query_QD)), hits, chance_Q.mean()
