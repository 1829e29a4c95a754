"""Spans that are taken out of texts: where they lie (T5's law), what stands for them, and how long rows become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Floats, Ints
from sslnlp.collators.ragged import blocks, interleave
from sslnlp.collators.tokens import TokenBlock
from sslnlp.errors import UserError
from sslnlp.rng import U64
from sslnlp.tokenizer import SENTINELS, special_id, special_mask

_SMALL = 256


@dataclass(frozen=True)
class Runs:
    """R runs of text, in order: stretches of one document without special tokens; most often, a document piece."""

    first: Ints
    """int64 [R]: the flat place in the block where each begins."""
    length: Ints
    """int64 [R]: its tokens, at least one."""


@dataclass(frozen=True)
class Spans:
    """What is taken out of a block: [B, S] each."""

    noise: Bools
    """The tokens that are taken out."""
    leads: Bools
    """The first of them in each span."""
    number: Ints
    """Which span of its document a token that is taken out belongs to, from 0."""


def text_mask(tokenizer: PreTrainedTokenizerBase) -> Bools:
    """bool [V]: the ids that are text. The unknown token is: a word that cannot be spelt is part of its text."""
    text = ~special_mask(tokenizer)
    if (unknown := special_id(tokenizer, "unk")) is not None:
        text[unknown] = True
    return text


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> Ints:
    """int64 [K]: the ids of <extra_id_0>, <extra_id_1>, ... as far as they go; `UserError` when there is none."""
    vocabulary = tokenizer.get_vocab()
    found = [vocabulary[token] for token in SENTINELS if token in vocabulary]
    if not found or tokenizer.eos_token_id is None:
        raise UserError("spans need a tokenizer with <extra_id_0>, ... and eos; train one with `sslnlp tokenizer`")
    return np.array(found, dtype=np.int64)


def text_runs(text: Bools, opens: Bools) -> Runs:
    """The runs of `text` [B, S], which end at other tokens and where documents (`opens`) meet."""
    starts = text & opens
    starts[:, 1:] |= text[:, 1:] & ~text[:, :-1]
    run_N = np.cumsum(starts.ravel()) - 1
    first = np.flatnonzero(starts)
    return Runs(first, np.bincount(run_N[text.ravel()], minlength=len(first)).astype(np.int64))


def span_counts(tokens: Ints, rate: Floats | float, mean_span: Floats | float, most: int) -> tuple[Ints, Ints]:
    """Tokens to take out of each of some texts, and in how many spans: int64, shaped like `tokens`.

    T5 (Raffel et al., 2020): round(rate × tokens), but at least one, and one stays; in round(that / mean_span) spans,
    at least one. There are never more than `most`, nor more than tokens that stay, as one stands before each span.
    A text of one token stays whole.
    """
    noise = np.minimum(np.maximum(np.rint(tokens * rate), 1), np.maximum(tokens - 1, 0))
    spans = np.minimum(np.minimum(np.maximum(np.rint(noise / mean_span), 1), most), np.minimum(noise, tokens - noise))
    return noise.astype(np.int64), spans.astype(np.int64)


def random_spans(runs: Runs, noise_R: Ints, spans_R: Ints, draws_BS: U64) -> Bools:
    """bool [B, S]: `noise_R` tokens of each run, in `spans_R` spans, each behind tokens that stay.

    T5's law: both the tokens that stay and those taken out are cut into `spans_R` stretches of at least one token, and
    all ways of doing so are equally likely; the stretches then alternate, and the last one is taken out. A cut falls
    at the lowest of the tokens' draws, so it depends on the row's position and the token's column alone.
    """
    out = np.zeros(draws_BS.size, dtype=np.bool_)
    cut = spans_R > 0
    first, length, noise, spans = (values[cut] for values in (runs.first, runs.length, noise_R, spans_R))
    if not len(first):
        return out.reshape(draws_BS.shape)
    before = np.cumsum(length) - length
    place_N = np.arange(int(length.sum())) + np.repeat(first - before, length)
    # In each run the tokens in front stand for those that stay and the others for those taken out: two parts, each
    # opening a stretch at its first token and at as many others as cuts are wanted.
    part_lengths = np.stack([length - noise, noise], axis=1).ravel()
    part_N = np.repeat(np.arange(len(part_lengths)), part_lengths)
    opens_N = np.diff(part_N, prepend=-1) > 0
    inner = np.flatnonzero(~opens_N)
    # Integers, because adding a part's number to a fraction would round it, by the row's place in the batch.
    key = (part_N[inner] << 40) + (draws_BS.ravel()[place_N[inner]] >> np.uint64(24)).astype(np.int64)
    ordered = inner[np.argsort(key, kind="stable")]
    gaps = part_lengths - 1
    rank = np.arange(len(ordered)) - np.repeat(np.cumsum(gaps) - gaps, gaps)
    opens_N[ordered[rank < np.repeat(np.repeat(spans - 1, 2), gaps)]] = True
    starts = np.flatnonzero(opens_N)
    stretch = np.diff(starts, append=len(part_N))
    taken = part_N[starts] % 2 == 1
    alternating = np.stack([stretch[~taken], stretch[taken]], axis=1).ravel()
    out[place_N] = np.repeat(np.arange(len(alternating)) % 2 == 1, alternating)
    return out.reshape(draws_BS.shape)


def numbered(noise: Bools, opens: Bools, most: int) -> Spans:
    """The spans of `noise` [B, S]; those of a document beyond the first `most` stay, there being no sentinel left."""
    leads = noise.copy()
    leads[:, 1:] &= ~noise[:, :-1]  # every run begins with tokens that stay, so spans of two never meet
    begun = np.cumsum(leads.ravel())
    before = np.maximum.accumulate(np.where(opens.ravel(), begun - leads.ravel(), 0))
    number = (begun - before - 1).reshape(noise.shape)
    left = number < most
    return Spans(noise & left, leads & left, number)


def source_tokens(block: TokenBlock, spans: Spans, sentinels: Ints, shown: Bools) -> tuple[Ints, Ints]:
    """What stays, with a sentinel for each span that is `shown` ([B, S]): places in the flattened block, and ids."""
    shown = spans.leads & shown
    place_N = np.flatnonzero(block.attention & (~spans.noise | shown))
    marks = sentinels[np.clip(spans.number, 0, len(sentinels) - 1)]
    return place_N, np.where(shown, marks, block.input_ids).ravel()[place_N]


def target_tokens(
    block: TokenBlock, spans: Spans, sentinels: Ints, shown: Bools, ends: Bools, eos: int
) -> tuple[Ints, Ints]:
    """The spans, each behind its sentinel where `shown`, and `eos` behind the tokens `ends`: places, and ids."""
    lead, taken, end = (np.flatnonzero(flags) for flags in (spans.leads & shown, spans.noise, ends))
    order = interleave((lead, 0 * lead), (taken, 0 * taken + 1), (end, 0 * end + 2))
    ids = [sentinels[spans.number.ravel()[lead]], block.input_ids.ravel()[taken], np.full(len(end), eos)]
    return np.concatenate([lead, taken, end])[order], np.concatenate(ids)[order]


def laid_out(block: TokenBlock, place_N: Ints, ids_N: Ints, padding: int, most: int) -> tuple[Ints, Ints]:
    """Ids and document ids [B, T] of tokens that know their places in the block, T at most `most` (`columns`)."""
    rows, width = block.input_ids.shape
    documents_N = block.document_ids.ravel()[place_N]
    ids, documents = blocks(place_N // max(width, 1), rows, (ids_N, padding), (documents_N, -1))
    kept = columns(documents, most)
    return ids[:, :kept], documents[:, :kept]


def document_ends(block: TokenBlock) -> Bools:
    """bool [B, S]: the last token of each document piece."""
    ends: Bools = block.attention.copy()
    ends[:, :-1] &= block.opens[:, 1:]
    return ends


def document_numbers(block: TokenBlock) -> Ints:
    """int64 [B·S]: which document piece (or stretch of padding) of the block a token is in, from 0, in order."""
    numbers: Ints = np.cumsum(block.opens.ravel()) - 1
    return numbers


def columns(document_ids: Ints, most: int) -> int:
    """How many columns of a block [B, T] to keep: not those by which rounding made it wider than `most` for nothing."""
    longest = int((document_ids >= 0).sum(axis=1).max(initial=0))
    return max(longest, min(most, int(document_ids.shape[1])))


# Rows are laid out before they are collated, each piece counted with its tokens and a `reserve` beside it. Below,
# `packed_N` are the lengths of pieces as they are laid out and `needed_N` what they come to at most.


def reserve_for(packed_N: Ints, needed_N: Ints, slope: float) -> int:
    """Tokens to leave free beside a piece, so that small ones, which rounding makes longer than `slope` × their length,
    do not decide how many tokens a row can hold."""
    small = slice(0, _SMALL)
    return max(0, int(np.ceil((needed_N[small] / slope - packed_N[small]).max() - 1e-9)))


def row_length(packed_N: Ints, needed_N: Ints, reserve: int, seq_length: int) -> int:
    """The most tokens a row can be laid out to, when collated it is to be no longer than `seq_length`.

    Every piece that may occur comes to at most seq_length / length of what it was counted as; so does a row of them.
    """
    fits = np.cumprod(needed_N <= seq_length) == 1
    if not fits.any():
        return seq_length  # too short for anything, which packing says
    packed, needed = packed_N[fits], needed_N[fits]
    return int(min(packed[-1] + reserve, (seq_length * (packed + reserve) // needed).min()))
