"""What an encoder-decoder makes of corrupted text: how near it comes to the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.collators import get_collator
from sslnlp.collators.base import Collator
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.generation import SHOWN, generate, one_line, until_end
from sslnlp.evaluation.written import edit_similarity
from sslnlp.models import max_positions
from sslnlp.nn import evaluating
from sslnlp.tokenizer import framing, special_mask
from sslnlp.types import Batch


@dataclass(frozen=True)
class Reconstruction:
    """A corrupted source, what should be written for it, and what was, as token ids without special tokens."""

    source: list[int]
    target: list[int]
    written: list[int]
    read: list[int] = field(default_factory=list)
    """The source as the model reads it, special tokens included."""

    @property
    def exact(self) -> bool:
        return self.written == self.target

    @property
    def similarity(self) -> float:
        return edit_similarity(self.written, self.target)

    @property
    def copied(self) -> float:
        """The similarity that copying the source would have: the level to be above."""
        return edit_similarity(self.source, self.target)


def reconstruct(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> list[Reconstruction]:
    """Lets an encoder-decoder write, greedily, what each source of a collated batch is a corruption of.

    `batch` is what a collator of encoder-decoders makes of rows with one document each: `input_ids` [B, S],
    `attention_mask` [B, S] and `labels` [B, T] (-100 = padding). Special tokens (sentinels, masks) do not count.
    Raises `UserError` for a model that is no encoder-decoder.
    """
    if not model.config.is_encoder_decoder or not model.can_generate():
        raise UserError(f"{type(model).__name__} does not rebuild text; use an encoder-decoder with a vocabulary head")
    special = special_mask(tokenizer)

    def plain(ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i >= 0 and not (i < len(special) and special[i])]

    most = batch["labels"].shape[1] + 1
    if (longest := max_positions(model.config)) is not None:
        most = max(1, min(most, longest - 1))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with evaluating(model):
        written_BT = generate(model, tokenizer, inputs, most)
    read_BS = batch["input_ids"].where(batch["attention_mask"].bool(), -1)
    return [
        Reconstruction(
            plain(read),
            plain(target),
            plain(until_end(written[1:], tokenizer)),  # behind the start token
            [i for i in read if i >= 0],
        )
        for read, target, written in zip(read_BS.tolist(), batch["labels"].tolist(), written_BT.tolist(), strict=True)
    ]


def rebuild(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    collator: Collator | None = None,
    number: int = 64,
    max_length: int = 64,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[dict[str, list[str]], dict[str, Figure]]:
    """Texts that are corrupted and rebuilt, to look at, and two figures over the first `number` texts.

    `reconstruction_exact`: the share that is written token for token; `reconstruction_similarity`: the mean of
    `edit_similarity`. Chance is what copying the source would score. A text is cut to `max_length` tokens.

    collator: what corrupts, as the model was trained. None: spans behind sentinels for a decoder that starts from
    padding (T5), infilling otherwise (BART). Its draws depend on `seed` and on the text's number.
    Raises `UserError` where no text has a token, and what `reconstruct` and the collator raise.
    """
    if collator is None:
        collator = _default_collator(model, tokenizer)
    collator = collator.for_evaluation(seed)
    frame = framing(tokenizer, "seq2seq")
    room = max_length - len(frame.prefix) - len(frame.suffix)
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:room] for text in texts[:number]]
    rows = [
        {"input_ids": np.array([*frame.prefix, *ids, *frame.suffix], dtype=np.int64), "position": n}
        for n, ids in enumerate(encoded)
        if ids
    ]
    if not rows:
        raise UserError("no text has a token that could be corrupted and rebuilt")
    found: list[Reconstruction] = []
    for start in range(0, len(rows), batch_size):
        found.extend(reconstruct(model, tokenizer, collator(rows[start : start + batch_size])))
    lines = [
        f"{one_line(tokenizer, one.read)} ⟶ {one_line(tokenizer, one.written)} (was: {one_line(tokenizer, one.target)})"
        for one in found[:SHOWN]
    ]
    copied = float(np.mean([one.copied for one in found]))
    return {"Corrupted text, rebuilt": lines}, {
        "reconstruction_exact": ratio_figure(
            [one.exact for one in found], chance=float(np.mean([one.source == one.target for one in found]))
        ),
        "reconstruction_similarity": ratio_figure([one.similarity for one in found], chance=copied),
    }


def _default_collator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collator:
    start = getattr(model.config, "decoder_start_token_id", None)
    name = "span_corruption" if start is not None and start == model.config.pad_token_id else "denoising"
    return get_collator(name)(tokenizer=tokenizer)
