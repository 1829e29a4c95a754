"""Small decoders that write a text from one vector: what an encoder's training throws away at its end.

They take the encoder's input embeddings as an argument, so that the matrix is shared and kept once, and count positions
by sinusoids, so that any row fits. Shape suffixes: B rows, T tokens, D documents of a row, U things looked at,
H width, E width of the embeddings, V vocabulary, A heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from sslnlp.errors import UserError
from sslnlp.keyed import RowDropout, keyed_uniform
from sslnlp.masks import is_causal

_DROPOUTS = ("hidden_dropout_prob", "mlp_dropout", "dropout", "dropout_rate", "resid_pdrop")


def no_encoder(config: PreTrainedConfig) -> str | None:
    """Why a model of this configuration gives no vector for these decoders; None when it does."""
    if is_causal(config):
        return "it is not an encoder, which one vector of a whole text comes from"
    if not hasattr(config, "num_attention_heads"):  # FNet
        return "it has no attention heads, of which the decoder takes as many"
    return None


class SentenceDecoder(nn.Module):
    """A pre-norm transformer that writes each document from left to right, given one vector of it and nothing else.

    Attention over a memory of a single vector is that vector, whatever the query: its weights are a softmax over one
    number. So every layer adds a projection of the vector where cross-attention would stand.

    Args:
        config: of the encoder: width, heads, dropout and the width of the embeddings are taken from it.
        layers: of the decoder; few, so that the vector has to say what the text is.
    """

    def __init__(self, config: PreTrainedConfig, *, layers: int = 1) -> None:
        super().__init__()
        if layers < 1:
            raise UserError(f"objective.layers counts the decoder's layers, 1 or more, got {layers}")
        self.embed = Embedding(config)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(layers))
        self.conditions = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.narrow = nn.Linear(config.hidden_size, self.embed.width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self,
        text_BT: Tensor,
        document_ids_BT: Tensor,
        position_ids_BT: Tensor,
        vectors_BDH: Tensor,
        table_VE: Tensor,
        told_BT: Tensor | None = None,
    ) -> Tensor:
        """What names each token of `text_BT`, [B, T, E], from the tokens before it in its document and its vector: its
        logits are products with the rows of `table_VE`, and `bias` added (`logits`).

        Args:
            text_BT: ids, each at its own place; moved one to the right in here, so output t has seen text below t
                alone. Negative ids (labels of padding) stand for nothing.
            document_ids_BT: 0, 1, ... in the row, -1 = padding; token (b, t) is of document d = document_ids[b, t] and
                is given `vectors_BDH[b, d]`.
            position_ids_BT: places inside the document, from 0.
            vectors_BDH: one vector a document.
            table_VE: the encoder's input embeddings, both to read tokens and to name them.
            told_BT: bool; where false, the token just before this one is hidden from the decoder (word dropout).
        """
        known_BT = position_ids_BT > 0  # the first token of a document is said from the vector alone
        if told_BT is not None:
            known_BT = known_BT & told_BT
        previous_BT = F.pad(text_BT[:, :-1], (1, 0))
        x_BTH = self.embed(previous_BT, position_ids_BT, table_VE, known_BT)
        given_BTH = spread(vectors_BDH.to(self.bias.dtype), document_ids_BT)
        same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
        visible_BTT = same_BTT.tril()  # a token of the padding sees itself, so that no row is empty
        for layer, condition in zip(self.layers, self.conditions, strict=True):
            x_BTH = x_BTH + condition(given_BTH)
            x_BTH = layer(x_BTH, x_BTH, visible_BTT)
        features_BTE: Tensor = self.narrow(self.norm(x_BTH))
        return features_BTE

    def logits(self, features_XE: Tensor, table_VE: Tensor) -> Tensor:
        """[..., V], of what `forward` makes."""
        return F.linear(features_XE, table_VE.to(self.bias.dtype), self.bias)


class EnhancedDecoder(nn.Module):
    """The one-layer decoder of RetroMAE (Xiao et al., 2022, arXiv:2205.12035, section 3.3): every token is a target.

    The query of a token is the document's vector plus the token's place; what it attends to is the vector and a sample
    of the other tokens of its document, drawn for each token anew. So no token sees itself, and all are asked.

    Args:
        config: of the encoder, as for `SentenceDecoder`.
        rate: the chance that a token is hidden from another one.
    """

    def __init__(self, config: PreTrainedConfig, *, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.embed = Embedding(config)
        self.layer = _Layer(config)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        text_BT: Tensor,
        document_ids_BT: Tensor,
        position_ids_BT: Tensor,
        vectors_BDH: Tensor,
        table_VE: Tensor,
        position_B: Tensor,
    ) -> Tensor:
        """Hidden states [B, T, H] for the prediction head. Arguments as in `SentenceDecoder.forward`; `position_B` is
        the place of each row in the run, the key of its draws."""
        context_BTH = self.embed(text_BT, position_ids_BT, table_VE)
        dtype = self.norm.weight.dtype
        place_BTH = places(position_ids_BT, vectors_BDH.shape[-1], dtype)
        query_BTH = spread(vectors_BDH.to(dtype), document_ids_BT) + place_BTH
        seen_BTD = _own_vector(document_ids_BT, vectors_BDH.shape[1])
        visible_BTU = torch.cat([seen_BTD, self._sample(document_ids_BT, position_B)], dim=-1)
        context_BUH = torch.cat([vectors_BDH.to(context_BTH.dtype), context_BTH], dim=1)
        rebuilt: Tensor = self.norm(self.layer(query_BTH, context_BUH, visible_BTU))
        return rebuilt

    def _sample(self, document_ids_BT: Tensor, position_B: Tensor) -> Tensor:
        """bool [B, T, T]: which other tokens of its document each token sees."""
        length = document_ids_BT.shape[1]
        same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
        itself_TT = torch.eye(length, dtype=torch.bool, device=document_ids_BT.device)
        drawn_BTT = keyed_uniform(position_B, length, length, purpose="decoder/visible") >= self.rate
        return same_BTT & drawn_BTT & ~itself_TT & (document_ids_BT >= 0)[:, :, None]


class Embedding(nn.Module):
    """Tokens by a table that somebody else owns, at unit scale and the decoder's width, with their places."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.width: int = getattr(config, "embedding_size", None) or config.hidden_size  # ELECTRA's may be narrower
        self.hidden_size: int = config.hidden_size
        self.norm = nn.LayerNorm(self.width)
        self.widen = nn.Linear(self.width, config.hidden_size)
        self.drop = RowDropout(_rate(config))

    def forward(
        self, ids_BT: Tensor, position_ids_BT: Tensor, table_VE: Tensor, known_BT: Tensor | None = None
    ) -> Tensor:
        """[B, T, H]; tokens that are not `known` (bool [B, T]) are left out, and only their place is told."""
        dtype = self.norm.weight.dtype
        embedded_BTE = self.norm(F.embedding(ids_BT.clamp(min=0), table_VE).to(dtype))
        if known_BT is not None:
            embedded_BTE = embedded_BTE * known_BT[..., None]
        dropped: Tensor = self.drop(self.widen(embedded_BTE) + places(position_ids_BT, self.hidden_size, dtype))
        return dropped


class _Layer(nn.Module):
    """Attention of queries over a context (themselves, or something else), then the feed-forward part; pre-norm."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query_norm, self.context_norm, self.mlp_norm = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = RowDropout(_rate(config))

    def forward(self, x_BTH: Tensor, context_BUH: Tensor, visible_BTU: Tensor) -> Tensor:
        """[B, T, H]: token t of `x` takes from those of the context where `visible` is true."""
        context_BUH = self.context_norm(context_BUH)
        seen_BATH = F.scaled_dot_product_attention(
            self._split(self.query(self.query_norm(x_BTH))),
            self._split(self.key(context_BUH)),
            self._split(self.value(context_BUH)),
            attn_mask=visible_BTU[:, None],
        )
        x_BTH = x_BTH + self.drop(self.out(seen_BATH.transpose(1, 2).flatten(2)))
        mixed: Tensor = x_BTH + self.drop(self.down(F.gelu(self.up(self.mlp_norm(x_BTH)))))
        return mixed

    def _split(self, x_BTH: Tensor) -> Tensor:
        return x_BTH.view(*x_BTH.shape[:2], self.heads, -1).transpose(1, 2)


def spread(vectors_BDH: Tensor, document_ids_BT: Tensor) -> Tensor:
    """[B, T, H]: for each token the vector of its document (of document 0 for padding, which nobody reads)."""
    index_BT1 = document_ids_BT.clamp(min=0)[..., None].long()
    return vectors_BDH.gather(1, index_BT1.expand(-1, -1, vectors_BDH.shape[-1]))


def _own_vector(document_ids_BT: Tensor, documents: int) -> Tensor:
    """bool [B, T, D]: the vector each token is given. Padding looks at vector 0, so that no row of a mask is empty."""
    return document_ids_BT.clamp(min=0)[:, :, None] == torch.arange(documents, device=document_ids_BT.device)


def places(position_ids_BT: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sinusoids of Vaswani et al. (2017), [B, T, width], made in float32: no table, so no longest text."""
    half = torch.arange((width + 1) // 2, device=position_ids_BT.device, dtype=torch.float32)
    angle = position_ids_BT[..., None] * torch.exp(half * (-2 * math.log(10_000) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :width].to(dtype)


def _rate(config: PreTrainedConfig) -> float:
    """The dropout of the encoder's hidden states, under whichever name its configuration has it."""
    return next((float(getattr(config, name)) for name in _DROPOUTS if getattr(config, name, None) is not None), 0.0)
