"""What stands around a document: [CLS] ... [SEP] for an encoder, [BOS] ... [EOS] for what writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from sslnlp.tokenizer.specials import is_ours, special_id

Style = Literal["encoder", "decoder", "seq2seq"]


@dataclass(frozen=True)
class Framing:
    """Ids put before and after each document (or piece of one) when rows are made."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def framing(tokenizer: PreTrainedTokenizerBase, style: Style) -> Framing:
    """The framing of an `encoder` (cls, sep), a `decoder` or an encoder-decoder, `seq2seq` (bos, eos).

    Where a tokenizer lacks one, the nearest relative stands in: bos for cls, eos for sep (RoBERTa, T5), and for a
    decoder eos for bos (GPT-2 opens a document with its end-of-text). A tokenizer with none of them frames with
    nothing; the contract names the missing fact to the objectives that need it.
    """
    if style == "encoder":
        return Framing(_first(tokenizer, "cls", "bos"), _first(tokenizer, "sep", "eos"))
    opening = ("bos", "eos") if style == "decoder" else ("bos",)
    return Framing(_first(tokenizer, *opening), _first(tokenizer, "eos"))


def set_framing(tokenizer: PreTrainedTokenizerBase, style: Style) -> PreTrainedTokenizerBase:
    """Makes `tokenizer(text)` frame a text the way training rows are framed; changes and returns `tokenizer`.

    Encoder: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`. Encoder-decoder: `[BOS] A [EOS]`. Decoder: `[BOS] A`, with no
    [EOS], so that what is typed is a prompt to go on from. Only tokenizers that `train_tokenizer` made are changed:
    somebody else's model was trained with their own framing.
    """
    if not is_ours(tokenizer):
        return tokenizer
    single, pair = _TEMPLATES[style]
    used = [token for token in ("[CLS]", "[SEP]", "[BOS]", "[EOS]") if token in single]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in used],
    )
    return tokenizer


_TEMPLATES: Final[dict[Style, tuple[str, str]]] = {
    "encoder": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "decoder": ("[BOS] $A", "[BOS] $A $B:1"),
    "seq2seq": ("[BOS] $A [EOS]", "[BOS] $A [EOS] $B:1 [EOS]:1"),
}


def _first(tokenizer: PreTrainedTokenizerBase, *roles: str) -> tuple[int, ...]:
    """The id of the first of `roles` that the tokenizer has, as a tuple of one; else the empty tuple."""
    return next(((i,) for role in roles if (i := special_id(tokenizer, role)) is not None), ())
