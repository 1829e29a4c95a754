"""Denoising: a document is damaged in the source, and the decoder writes it whole (BART)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from sslnlp.arrays import Bools, Floats, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.ragged import blocks, interleave
from sslnlp.collators.seq2seq import SEQ2SEQ_KEYS, seq2seq_batch
from sslnlp.collators.spans import text_mask
from sslnlp.collators.tokens import FreshPositions, TokenBlock, lowest, pad_id, rates, token_block
from sslnlp.errors import UserError
from sslnlp.rng import bits, uniform
from sslnlp.tokenizer import sentence_boundaries, special_mask
from sslnlp.types import Batch, Row

LONGEST_MEAN = 100


class Damage(NamedTuple):
    """What becomes of each token of a block [B, S]."""

    masked: Bools
    """A mask stands in its place."""
    dropped: Bools
    """It is gone."""
    place: Ints
    """int64 [Z]: flattened places at which a mask is put in,"""
    behind: Ints
    """int64 [Z]: 0 before the token there, 2 behind it."""


@dataclass(kw_only=True)
class DenoisingCollator(Collator):
    """The five kinds of noise of BART (Lewis et al., 2020, arXiv:1910.13461), in any mixture.

    First whole stretches move. `permute`: the share of documents whose sentences are put in a random order (see
    `tokenizer.sentences`). `rotate`: the share of documents turned so as to begin at a random token.

    Then `rate` of a row's tokens is taken away: exactly `round(rate × tokens)`, at least one unless the rate is 0. With
    `rate_end` the rate moves linearly to it over the run's `horizon`; `eval_rate` is used on held-out text, so that
    figures of runs with different rates compare. `mask`, `delete` and `infill` are weights that divide these tokens:
    `mask` puts [MASK] for each, `delete` leaves nothing, `infill` takes whole spans and puts one [MASK] for each.
    Lengths of spans are Poisson with mean `mean_span`; a span of length 0 is a [MASK] put in between. A span ends
    with its document, the last of a row where the count is met, and masks are put in only while the source is no
    longer than its row. The defaults are those of the paper's large model: infilling 0.3, all sentences permuted.

    Special tokens stay where they are, the unknown token moves with its sentence; neither is taken away. Each document
    keeps its place among the documents of its row.

    Makes what `seq2seq_batch` says (the target is the whole document with its framing) and `corrupted` bool [B, T]:
    the tokens of the target that the source does not show. As a `data_collator` of `transformers.Trainer`, on features
    without a position, it makes `input_ids`, `attention_mask` and `labels`, other ones at every call.
    Raises `UserError` for a bad option and for a tokenizer without a mask token.
    """

    name: ClassVar[str] = "denoising"
    makes: ClassVar[frozenset[str]] = SEQ2SEQ_KEYS | {"corrupted"}
    requires: ClassVar[frozenset[str]] = frozenset({"mask", "eos", "specials_excluded"})

    rate: float = 0.3
    rate_end: float | None = None
    eval_rate: float = 0.3
    mask: float = 0.0
    delete: float = 0.0
    infill: float = 1.0
    mean_span: float = 3.0
    permute: float = 1.0
    rotate: float = 0.0

    def __post_init__(self) -> None:
        for option, share in (("rate", self.rate), ("rate_end", self.rate_end), ("eval_rate", self.eval_rate)):
            if share is not None and not 0 <= share < 1:
                raise UserError(f"collator.{option} is a share of the tokens, at least 0 and below 1, got {share}")
        for option in ("permute", "rotate"):
            if not 0 <= getattr(self, option) <= 1:
                raise UserError(f"collator.{option} is a share of the documents, 0 to 1, got {getattr(self, option)}")
        weights = (self.mask, self.delete, self.infill)
        if min(weights) < 0 or sum(weights) <= 0:
            raise UserError(
                "collator.mask, delete and infill divide the tokens that are taken away: none below 0, one above; "
                f"got {', '.join(map(str, weights))} (to take none away, set collator.rate=0)"
            )
        if not 0 < self.mean_span <= LONGEST_MEAN:
            raise UserError(
                f"collator.mean_span is a mean length above 0, at most {LONGEST_MEAN}, got {self.mean_span}"
            )
        if self.tokenizer.mask_token_id is None:
            raise UserError("denoising needs a tokenizer with a mask token; train one with `sslnlp tokenizer`")
        self._takeable = ~special_mask(self.tokenizer)
        self._movable = text_mask(self.tokenizer)
        self._sentences = sentence_boundaries(self.tokenizer) if self.permute > 0 else None
        self._span_cdf = _poisson_cdf_from_one(self.mean_span)
        self._fresh = FreshPositions()

    def for_evaluation(self, seed: int) -> DenoisingCollator:
        """The collator for held-out text: the same noise at `eval_rate`, no schedule, the draws of `seed`."""
        return replace(self, seed=seed, horizon=None, rate=self.eval_rate, rate_end=None)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        order = self._moved(block, positions)
        moved = block.input_ids.ravel()[order].reshape(block.input_ids.shape)
        damage = self._damage(block, moved, positions)
        batch = seq2seq_batch(block, self._source(block, moved, damage), (block.input_ids, block.document_ids))
        if block.positions is not None:
            corrupted = np.zeros(moved.size, dtype=np.bool_)
            corrupted[order] = (damage.masked | damage.dropped).ravel()
            batch["corrupted"] = torch.from_numpy(corrupted.reshape(moved.shape))
        return batch

    def _moved(self, block: TokenBlock, positions: Ints) -> Ints:
        """int64 [B·S]: for each place of the flattened block the place its token comes from.

        A stretch is what lies between two fixed tokens of one document: most often, the text between its framing.
        """
        width = block.input_ids.shape[1]
        order = np.arange(block.input_ids.size)
        fixed = ~self._movable[block.input_ids] | ~block.attention
        opens = block.opens | fixed
        opens[:, 1:] |= fixed[:, :-1]
        start_N = np.maximum.accumulate(np.where(opens.ravel(), order, 0))
        if self._sentences is not None:
            permuted = uniform(self.seed, "denoising/permute", positions, width).ravel()[start_N] < self.permute
            starts = self._sentences.starts(block.input_ids, block.opens) | opens
            sentence_N = np.maximum.accumulate(np.where(starts.ravel(), order, 0))
            draw_N = bits(self.seed, "denoising/sentence", positions, width).ravel()[sentence_N]
            order = np.lexsort((order, np.where(permuted, draw_N, np.uint64(0)), start_N))
        if self.rotate > 0:
            rotated = uniform(self.seed, "denoising/rotate", positions, width).ravel()[start_N] < self.rotate
            length_N = np.bincount(start_N, minlength=len(start_N))[start_N]
            first_N = uniform(self.seed, "denoising/first", positions, width).ravel()[start_N] * length_N
            turn_N = np.where(rotated, first_N.astype(np.int64), 0)
            order = order[start_N + (np.arange(len(start_N)) - start_N + turn_N) % length_N]
        return order.astype(np.int64)

    def _damage(self, block: TokenBlock, moved: Ints, positions: Ints) -> Damage:
        """What is taken away of the `moved` ids [B, S], and where masks are put in."""
        width = moved.shape[1]
        takeable = self._takeable[moved] & block.attention
        tokens_B = takeable.sum(axis=1)
        rates_B = rates(positions, self.rate, self.rate_end, self.horizon)
        count_B = np.maximum(np.rint(rates_B * tokens_B), np.minimum(tokens_B, 1) * (rates_B > 0)).astype(np.int64)
        weights = np.array([self.mask, self.delete, self.infill])
        parts = np.diff(np.rint(count_B * np.cumsum([0, *weights / weights.sum()])[:, None]), axis=0).astype(np.int64)

        covered, zeros_B = self._spans(takeable, tokens_B, parts[2], positions)
        left = takeable & (covered < 0)
        masked = lowest(bits(self.seed, "denoising/mask", positions, width), left, parts[0])
        # A document keeps its first token: where nothing frames it, it would be gone, and have no source to read.
        dropped = lowest(bits(self.seed, "denoising/delete", positions, width), left & ~masked & ~block.opens, parts[1])
        # One mask for each span; where a document or a special token comes between, one on each side of it.
        goes_on = np.zeros(covered.shape, dtype=np.bool_)
        goes_on[:, 1:] = (covered[:, 1:] == covered[:, :-1]) & ~block.opens[:, 1:]
        leads = (covered >= 0) & ~goes_on
        dropped |= (covered >= 0) & goes_on
        zeros_B = np.minimum(zeros_B, dropped.sum(axis=1))
        return Damage(masked | leads, dropped, *self._insertions(left, zeros_B, positions))

    def _spans(self, takeable: Bools, tokens_B: Ints, count_B: Ints, positions: Ints) -> tuple[Ints, Ints]:
        """The span of each token, int64 [B, S] (-1 = none), and how many spans of length 0 came up [B].

        Poisson lengths are drawn until the count is met, the last cut to it: lengths above 0 from the distribution
        without 0, and how many zeros came before each from the geometric one. Each span then falls, by itself, into
        one of the gaps between the tokens that stay; so spans never overlap, and the count is exact.
        """
        rows, width = takeable.shape
        length = 1 + np.searchsorted(self._span_cdf, uniform(self.seed, "denoising/span", positions, width))
        ends = np.cumsum(length, axis=1)
        used = ends - length < count_B[:, None]
        waits = np.floor(np.log1p(-uniform(self.seed, "denoising/zeros", positions, width)) / -self.mean_span)
        zeros_B = (waits * used).sum(axis=1).astype(np.int64)
        row_K, index_K = np.nonzero(used)
        length_K = (np.minimum(ends, count_B[:, None]) - ends + length)[used]
        gaps_K = (tokens_B - count_B + 1)[row_K]
        gap_K = (uniform(self.seed, "denoising/gap", positions, width)[row_K, index_K] * gaps_K).astype(np.int64)
        order = np.lexsort((gap_K, row_K))
        row_K, gap_K, length_K = row_K[order], gap_K[order], length_K[order]
        before_B = np.cumsum(count_B) - count_B  # lengths of a row add up to its count
        start_K = gap_K + np.cumsum(length_K) - length_K - before_B[row_K]
        # From places among the takeable tokens of a row to places in the block.
        first_B = np.cumsum(tokens_B) - tokens_B
        place_N = np.repeat((first_B[row_K] + start_K) - (np.cumsum(length_K) - length_K), length_K)
        place_N += np.arange(len(place_N))
        covered = np.full(rows * width, -1, dtype=np.int64)
        covered[np.flatnonzero(takeable)[place_N]] = np.repeat(np.arange(len(length_K)), length_K)
        return covered.reshape(rows, width), zeros_B

    def _insertions(self, able: Bools, zeros_B: Ints, positions: Ints) -> tuple[Ints, Ints]:
        """Where `zeros_B` masks [B] are put in: each before one of the able tokens of its row, or behind the last."""
        width = able.shape[1]
        able_B = able.sum(axis=1)
        row_Z, index_Z = np.nonzero(np.arange(width) < np.where(able_B > 0, zeros_B, 0)[:, None])
        drawn_Z = uniform(self.seed, "denoising/insert", positions, width)[row_Z, index_Z]
        gap_Z = (drawn_Z * (able_B + 1)[row_Z]).astype(np.int64)
        behind_Z = gap_Z == able_B[row_Z]
        first_B = np.cumsum(able_B) - able_B
        return np.flatnonzero(able)[first_B[row_Z] + gap_Z - behind_Z], 2 * behind_Z.astype(np.int64)

    def _source(self, block: TokenBlock, moved: Ints, damage: Damage) -> tuple[Ints, Ints]:
        """The damaged rows, closed up: ids and document ids [B, T], T no more than the width of the rows."""
        rows, width = moved.shape
        mask_id = int(self.tokenizer.mask_token_id)
        kept_N = np.flatnonzero(block.attention & ~damage.dropped)
        order = interleave((kept_N, np.ones_like(kept_N)), (damage.place, damage.behind))
        place_N = np.concatenate([kept_N, damage.place])[order]
        ids_N = np.where(damage.masked, mask_id, moved).ravel()[kept_N]
        ids_N = np.concatenate([ids_N, np.full(len(damage.place), mask_id)])[order]
        document_N = block.document_ids.ravel()[place_N]
        ids, documents = blocks(place_N // width, rows, (ids_N, pad_id(self.tokenizer)), (document_N, -1))
        return ids[:, :width], documents[:, :width]  # whole tiles, but never more positions than the rows had


def _poisson_cdf_from_one(mean: float) -> Floats:
    """P(length <= k | length > 0) for k = 1, 2, ..., of a Poisson distribution; what is left out weighs < 1e-15."""
    lengths = np.arange(1, int(mean + 12 * mean**0.5 + 30))
    share = np.exp(lengths * np.log(mean) - np.cumsum(np.log(lengths)))
    return np.cumsum(share / share.sum())
