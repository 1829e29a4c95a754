"""Filling in the middle: a text is cut in three and its middle moved to the end, for a left-to-right model to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.spans import text_mask
from sslnlp.collators.tokens import IGNORED, FreshPositions, TokenBlock, pad_id, token_block
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.tokenizer.specials import FIM
from sslnlp.types import Batch, Row

EVALUATION_RATE = 0.5


@dataclass(frozen=True)
class _Runs:
    """R runs of text: stretches of one document without special tokens. N = B·S tokens, flattened."""

    begun: Ints
    """int64 [N]: runs that have begun up to and with this token; that of a text token is its run, plus one."""
    first: Ints
    """int64 [R]: the flat place where each begins."""
    length: Ints
    """int64 [R]: tokens, at least one."""
    before: Ints
    """int64 [B]: runs of the rows above."""


@dataclass(kw_only=True)
class FimCollator(Collator):
    """Moves the middle of some texts behind their end (Bavarian et al., 2022, arXiv:2207.14255); labels not shifted.

    Each piece of a document is taken with probability `rate` and cut at two places, drawn uniformly and independently
    among the borders of its tokens, ends included: prefix P, middle M and suffix S, any of them perhaps empty. A border
    may lie inside a word or a character: a text cut at a token is spelt by the same ids, whatever the tokenizer. What
    is taken is laid out as

        PSM   <|fim_prefix|> P <|fim_suffix|> S <|fim_middle|> M [EOS]
        SPM   <|fim_prefix|> <|fim_suffix|> S <|fim_middle|> P M [EOS]      (a share `spm` of what is taken)

    SPM is the paper's second variant, made for training jointly with PSM. A moved middle always ends with end-of-text,
    also in a piece that the text goes on after: it says that M has met S, and is how a model learns to stop. What
    stands before the text (bos) stays there. Pieces that are not taken are plain causal text, token for token.

    Every token of the text and every end-of-text is a target, whichever part it is in, so nothing is lost for the
    causal model. The three markers are never targets: at use the caller writes them, and where a random cut falls
    cannot be foreseen. Text runs between special tokens; where rows come with several texts in a document, joined by
    such tokens, each is taken and cut by itself.

    `reserve` is four: three markers, and the end-of-text that a piece may not have had. On held-out text half of the
    pieces are taken, whatever `rate` was, so figures of runs compare; `spm` stays as trained.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `middle` bool [B, S] (the tokens of M), `infilling` bool [B, S] (the pieces that were taken) and `position` [B]; as
    a `data_collator` of `transformers.Trainer` `input_ids`, `attention_mask`, `labels`, drawn anew at every call.
    Raises `UserError` for a bad option and for a tokenizer without the markers or end-of-text.
    """

    name: ClassVar[str] = "fim"
    makes: ClassVar[frozenset[str]] = frozenset(
        {
            *("input_ids", "attention_mask", "document_ids", "position_ids"),
            *("labels", "middle", "infilling", "position"),
        }
    )
    requires: ClassVar[frozenset[str]] = frozenset({"eos", "fim", "specials_excluded"})
    shifted: ClassVar[bool] = True

    rate: float = 0.5
    spm: float = 0.5

    def __post_init__(self) -> None:
        for option, share in (("rate", self.rate), ("spm", self.spm)):
            if not 0 <= share <= 1:
                raise UserError(f"collator.{option} is a share between 0 and 1, got {share}")
        vocabulary = self.tokenizer.get_vocab()
        if missing := [token for token in FIM if token not in vocabulary]:
            raise UserError(f"infilling needs a tokenizer with {', '.join(missing)}; train one with `sslnlp tokenizer`")
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "infilling needs a tokenizer with an end-of-text token; set eos_token in its tokenizer_config.json"
            )
        self._prefix, self._middle, self._suffix = (vocabulary[token] for token in FIM)
        self._text = text_mask(self.tokenizer)
        self._fresh = FreshPositions()

    @property
    def reserve(self) -> int:
        return 4

    def for_evaluation(self, seed: int) -> FimCollator:
        """The collator for held-out text: half of the pieces are taken, with the draws of `seed`."""
        return replace(self, seed=seed, horizon=None, rate=EVALUATION_RATE)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        moved, middle, infilling = self._moved(block, positions)
        markers = infilling & np.isin(moved.input_ids, (self._prefix, self._middle, self._suffix))
        labels = np.where(moved.attention & ~moved.opens & ~markers, moved.input_ids, IGNORED)
        batch = moved.batch(moved.input_ids, labels)
        if block.positions is not None:
            batch["middle"] = torch.from_numpy(middle)
            batch["infilling"] = torch.from_numpy(infilling)
        return batch

    def _moved(self, block: TokenBlock, positions: Ints) -> tuple[TokenBlock, Bools, Bools]:
        """The block laid out anew, and which of its tokens [B, T] are of a middle and of a piece that was taken.

        Every token finds its new column by itself, from the run it is in and its place there. T is wider than S only
        where a row had no room left.
        """
        rows, width = block.input_ids.shape
        ids, documents, present = block.input_ids.ravel(), block.document_ids.ravel(), block.attention.ravel()
        text = self._text[ids] & present
        runs = _runs(text.reshape(rows, width), block.opens)
        row = np.repeat(np.arange(rows), width)
        taken, spm, low, high = self._drawn(runs, row[runs.first], positions)

        # What a run grows by, three markers and an end-of-text where none follows, moves what stands after it.
        after = np.minimum(runs.first + runs.length, len(ids) - 1)
        ended = (documents[after] == documents[runs.first]) & (row[after] == row[runs.first])
        ended &= ids[after] == self.tokenizer.eos_token_id
        growth = np.where(taken, 4 - ended, 0)
        grown = np.concatenate([[0], np.cumsum(growth)])
        column = np.tile(np.arange(width), rows) + grown[runs.begun] - grown[runs.before][row]
        head = column[runs.first] - growth
        inside = text & np.append(taken, False)[runs.begun - 1]
        run = runs.begun[inside] - 1
        offset = np.flatnonzero(inside) - runs.first[run]
        column[inside] = head[run] + _destination(offset, low[run], high[run], runs.length[run], spm[run])
        middle = np.zeros(len(ids), dtype=np.bool_)
        middle[inside] = (offset >= low[run]) & (offset < high[run])
        ends = inside.copy()
        ends[after[taken & ended]] = True

        parts = [(row[present], column[present], ids[present], documents[present], middle[present], ends[present])]
        suffix_at = np.where(spm, 1, 1 + low)
        for at, token, chosen in (
            (0 * low, self._prefix, taken),
            (suffix_at, self._suffix, taken),
            (suffix_at + 1 + runs.length - high, self._middle, taken),
            (runs.length + 3, self.tokenizer.eos_token_id, taken & ~ended),
        ):
            first = runs.first[chosen]
            new, no, yes = np.full(len(first), token), np.zeros(len(first), np.bool_), np.ones(len(first), np.bool_)
            parts.append((row[first], (head + at)[chosen], new, documents[first], no, yes))
        row, column, ids, documents, middle, infilling = map(np.concatenate, zip(*parts, strict=True))
        width = max(width, int(column.max(initial=-1)) + 1)
        placed = [np.full((rows, width), fill) for fill in (pad_id(self.tokenizer), -1, False, False)]
        for grid, values in zip(placed, (ids, documents, middle, infilling), strict=True):
            grid[row, column] = values
        return TokenBlock(placed[0], placed[1], block.positions), placed[2], placed[3]

    def _drawn(self, runs: _Runs, row: Ints, positions: Ints) -> tuple[Bools, Bools, Ints, Ints]:
        """For each run: whether it is taken, whether as SPM, and its two cuts, 0 <= low <= high <= length; all [R].

        Draws go by (position, number of the run in its row), so neither padding nor neighbours move them.
        """
        ordinal = np.arange(len(row)) - runs.before[row]
        lot, layout, one, other = (
            uniform(self.seed, f"fim/{purpose}", positions, int(ordinal.max(initial=-1)) + 1)[row, ordinal]
            for purpose in ("rate", "layout", "first cut", "second cut")
        )
        cuts = (np.stack([one, other]) * (runs.length + 1)).astype(np.int64)
        return lot < self.rate, layout < self.spm, cuts.min(axis=0), cuts.max(axis=0)


def _runs(text: Bools, opens: Bools) -> _Runs:
    """The runs of `text` [B, S], which end at other tokens and where documents (`opens`) meet."""
    starts = text & opens
    starts[:, 1:] |= text[:, 1:] & ~text[:, :-1]
    begun = np.cumsum(starts.ravel(), dtype=np.int64)
    per_row = starts.sum(axis=1)
    return _Runs(
        begun=begun,
        first=np.flatnonzero(starts),
        length=np.bincount(begun[text.ravel()] - 1, minlength=int(per_row.sum())),
        before=np.cumsum(per_row) - per_row,
    )


def _destination(offset: Ints, low: Ints, high: Ints, length: Ints, spm: Bools) -> Ints:
    """The place of token `offset` of a run of `length` in its new layout, [N] each; 0 is <|fim_prefix|>."""
    suffix = offset >= high
    psm = np.where(suffix, 2 + low + offset - high, np.where(offset < low, 1 + offset, 3 + offset + length - high))
    return np.where(spm, np.where(suffix, 2 + offset - high, 3 + offset + length - high), psm)
