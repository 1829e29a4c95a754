"""Replaced-token detection (ELECTRA): a small generator fills in hidden tokens, the model tells which are not the text.

Shape suffixes: B rows, S tokens, N hidden tokens of a micro-batch, V vocabulary, H width, C blocks of W ids.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForPreTraining,
    ElectraConfig,
    ElectraForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.electra.modeling_electra import ElectraGeneratorPredictions

from sslnlp.adapt import adapt
from sslnlp.errors import UserError
from sslnlp.keyed import keyed_uniform
from sslnlp.last_layer import ask_last_layer, states_at
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import IGNORED, accuracy, cross_entropy, hits, sum_and_count
from sslnlp.packed import hidden_states, trust_rows
from sslnlp.types import Batch, StepOutput


class _Pass(NamedTuple):
    """Both models on one micro-batch."""

    generated: Tensor
    """[N, V]: logits of the generator for the hidden tokens."""
    target: Tensor
    """[N]: the hidden tokens."""
    replaced: Tensor
    """bool [B, S]: the token that the discriminator reads is not the text's."""
    hidden: Tensor
    """[B, S, H]: states of the discriminator."""
    score: Tensor
    """[B, S]: its logits, high where it takes a token for replaced."""


class Electra(Objective):
    """ELECTRA (Clark et al., 2020, arXiv:2003.10555): each token of the text is judged, original or replaced.

    A generator, a masked LM of a fraction of the width that shares the model's embeddings, sees the hidden tokens as
    [MASK] and samples one for each; no gradient goes through the sampling, and special tokens are never sampled. The
    model reads the text with these samples in place and tells for each token whether it is the text's. A sample that
    happens to be right counts as original. The generator is thrown away: `exported` is the discriminator.

    Loss = generator's cross-entropy (mean over hidden tokens) + `discriminator_weight` x binary cross-entropy (mean
    over all tokens of text) [+ `corrective_weight` x corrective loss (mean over hidden tokens)], in nats; each part is
    exact under accumulation (`terms`). Samples are keyed on (seed, position of the row, column).

    The corrective loss is COCO-LM's corrective language modelling (Meng et al., 2021, arXiv:2102.08473): the model also
    says which token the text had, with probability `c [token is the one it reads] + (1 - c) softmax`, c its (fixed)
    probability that the token is original. The vocabulary head for it is tied to the embeddings and thrown away.

    Reads what the `electra` collator makes. Reports `generator_loss`, `generator_accuracy`, `discriminator_loss`,
    `discriminator_accuracy` (judged tokens that are judged right; calling all of them original scores 1 - `replaced`),
    `replaced` (share of the judged tokens that are), `replaced_recall` (replaced tokens found out); with `corrective`
    `corrective_accuracy` (replaced tokens whose original gets the highest logit); and held out `auc` (0.5 is chance).

    Args:
        model: a stock `ElectraForPreTraining`.
        generator_size: the generator's share of the model's width, heads and feed-forward width, in (0, 1]; it has as
            many layers.
        temperature: of the generator's distribution when it is sampled from, above 0.
        discriminator_weight: 50 as published; a token judged costs about a fiftieth of a token rebuilt.
        corrective: also rebuild the original tokens.
        corrective_weight: factor of that loss.
    """

    name: ClassVar[str] = "electra"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "labels", "target_index", "judged", "drawable", "position"}
    )
    collator: ClassVar[str] = "electra"
    wraps = AutoModelForPreTraining
    measures: ClassVar[tuple[str, ...]] = ("detection",)

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        generator_size: float = 0.25,
        temperature: float = 1.0,
        discriminator_weight: float = 50.0,
        corrective: bool = False,
        corrective_weight: float = 1.0,
    ) -> None:
        super().__init__(model)
        if not 0 < generator_size <= 1:
            raise UserError(
                f"objective.generator_size is a share of the width above 0, at most 1; got {generator_size}"
            )
        if not 0 < temperature < math.inf:
            raise UserError(f"objective.temperature must be above 0, got {temperature}")
        for option, weight in (("discriminator", discriminator_weight), ("corrective", corrective_weight)):
            if not 0 < weight < math.inf:
                raise UserError(f"objective.{option}_weight must be above 0, got {weight}")
        self.temperature, self.discriminator_weight = temperature, discriminator_weight
        self.corrective_weight = corrective_weight
        embeddings = model.base_model.embeddings
        self.generator = ElectraForMaskedLM(generator_config(model.config, generator_size))
        self.generator.generator_lm_head = _TiedHead(embeddings.word_embeddings)
        _lend(self.generator.electra, "embeddings", embeddings)
        adapt(self.generator)
        trust_rows(self.generator)  # ELECTRA keeps documents apart, and a trial would not reach what is lent
        ask_last_layer(self.generator)
        self.corrector: nn.Sequential | None = None
        if corrective:
            transform = ElectraGeneratorPredictions(model.config)
            nn.init.normal_(transform.dense.weight, std=model.config.initializer_range)
            nn.init.zeros_(transform.dense.bias)
            self.corrector = nn.Sequential(transform, _TiedHead(embeddings.word_embeddings))
        self.to(model.dtype)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        # Other configurations have a pretraining form as well (BERT's is masked LM with next-sentence prediction).
        if not isinstance(config, ElectraConfig):
            return "it has no head that judges each token"
        return super().refuses(config)

    def forward(self, batch: Batch) -> StepOutput:
        run = self._run(batch)
        judged_BS, replaced_BS, score_BS = batch["judged"], run.replaced, run.score
        generated = cross_entropy(run.generated, run.target)
        each_BS = F.binary_cross_entropy_with_logits(score_BS, replaced_BS.float(), reduction="none") * judged_BS
        judged = each_BS.sum() / judged_BS.sum().clamp(min=1)
        terms = [generated, self.discriminator_weight * judged]
        suspected_BS = score_BS.detach() > 0
        metrics = {
            "generator_loss": generated.detach(),
            "generator_accuracy": accuracy(run.generated, run.target),
            "discriminator_loss": sum_and_count(each_BS.detach(), judged_BS),
            "discriminator_accuracy": sum_and_count(suspected_BS == replaced_BS, judged_BS),
            "replaced": sum_and_count(replaced_BS, judged_BS),
            "replaced_recall": sum_and_count(suspected_BS, replaced_BS),
        }
        if self.corrector is not None:
            index_N = batch["target_index"]
            logits_NV = self.corrector(run.hidden.flatten(0, 1)[index_N])
            score_N, replaced_N = score_BS.flatten()[index_N].detach(), replaced_BS.flatten()[index_N]
            losses_N = corrective_losses(logits_NV, run.target, replaced_N, score_N)
            terms.append(self.corrective_weight * losses_N.sum() / max(len(losses_N), 1))
            metrics["corrective_accuracy"] = sum_and_count(hits(logits_NV, run.target), replaced_N)
        stacked = torch.stack(terms)
        return StepOutput(stacked.sum(), metrics, stacked)

    def num_targets(self, batch: Batch) -> Tensor:
        """[K]: hidden tokens, judged tokens, and hidden tokens again with `corrective`."""
        judged: Tensor = batch["judged"].sum()
        hidden = torch.full_like(judged, len(batch["target_index"]))
        return torch.stack([hidden, judged] if self.corrector is None else [hidden, judged, hidden])

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """`scores` float and `positive` bool [T] of the T judged tokens: replaced, and how much they look it."""
        run = self._run(batch)
        return {"scores": run.score[batch["judged"]], "positive": run.replaced[batch["judged"]]}

    def _run(self, batch: Batch) -> _Pass:
        input_BS, labels_BS, index_N = batch["input_ids"], batch["labels"], batch["target_index"]
        hidden_NH = states_at(self.generator, batch, index_N)
        generator_NV = self.generator.generator_lm_head(self.generator.generator_predictions(hidden_NH))
        # Two draws for each place of each row, whether it is hidden or not: small beside the logits.
        uniform_N2 = keyed_uniform(batch["position"], input_BS.shape[1], 2, purpose="electra/sample").flatten(0, 1)
        sampled_N = sample(generator_NV.detach(), uniform_N2[index_N], self.temperature, batch["drawable"])
        original_BS = torch.where(labels_BS != IGNORED, labels_BS, input_BS)
        read_BS = original_BS.flatten().scatter(0, index_N, sampled_N).view_as(input_BS)
        hidden_BSH = hidden_states(self.model, {**batch, "input_ids": read_BS})
        score_BS = self.model.discriminator_predictions(hidden_BSH).float()
        return _Pass(generator_NV, labels_BS.flatten()[index_N], read_BS != original_BS, hidden_BSH, score_BS)


def generator_config(config: ElectraConfig, share: float) -> ElectraConfig:
    """The configuration of a generator: `share` of the width, at least one head, and a width that the heads divide."""
    heads = max(1, round(share * config.num_attention_heads))
    return ElectraConfig(
        **config.to_dict()
        | {
            "num_attention_heads": heads,
            "hidden_size": heads * max(1, round(share * config.hidden_size / heads)),
            "intermediate_size": max(1, round(share * config.intermediate_size)),
        }
    )


class _TiedHead(nn.Module):
    """Logits [..., V] through an embedding table that belongs to another module; the bias is its own."""

    table: nn.Embedding

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))
        _lend(self, "table", table)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.table.weight, self.bias)


def _lend(borrower: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` an attribute of `borrower` that is not registered: one owner saves, moves and optimises it."""
    borrower._modules.pop(name, None)
    borrower.__dict__[name] = module


@torch.no_grad()
def sample(logits_NV: Tensor, uniform_N2: Tensor, temperature: float, drawable_U: Tensor) -> Tensor:
    """One id for each row of logits, int64 [N], from softmax(logits / temperature) over the drawable ids.

    `uniform_N2`: two draws in [0, 1] a row. `drawable_U` bool [U]: False, like every id from U on, is never drawn.

    By inversion in two steps, first the block of about sqrt(V) ids, then the id in it. That needs no draw for each id,
    and few sums are compared with a draw: another split of a batch moves the last bits of the logits, which at V = 8192
    changed none of 30,000 samples, and 11 with one running sum over the vocabulary.
    """
    drawable_V = F.pad(drawable_U, (0, logits_NV.shape[1] - len(drawable_U)))
    share_NV = (logits_NV.float() / temperature).masked_fill(~drawable_V, -math.inf).softmax(-1)
    width = math.isqrt(len(drawable_V) - 1) + 1
    blocks = -(-len(drawable_V) // width)
    share_NCW = F.pad(share_NV, (0, blocks * width - len(drawable_V))).view(len(share_NV), blocks, width)
    block_N = _invert(share_NCW.sum(-1), uniform_N2[:, 0])
    share_NW = share_NCW[torch.arange(len(block_N), device=block_N.device), block_N]
    return block_N * width + _invert(share_NW, uniform_N2[:, 1])


def _invert(share_NK: Tensor, uniform_N: Tensor) -> Tensor:
    """The first of K whose running sum is above the draw: in proportion to its share, and never one without any."""
    sum_NK = share_NK.double().cumsum(-1)
    draw_N1 = uniform_N.double().clamp(max=1 - 2**-25)[:, None] * sum_NK[:, -1:]
    return (sum_NK <= draw_N1).sum(-1)


def corrective_losses(logits_NV: Tensor, target_N: Tensor, replaced_N: Tensor, score_N: Tensor) -> Tensor:
    """-log probability of the text's own tokens, [N] in nats, when the token read is copied or else written.

    `score_N`: logit that the token read is replaced, so it is copied with probability sigmoid(-score); a copy is right
    where nothing was `replaced_N`. Else the token is drawn from softmax(logits).
    """
    written_N = F.logsigmoid(score_N) - F.cross_entropy(logits_NV.float(), target_N, reduction="none")
    copied_N = F.logsigmoid(-score_N).masked_fill(replaced_N, -math.inf)
    return -torch.logaddexp(copied_N, written_N)
