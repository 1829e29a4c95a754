"""A variational autoencoder of texts: each document is a point of a smooth space, which texts can be drawn from.

Shape suffixes: B rows, T decoder tokens, D documents of a row, Z latent dimensions, H width, N any number of latents.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.errors import UserError
from sslnlp.keyed import keyed_uniform
from sslnlp.nn import document_pool, each_document, present
from sslnlp.objectives.decoder import SentenceDecoder, no_encoder
from sslnlp.objectives.functional import cyclic, gaussian_kl
from sslnlp.objectives.linear_cross_entropy import Scored, linear_cross_entropy
from sslnlp.objectives.whitening import Whitened
from sslnlp.packed import hidden_states
from sslnlp.tokenizer import framing
from sslnlp.types import Batch, StepOutput

SAMPLES, STEPS, LONGEST = 4, 5, 48  # texts drawn, points of an interpolation, tokens of a text shown


class VAE(Whitened):
    """The evidence lower bound for texts (Bowman et al., 2016, arXiv:1511.06349), turned round: nats a token.

    The mean of a document's last hidden states gives, by two linear maps, the mean and log variance of a Gaussian
    q(z|x); a decoder (`objectives.decoder`) writes the document from a draw of z. Loss of a batch, both parts summed
    over it and divided by its tokens: cross-entropy + β × KL(q(z|x) from N(0, 1)). So β = 1 is the bound itself.
    Held-out loss is always that bound (β 1, no free bits, one draw of z a document, the same each time): an upper bound
    of the negative log-likelihood, so `bits_per_byte` compares with any other model's.

    A decoder that does well without z lets the KL fall to 0, and z says nothing (posterior collapse). Against it: β
    rising in cycles (Fu et al., 2019), free bits (Kingma et al., 2016; for each document and dimension, as in Optimus,
    Li et al., 2020), word dropout (Bowman et al.), a small decoder. The held-out pass says when it has happened.

    Reads what `collators.seq2seq.seq2seq_batch` makes. Metrics: `reconstruction` (nats a token), `accuracy` of the next
    token, `kl` (nats a document), `beta`; in evaluation `loss_without_vector`, the reconstruction from the prior's mean
    alone. The export is the encoder, a mean-pooling sentence embedder.

    Options:
        latent: dimensions of z.
        beta: the weight that the KL rises to; at 0 nothing keeps z near the prior.
        cycles, ramp: how often β rises from 0 over the run, and the share of a cycle that it takes; ramp 0: never.
        free_bits: nats of KL that each dimension may have at no cost.
        word_dropout: share of the tokens that the decoder is not told while it learns, when it writes the next one.
        layers: of the decoder.
        whitening: the exponent of the map behind the pooling of the export (`objectives.whitening`), fitted after
            training. 0: none. None: 0.5 where the start is no sentence encoder.
    """

    name: ClassVar[str] = "vae"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "document_ids", "position_ids", "labels", "decoder_document_ids", "decoder_position_ids"}
        | {"position"}
    )
    collator: ClassVar[str] = "autoencoding"
    wraps: ClassVar[Any] = AutoModel
    pooling: ClassVar[str | None] = "mean"
    likelihood: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("latent",)
    beta_now: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        latent: int = 32,
        beta: float = 1.0,
        cycles: int = 4,
        ramp: float = 0.5,
        free_bits: float = 0.5,
        word_dropout: float = 0.3,
        layers: int = 1,
        whitening: float | None = None,
    ) -> None:
        super().__init__(model)
        self.whiten(whitening, 0.5, before=False)
        for option, value, least in (("latent", latent, 1), ("beta", beta, 0), ("cycles", cycles, 1)):
            if value < least:
                raise UserError(f"objective.{option} must be at least {least}, got {value}")
        if free_bits < 0:
            raise UserError(f"objective.free_bits={free_bits} must not be negative; 0 gives none")
        if not (0 <= ramp <= 1 and 0 <= word_dropout < 1):
            raise UserError(f"objective.ramp={ramp} and objective.word_dropout={word_dropout} are shares from 0 to 1")
        self.beta, self.cycles, self.ramp = beta, cycles, ramp
        self.free_bits, self.word_dropout = free_bits, word_dropout
        width = model.config.hidden_size
        self.posterior = nn.Linear(width, 2 * latent, dtype=model.dtype)
        self.widen = nn.Linear(latent, width, dtype=model.dtype)
        self.decoder = SentenceDecoder(model.config, layers=layers).to(model.dtype)
        self.register_buffer("beta_now", torch.tensor(0.0 if ramp > 0 else float(beta)))

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        return super().refuses(config) or no_encoder(config)

    def forward(self, batch: Batch) -> StepOutput:
        mean_BDZ, logvar_BDZ = self.encode(batch)
        z_BDZ = mean_BDZ + (logvar_BDZ / 2).exp() * _normal(batch["position"], *mean_BDZ.shape[1:], purpose="vae/z")
        told_BT = None
        if self.training and self.word_dropout > 0:
            length = batch["labels"].shape[1]
            told_BT = keyed_uniform(batch["position"], length, purpose="vae/word") >= self.word_dropout
        target_N = batch["labels"].flatten()
        found = self._named(self.write(batch, z_BDZ, told_BT), target_N)

        own_BD1 = present(batch["document_ids"], mean_BDZ.shape[1])[..., None]
        kl_BDZ = gaussian_kl(mean_BDZ, logvar_BDZ) * own_BD1
        cost = kl_BDZ.sum()
        if self.training:
            cost = self.beta_now * (kl_BDZ.clamp(min=self.free_bits) * own_BD1).sum()
        loss = found.loss + cost / found.number.clamp(min=1)
        metrics = {
            "reconstruction": found.loss.detach(),
            "accuracy": found.accuracy,
            "kl": torch.stack([kl_BDZ.detach().sum(), own_BD1.sum()]),
            "beta": self.beta_now.clone() if self.training else torch.ones_like(self.beta_now),
        }
        if not self.training:
            blind = self._named(self.write(batch, torch.zeros_like(z_BDZ)), target_N)
            metrics["loss_without_vector"] = torch.stack([blind.losses.sum(), blind.number])
        return StepOutput(loss, metrics)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, [B, D, Z] each in float32 or wider, of every document of every row."""
        both_BDZ = self.posterior(self._pooled(batch).to(self.posterior.weight.dtype))
        mean_BDZ, logvar_BDZ = both_BDZ.to(torch.promote_types(both_BDZ.dtype, torch.float32)).chunk(2, dim=-1)
        return mean_BDZ, logvar_BDZ

    def _pooled(self, batch: Batch) -> Tensor:
        return document_pool(hidden_states(self.model, batch), batch["document_ids"], "mean")

    def pooled_texts(self, batch: Batch) -> Tensor:
        return each_document(self._pooled(batch), batch["document_ids"])

    def write(self, batch: Batch, z_BDZ: Tensor, told_BT: Tensor | None = None) -> Tensor:
        """What names the batch's labels, [B·T, E], given these latents."""
        where = batch["decoder_document_ids"], batch["decoder_position_ids"]
        vectors_BDH = self._widened(z_BDZ)
        features: Tensor = self.decoder(batch["labels"], *where, vectors_BDH, self._table, told_BT)
        return features.flatten(0, 1)

    def _named(self, features_NE: Tensor, target_N: Tensor) -> Scored:
        return linear_cross_entropy(features_NE, self._table, self.decoder.bias, target_N)

    def _widened(self, z_XZ: Tensor) -> Tensor:
        vectors_XH: Tensor = self.widen(z_XZ.to(self.widen.weight.dtype))
        return vectors_XH

    @property
    def _table(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def after_step(self, progress: float) -> None:
        self.beta_now.fill_(self.beta * cyclic(progress, cycles=self.cycles, ramp=self.ramp))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """`mean` and `log_variance` of z, float32 [documents, Z]: what `evaluation.latent` judges the space by."""
        mean_BDZ, logvar_BDZ = self.encode(batch)
        both = {"mean": mean_BDZ, "log_variance": logvar_BDZ}
        return {name: each_document(values_BDZ, batch["document_ids"]) for name, values_BDZ in both.items()}

    def samples(self, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> dict[str, list[str]]:
        """Texts written from draws of the prior, and from points on the line between the first two of them."""
        position_N = torch.arange(SAMPLES, device=self.beta_now.device) + seed * SAMPLES
        z_NZ = _normal(position_N, self.widen.in_features, purpose="vae/prior")
        line_NZ = torch.lerp(z_NZ[0], z_NZ[1], torch.linspace(0, 1, STEPS, device=z_NZ.device)[:, None])
        return {
            "drawn from the prior": self._texts(z_NZ, tokenizer),
            "from the first of them to the second": self._texts(line_NZ, tokenizer),
        }

    @torch.no_grad()
    def _texts(self, z_NZ: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The most probable token after the ones before it, up to the end of the document or `LONGEST` tokens."""
        vectors_NDH = self._widened(z_NZ)[:, None]
        text_NT = torch.zeros(len(z_NZ), 0, dtype=torch.int64, device=z_NZ.device)
        for length in range(1, LONGEST + 1):
            place_NT = torch.arange(length, device=z_NZ.device).expand(len(z_NZ), -1)
            asked_NT = F.pad(text_NT, (0, 1))
            named_NTE = self.decoder(asked_NT, torch.zeros_like(place_NT), place_NT, vectors_NDH, self._table)
            logits_NTV = self.decoder.logits(named_NTE[:, -1:], self._table)
            text_NT = torch.cat([text_NT, logits_NTV.argmax(-1)], dim=1)
        ends = framing(tokenizer, self.framing).suffix
        rows = [list(takewhile(lambda token: token not in ends, row)) for row in text_NT.tolist()]
        return [str(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _normal(position_B: Tensor, *shape: int, purpose: str) -> Tensor:
    """Standard normal draws [B, *shape], keyed as `keyed_uniform` is, by the inverse of the distribution function."""
    normal: Tensor = torch.special.ndtri(keyed_uniform(position_B, *shape, purpose=purpose))
    return normal
