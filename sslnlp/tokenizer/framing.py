"""What stands around a document: [CLS] ... [SEP] for an encoder, [BOS] ... [EOS] for a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from sslnlp.tokenizer.specials import is_ours, special_id


@dataclass(frozen=True)
class Framing:
    """Ids put before and after each document (or piece of one) when rows are made."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def framing(tokenizer: PreTrainedTokenizerBase, causal: bool) -> Framing:
    """The framing of an encoder (`causal=False`: cls, sep) or a decoder (`causal=True`: bos, eos).

    Where a tokenizer lacks one, the nearest relative stands in: bos for cls, eos for sep (RoBERTa, T5), and eos for
    bos (GPT-2 opens a document with its end-of-text). A tokenizer with none of them frames with nothing; the
    contract names the missing fact to the objectives that need it.
    """
    if causal:
        opening, closing = _first(tokenizer, "bos", "eos"), _first(tokenizer, "eos")
    else:
        opening, closing = _first(tokenizer, "cls", "bos"), _first(tokenizer, "sep", "eos")
    return Framing(opening, closing)


def set_framing(tokenizer: PreTrainedTokenizerBase, causal: bool) -> PreTrainedTokenizerBase:
    """Makes `tokenizer(text)` frame a text the way training rows are framed; changes and returns `tokenizer`.

    Encoder: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`. Decoder: `[BOS] A`, with no [EOS], so that what is typed is a
    prompt to go on from. Only tokenizers that `train_tokenizer` made are changed: somebody else's model was trained
    with their own framing.
    """
    if not is_ours(tokenizer):
        return tokenizer
    used = ("[BOS]",) if causal else ("[CLS]", "[SEP]")
    single, pair = ("[BOS] $A", "[BOS] $A $B:1") if causal else ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in used],
    )
    return tokenizer


def _first(tokenizer: PreTrainedTokenizerBase, *roles: str) -> tuple[int, ...]:
    """The id of the first of `roles` that the tokenizer has, as a tuple of one; else the empty tuple."""
    return next(((i,) for role in roles if (i := special_id(tokenizer, role)) is not None), ())
