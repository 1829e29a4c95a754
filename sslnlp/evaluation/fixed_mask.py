"""Loss and accuracy of a masked language model on held-out text under one fixed set of masks.

The masks depend on the tokenizer and the text alone: models that share a tokenizer compare, whatever they trained on.
Shapes: B texts of a batch, S tokens, N masked tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.heads import prediction_head, scored_logits
from sslnlp.last_layer import ask_last_layer
from sslnlp.nn import evaluating
from sslnlp.objectives.functional import IGNORED
from sslnlp.rng import uniform

RATE = 0.15


def fixed_mask_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 32,
) -> dict[str, Figure]:
    """`mask_loss` (nats a masked token) and `mask_accuracy` over 15 % of the tokens of each text, one at least.

    They are replaced by the mask token. A text is cut to `max_length` tokens; texts are drawn anew for the intervals.
    Chance is what a uniform guess has.

    Raises `UserError` for a tokenizer without a mask token.
    """
    if tokenizer.mask_token_id is None:
        raise UserError("the tokenizer has no mask token, so no masked loss can be measured")
    head = prediction_head(model)
    ask_last_layer(model)
    sums: list[tuple[float, float, int]] = []
    with evaluating(model), torch.no_grad():
        for start in range(0, len(texts), batch_size):
            encoding, target_BS = _masked(tokenizer, texts[start : start + batch_size], start, max_length)
            index_N = (target_BS != IGNORED).flatten().nonzero().flatten()
            if not len(index_N):
                continue
            inputs = {name: value.to(model.device) for name, value in encoding.items()}
            logits_NV = scored_logits(model, head, inputs, index_N.to(model.device)).float().cpu()
            target_N = target_BS.flatten()[index_N]
            loss_N = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
            hit_N = logits_NV.argmax(-1) == target_N
            row_N = index_N // target_BS.shape[1]
            for row in range(len(target_BS)):
                own = row_N == row
                sums.append((float(loss_N[own].sum()), float(hit_N[own].sum()), int(own.sum())))
    losses, hits, counts = np.array(sums or [(0, 0, 0)], dtype=np.float64).T
    size = model.config.vocab_size
    return {
        "mask_loss": ratio_figure(losses, counts, chance=math.log(size)),
        "mask_accuracy": ratio_figure(hits, counts, chance=1 / size),
    }


def _masked(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], first: int, max_length: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The masked encoding of some texts, the first of which has the number `first`, and the targets int64 [B, S]."""
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding=True, padding_side="right",
        return_special_tokens_mask=True, return_token_type_ids=False, return_tensors="pt",
    )  # fmt: skip
    special = encoded.pop("special_tokens_mask").numpy() > 0
    ids = encoded["input_ids"].numpy()
    draw = uniform(0, "fixed mask", np.arange(first, first + len(ids)), ids.shape[1])
    draw = np.where(special | (encoded["attention_mask"].numpy() == 0), 2.0, draw)
    number = (draw < 2).sum(1)
    wanted = np.minimum(np.maximum(1, np.rint(RATE * number)), number)
    masked = draw.argsort(1, kind="stable").argsort(1, kind="stable") < wanted[:, None]
    target = torch.from_numpy(np.where(masked, ids, IGNORED))
    encoded["input_ids"] = torch.from_numpy(np.where(masked, tokenizer.mask_token_id, ids))
    return dict(encoded), target
