"""How probable a language model finds a text: the likelihood of a causal model, the pseudo-likelihood of a masked one.

Shape suffixes: B rows of a batch, S tokens of a row, N scored positions, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Floats, Ints
from sslnlp.collators.tokens import pad_id
from sslnlp.errors import UserError
from sslnlp.evaluation.local import LocalMetric
from sslnlp.heads import prediction_head
from sslnlp.last_layer import ask_last_layer, states_at
from sslnlp.masks import attention_inputs, is_causal
from sslnlp.models import max_positions
from sslnlp.nn import evaluating
from sslnlp.tokenizer import framing, word_boundaries
from sslnlp.types import Encoding

CHUNK = 1024
"""Positions whose logits are in memory together."""


@dataclass(frozen=True)
class Scored:
    """What a text scores, and on how much of it."""

    nats: float
    """The sum of the natural logarithms of its tokens' probabilities, at most 0; 0 where nothing is scored."""
    tokens: int
    words: int
    """Punctuation marks are words of their own."""
    bytes: int
    """UTF-8 bytes of the text that is scored, spaces included."""
    truncated: bool = False
    """The text goes on behind what was scored."""


@dataclass(frozen=True)
class _Row:
    """A text as the model reads it: its ids in their frame, the scored places, and whether a word starts at each."""

    ids: Ints
    place: Ints
    starts: Bools
    bytes: int
    truncated: bool


def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    word_aware: bool = True,
    device: torch.device | str | None = None,
) -> list[Scored]:
    """The log-likelihood of each text, in nats, in the order given; each token of a text is scored once.

    A causal model gives the sum of log p(token | tokens before it). Before the first stands the beginning-of-sequence
    token, or where the tokenizer has none its end of text, as GPT-2 is trained; with neither the first token is given
    and not scored. An end of text is not scored.

    A masked model gives the pseudo-log-likelihood (Salazar et al., 2020, arXiv:1910.14659): the sum of log p(token |
    all others), one pass a token, in the frame that the tokenizer makes. A word in pieces is too easy that way, since
    the later pieces tell the first; `word_aware` masks them with it (PLL-word-l2r; Kauf and Ivanova, 2023,
    arXiv:2305.10588). It is no likelihood: do not compare it with a causal model's. Words are those of
    `sslnlp.tokenizer.WordBoundaries`.

    Args:
        batch_size: rows of a pass, for a masked model masked copies of any of the texts. Memory does not grow with the
            number of texts, and logits are had at scored positions only, unless the head is one that
            `heads.prediction_head` cannot take apart.
        max_length: tokens of a row, frame included; never more than the model has positions. A longer text is scored
            up to there, and `truncated` and the counts say so.
        word_aware: for masked models; False is the measure of Salazar et al.
        device: where the model is moved to, and stays; None leaves it where it is.

    Returns:
        A `Scored` for each text. Texts of the same ids have exactly the same score. A text without tokens scores 0.
    Raises `UserError` for an encoder-decoder, a model without a vocabulary head, a masked model's tokenizer without a
    mask token, a tokenizer that is not fast, and a `max_length` or `batch_size` with no room for a token.
    """
    causal = _checked(model, tokenizer, batch_size)
    longest = min((n for n in (max_length, max_positions(model.config)) if n is not None), default=None)
    rows = _rows(tokenizer, texts, causal, longest)
    first: dict[bytes, int] = {}
    twin = [first.setdefault(row.ids.tobytes(), number) for number, row in enumerate(rows)]
    order = sorted((n for n in first.values() if len(rows[n].place)), key=lambda n: (len(rows[n].ids), n))
    if device is not None:
        model.to(device)
    nats = np.zeros(len(rows))
    with evaluating(model), torch.no_grad():
        score = _scorer(model)
        copies = _causal(rows, order) if causal else _masked(rows, order, int(tokenizer.mask_token_id), word_aware)
        while batch := list(islice(copies, batch_size)):
            found_N = score(*_padded(batch, pad_id(tokenizer)))
            owner_N = np.repeat([copy.text for copy in batch], [len(copy.place) for copy in batch])
            np.add.at(nats, owner_N, found_N)
    return [
        Scored(float(nats[n]), len(row.place), int(row.starts.sum()), row.bytes, row.truncated)
        for n, row in zip(twin, rows, strict=True)
    ]


def _checked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> bool:
    """Whether the model is causal."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder: it gives a text's likelihood only for a source it is written from"
        )
    if model.get_output_embeddings() is None:
        raise UserError(f"{name} has no vocabulary head; load the model with AutoModelForCausalLM or ...ForMaskedLM")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "the tokenizer has no fast version, which tells where words begin; convert it or choose another"
        )
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    causal = is_causal(model.config)
    if not causal and tokenizer.mask_token_id is None:
        raise UserError(f"{name} is scored by masking tokens, and the tokenizer has no mask token")
    return causal


def _rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], causal: bool, longest: int | None) -> list[_Row]:
    opening = framing(tokenizer, "decoder").prefix
    boundaries = word_boundaries(tokenizer)
    rows = []
    for text in texts:
        encoded = tokenizer(
            text, add_special_tokens=not causal, return_special_tokens_mask=True, return_offsets_mapping=True,
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        own = np.flatnonzero(np.array(encoded["special_tokens_mask"], dtype=np.int64) == 0)
        ids, end = np.array(encoded["input_ids"], dtype=np.int64), [stop for _, stop in encoded["offset_mapping"]]
        before, after = (ids[: own[0]], ids[own[-1] + 1 :]) if len(own) else (ids, ids[:0])
        before = np.array(opening, dtype=np.int64) if causal else before
        room = len(own) if longest is None else longest - len(before) - len(after)
        if room < 1 and len(own):
            raise UserError(f"rows of {longest} tokens leave no room for a token of the text; give a larger max_length")
        kept = own[:room]
        place = np.arange(len(kept)) + len(before)
        starts = boundaries.starts(ids[kept])
        first, last = 0, end[kept[-1]] if len(kept) < len(own) else len(text)
        if causal and not opening:  # the first token is given
            first = end[kept[0]] if len(kept) else 0
            place, starts = place[1:], starts[1:]
        framed = np.concatenate([before, ids[kept], after])
        rows.append(_Row(framed, place, starts, len(text[first:last].encode()), len(kept) < len(own)))
    return rows


@dataclass(frozen=True)
class _Copy:
    """One row of a batch: what the model reads, and the ids that its logits at `place` are asked for."""

    text: int
    ids: Ints
    place: Ints
    target: Ints


def _causal(rows: Sequence[_Row], order: Sequence[int]) -> Iterator[_Copy]:
    for n in order:
        yield _Copy(n, rows[n].ids, rows[n].place - 1, rows[n].ids[rows[n].place])


def _masked(rows: Sequence[_Row], order: Sequence[int], mask: int, word_aware: bool) -> Iterator[_Copy]:
    """A copy for each token of each text, in which it is masked, and so are the later ones of its word."""
    for n in order:
        ids, place = rows[n].ids, rows[n].place
        ends = np.append(np.flatnonzero(rows[n].starts)[1:], len(place))
        word = np.cumsum(rows[n].starts) - 1
        for i in range(len(place)):
            hidden = ids.copy()
            hidden[place[i : ends[word[i]] if word_aware else i + 1]] = mask
            yield _Copy(n, hidden, place[i : i + 1], ids[place[i : i + 1]])


def _padded(batch: Sequence[_Copy], pad: int) -> tuple[Encoding, Tensor, Tensor]:
    """The copies as an encoding [B, S], and of all their places together the flat positions int64 [N] and the ids."""
    width = max(len(copy.ids) for copy in batch)
    ids_BS = np.full((len(batch), width), pad, dtype=np.int64)
    mask_BS = np.zeros_like(ids_BS)
    for b, copy in enumerate(batch):
        ids_BS[b, : len(copy.ids)], mask_BS[b, : len(copy.ids)] = copy.ids, 1
    index_N = np.concatenate([b * width + copy.place for b, copy in enumerate(batch)])
    target_N = np.concatenate([copy.target for copy in batch])
    encoding = {"input_ids": torch.from_numpy(ids_BS), "attention_mask": torch.from_numpy(mask_BS)}
    return encoding, torch.from_numpy(index_N), torch.from_numpy(target_N)


def _scorer(model: PreTrainedModel) -> Callable[[Encoding, Tensor, Tensor], Floats]:
    """From an encoding, flat positions int64 [N] of [B × S] and ids int64 [N] to log-probabilities float64 [N]."""
    head = prediction_head(model)
    ask_last_layer(model)

    def score(encoding: Encoding, index_N: Tensor, target_N: Tensor) -> Floats:
        inputs = {name: value.to(model.device) for name, value in encoding.items()}
        index_N = index_N.to(model.device)
        scored: Iterator[Tensor]
        if head is not None:
            scored = map(head, torch.split(states_at(model, inputs, index_N), CHUNK))
        else:
            options = attention_inputs(model.config, inputs)
            all_PV = model(input_ids=inputs["input_ids"], **options).logits.flatten(0, 1)
            scored = (all_PV[index] for index in torch.split(index_N, CHUNK))
        found = []
        for logits_NV, target in zip(scored, torch.split(target_N, CHUNK), strict=True):
            wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
            found.append(-cross_entropy(wide_NV, target.to(model.device), reduction="none").double().cpu().numpy())
        return np.concatenate(found)

    return score


class PseudoPerplexity(LocalMetric):
    """`{"pseudo_perplexity": exp(-sum of nats / sum of counts)}`: `predictions` are the nats of each text, `references`
    its tokens (or words, for a figure that compares across tokenizers). `{}` where nothing is counted."""

    describes = "exp of the negative (pseudo-)log-likelihood a token, over all texts."
    features_of = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        count = float(np.sum(references))
        return {"pseudo_perplexity": float(np.exp(-np.sum(predictions) / count))} if count else {}


class BitsPerByte(LocalMetric):
    """`{"bits_per_byte": -sum of nats / (ln 2 × sum of bytes)}`: `predictions` are the nats of each text, `references`
    its bytes. A code length for a causal model; not for a pseudo-likelihood. `{}` where there are no bytes."""

    describes = "Negative log-likelihood in bits, over the UTF-8 bytes of all texts."
    features_of = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        size = float(np.sum(references))
        return {"bits_per_byte": float(-np.sum(predictions) / (np.log(2) * size))} if size else {}
