"""A mixture of denoisers (UL2): some texts lose short spans, some much of what they say, some their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sslnlp.arrays import Floats, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.seq2seq import SEQ2SEQ_KEYS, mark_text, seq2seq_batch
from sslnlp.collators.spans import (
    Spans,
    document_ends,
    document_numbers,
    laid_out,
    numbered,
    random_spans,
    reserve_for,
    row_length,
    sentinel_ids,
    source_tokens,
    span_counts,
    target_tokens,
    text_mask,
    text_runs,
)
from sslnlp.collators.tokens import FreshPositions, TokenBlock, pad_id, token_block
from sslnlp.errors import UserError
from sslnlp.registry import bound_class
from sslnlp.rng import bits, uniform
from sslnlp.tokenizer import Style, framing
from sslnlp.tokenizer.specials import MODES
from sslnlp.types import Batch, Row

DENOISERS = {
    "r": ((0.15, 3.0), (0.15, 8.0)),
    "s": ((0.25, np.inf),),
    "x": ((0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0)),
}
"""The seven denoisers of the paper's Table 1: shares of the tokens, and mean lengths of a span. That of S is drawn."""
_KIND = np.repeat(np.arange(len(DENOISERS)), [len(settings) for settings in DENOISERS.values()])
_SETTINGS = np.array([setting for settings in DENOISERS.values() for setting in settings])
_RATE, _MEAN = _SETTINGS[:, 0], _SETTINGS[:, 1]
_MODE_OF_KIND = ("[NLU]", "[S2S]", "[NLG]")
SEQUENTIAL = 1
"""The kind S."""


@dataclass(kw_only=True)
class UL2Collator(Collator):
    """Draws one of seven denoisers for each document piece (UL2, Tay et al., 2023, arXiv:2205.05131, Table 1).

    `r`, `s`, `x`: weights of the three kinds; their settings share a weight equally. At the defaults each of the seven
    is as likely as another.

        R  [NLU]  15 % of the tokens in spans of mean length 3 or 8
        X  [NLG]  50 % in spans of mean length 3, 8 or 64, or 15 % in spans of 64
        S  [S2S]  the end of the text, 1 to n/2 of its n tokens, all as likely: about a quarter

    Spans, sentinels and targets are those of `span_corruption`; what S takes is one span, with one sentinel. With
    `modes` the token of its kind stands before the text of each source, behind what opens it (bos): whoever uses the
    model says by it what is wanted. Special tokens stay where they are and the unknown token is text.

    A source of S is as long as its text, so rows are packed as long as they may be, and those of the other kinds come
    out shorter; neither source nor target is ever longer than `data.seq_length`. `reserve` leaves room for the mode.

    Makes what `seq2seq_batch` says and `corrupted` bool [B, T], the labels that are text. As a `data_collator` of
    `transformers.Trainer`, on features without a position, it makes `input_ids`, `attention_mask` and `labels`,
    other ones at every call.
    Raises `UserError` for a bad option and for a tokenizer without sentinels, end-of-text, or the modes asked for.
    """

    name: ClassVar[str] = "ul2"
    makes: ClassVar[frozenset[str]] = SEQ2SEQ_KEYS | {"corrupted"}
    requires: ClassVar[frozenset[str]] = frozenset({"sentinels", "eos", "modes", "specials_excluded"})
    style: ClassVar[Style] = "seq2seq"
    """How the rows it takes are framed."""

    r: float = 2.0
    s: float = 1.0
    x: float = 4.0
    modes: bool = True

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[UL2Collator]:
        """Without modes the tokenizer need not have them: T5's own do not."""
        if options.get("modes", cls.modes):
            return cls
        return bound_class(cls, options, requires=cls.requires - {"modes"})

    def __post_init__(self) -> None:
        weights = np.array([self.r, self.s, self.x])
        if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise UserError(
                "collator.r, s and x are the weights of the denoisers: none below 0, one above; "
                f"got {self.r}, {self.s} and {self.x}"
            )
        shares = (weights / np.bincount(_KIND))[_KIND]
        self._active = np.flatnonzero(shares)
        self._cdf = np.cumsum(shares[self._active]) / shares.sum()
        vocabulary = self.tokenizer.get_vocab()
        if self.modes and (missing := [token for token in MODES if token not in vocabulary]):
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}; train one with `sslnlp tokenizer`, "
                "or set collator.modes=false"
            )
        self._mode_ids = np.array([vocabulary.get(token, -1) for token in _MODE_OF_KIND])
        self._sentinels = sentinel_ids(self.tokenizer)
        self._text = text_mask(self.tokenizer)
        frame = framing(self.tokenizer, self.style)
        self._frame = len(frame.prefix) + len(frame.suffix)
        self._fresh = FreshPositions()

    @property
    def reserve(self) -> int:
        return reserve_for(*self._lengths(512), slope=self._slope())

    def source_length(self, seq_length: int) -> int:
        return row_length(*self._lengths(2 * seq_length), self.reserve, seq_length)

    @property
    def _rates(self) -> Floats:
        rates: Floats = _RATE[self._active]
        return rates

    @property
    def _means(self) -> Floats:
        means: Floats = _MEAN[self._active]
        return means

    def _slope(self) -> float:
        """What a long piece comes to for each of its tokens, at most."""
        slopes = np.maximum(1 - self._rates * (1 - 1 / self._means), self._rates * (1 + 1 / self._means))
        return float(np.where(np.isinf(self._means), 1.0, slopes).max())

    def _lengths(self, longest: int) -> tuple[Ints, Ints]:
        """Of pieces of 0 to `longest` tokens: how long they are framed, and the longest they may come to."""
        tokens, noise, spans = self._counts(longest)
        source = (tokens - noise + spans).max(axis=0) + self._frame + self.modes
        return tokens + self._frame, np.maximum(source, (noise + spans).max(axis=0) + 1)

    def _counts(self, longest: int) -> tuple[Ints, Ints, Ints]:
        """0 to `longest` tokens, and of each what an active denoiser takes and in how many spans, [A, longest + 1]; of
        S the most and the least it may take."""
        tokens = np.arange(longest + 1)
        one = np.minimum(np.maximum(tokens - 1, 0), 1)
        pairs = []
        for rate, mean in zip(self._rates, self._means, strict=True):
            if np.isinf(mean):
                pairs += [(one, one), (np.maximum(tokens // 2, one), one)]
            else:
                pairs.append(span_counts(tokens, rate, mean, len(self._sentinels)))
        return tokens, np.stack([noise for noise, _ in pairs]), np.stack([spans for _, spans in pairs])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        spans, kinds = self._corrupted(block, positions)
        eos = int(self.tokenizer.eos_token_id)
        source = self._with_modes(block, kinds, source_tokens(block, spans, self._sentinels, spans.leads))
        target = target_tokens(block, spans, self._sentinels, spans.leads, document_ends(block), eos)
        longest = self._longest(block.input_ids.shape[1])
        made = (laid_out(block, *side, pad_id(self.tokenizer), longest) for side in (source, target))
        return mark_text(seq2seq_batch(block, *made), self._text)

    def _corrupted(self, block: TokenBlock, positions: Ints) -> tuple[Spans, Ints]:
        """The spans of a block, and the kind of denoiser [B, S] that took them, drawn by (position, document)."""
        number = np.maximum(block.document_ids, 0)
        draws = int(number.max(initial=0)) + 1
        lot = uniform(self.seed, "ul2/denoiser", positions, draws)
        setting = self._active[np.searchsorted(self._cdf[:-1], lot, side="right")]
        lot = uniform(self.seed, "ul2/suffix", positions, draws)
        width = block.input_ids.shape[1]
        runs = text_runs(self._text[block.input_ids] & block.attention, block.opens)
        where = runs.first // max(width, 1), number.ravel()[runs.first]
        setting_R = setting[where]
        noise_R, spans_R = span_counts(runs.length, _RATE[setting_R], _MEAN[setting_R], len(self._sentinels))
        end_R = np.minimum(1 + (lot[where] * np.maximum(runs.length // 2, 1)).astype(np.int64), runs.length - 1)
        document_R = document_numbers(block)[runs.first]
        end_R[:-1] *= np.diff(document_R) > 0  # the end of a text is in the last of its runs
        sequential = _KIND[setting_R] == SEQUENTIAL
        noise_R = np.where(sequential, end_R, noise_R)
        spans_R = np.where(sequential, np.minimum(end_R, 1), spans_R)
        noise = random_spans(runs, noise_R, spans_R, bits(self.seed, "ul2/spans", positions, width))
        kinds = np.take_along_axis(_KIND[setting], number, axis=1)
        return numbered(noise, block.opens, len(self._sentinels)), kinds

    def _with_modes(self, block: TokenBlock, kinds: Ints, source: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        """The source with the mode of each document in front of its text."""
        if not self.modes:
            return source
        place_N, ids_N = source
        text_N = np.flatnonzero(self._text[block.input_ids] & block.attention)
        place_D = text_N[np.diff(document_numbers(block)[text_N], prepend=-1) > 0]
        at = np.searchsorted(place_N, place_D)
        return np.insert(place_N, at, place_D), np.insert(ids_N, at, self._mode_ids[kinds.ravel()[place_D]])

    def _longest(self, width: int) -> int:
        """What a piece that fills a row of the source comes to: no longer than the rows that were asked for."""
        return int(self._lengths(max(width - self.reserve - self._frame, 0))[1][-1])
