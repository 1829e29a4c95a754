"""Tokenizers of each kind, trained in a fraction of a second on a page of English and Chinese."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from sslnlp.tokenizer import train_tokenizer

KINDS = ("bpe", "wordpiece", "unigram")

ENGLISH = [
    "The lighthouse keeper counted seventeen ships before the fog rolled in; none of them answered his lamp.",
    "Counting ships is easy, he said, but answering them (in any weather!) takes a steadier hand.",
    "Before the harbour was rebuilt in 1887, fishermen carried their own lamps and trusted nobody's counting.",
    "A keeper's log-book lists the weather, the ships, the lamp oil: 3 barrels, 42 wicks, 1 broken lens.",
    "Rebuilding the harbour took eleven years. The fishermen answered with a song about steady hands and broken lamps.",
]
CHINESE = [
    "灯塔看守人在大雾来临之前数了十七艘船，没有一艘回答他的灯光。",
    "数船很容易，他说，但是回答它们需要一双更稳的手。",
    "港口重建之前，渔民们带着自己的灯，不相信任何人的计数。",
    "看守人的日志记录了天气、船只和灯油：三桶油，四十二根灯芯。",
]


@cache
def tiny(kind: str = "bpe") -> PreTrainedTokenizerFast:
    """A tokenizer of `kind`; shared between tests, so not to be changed."""
    return train_tokenizer((ENGLISH + CHINESE) * 4, vocab_size=640, algorithm=kind)


def packed_row(
    pieces: Iterable[list[int]], tokenizer: PreTrainedTokenizerFast, *, padding: int = 0, position: int = 0
) -> dict[str, Any]:
    """One row of documents (ids, framed), as packing lays them, and `padding` behind."""
    framed = list(pieces)
    ids = [token for piece in framed for token in piece] + [tokenizer.pad_token_id] * padding
    documents = [n for n, piece in enumerate(framed) for _ in piece] + [-1] * padding
    return {"input_ids": np.array(ids, np.int64), "document_ids": np.array(documents, np.int32), "position": position}
