"""Sentences of two scripts, packed into rows, for the collators of the order of sentences."""

from functools import cache

import numpy as np

from sslnlp.collators.sentence_order import SegmentOrderCollator, SentenceOrderCollator
from sslnlp.tokenizer import sentence_boundaries, train_tokenizer

ENGLISH = [
    "The fog came.",
    "Who saw it?",
    "A keeper (ha) did!",
    "Ships went by.",
    'He said: "No lamp!"',
    "It was 3.14 miles 🚢.",
]
CHINESE = ["大雾来了。", "谁看见了？", "看守人数船！", "灯亮着。🚢", "渔民唱歌。"]


@cache
def tokenizer_of(kind):
    texts = [" ".join(ENGLISH), "".join(CHINESE), *("\n".join(ENGLISH), "\n".join(CHINESE))]
    return train_tokenizer(texts * 20, vocab_size=460, algorithm=kind)


def make(kind="bpe", n=2, **options):
    tokenizer = tokenizer_of(kind)
    if n == 2:
        return SentenceOrderCollator(tokenizer=tokenizer, **options)
    return SegmentOrderCollator(tokenizer=tokenizer, segments=n, **options)


@cache
def _without_masks(kind, n):
    return make(kind, n, rate=0)


def seeded(kind, n, seed):
    """`make(kind, n, rate=0, seed=seed)`, whose tables, which no seed changes, are made once: until the next call."""
    collator = _without_masks(kind, n)
    collator.seed = seed
    return collator


@cache
def starts_of(kind):
    return sentence_boundaries(tokenizer_of(kind)).starts


def pack(texts, kind="bpe", length=64, room=4, start=0):
    """Rows of framed pieces as packing lays them, `room` tokens left beside each; long texts are cut anywhere."""
    tokenizer = tokenizer_of(kind)
    rows, ids, documents = [], [], []

    def close():
        padding = length - len(ids)
        row = np.array(ids + [tokenizer.pad_token_id] * padding), np.array(documents + [-1] * padding, np.int32)
        rows.append({"input_ids": row[0], "document_ids": row[1], "position": start + len(rows)})
        ids.clear(), documents.clear()

    taken = 0
    for text in texts:
        text_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for i in range(0, len(text_ids), length - 2 - room):
            piece = text_ids[i : i + length - 2 - room]
            if taken + len(piece) + 2 + room > length:
                close()
                taken = 0
            documents.extend([documents[-1] + 1 if documents else 0] * (len(piece) + 2))
            ids.extend([tokenizer.cls_token_id, *piece, tokenizer.sep_token_id])
            taken += len(piece) + 2 + room
    close()
    return rows


def english(n):
    return " ".join(ENGLISH[i % len(ENGLISH)] for i in range(n))


def order_of(batch):
    """The documents with an order target and their labels, under the names of either collator."""
    kind = "order" if "order_index" in batch else "segments"
    return batch[f"{kind}_index"], batch[f"{kind}_labels"]
