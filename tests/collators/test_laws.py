"""What every collator of text owes its rows, whichever it is: tried on each registered one, on each kind of tokenizer,
on documents of no token, one token and a hundred thousand, on English, Chinese and emoji."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslnlp.collators import COLLATORS, get_collator
from sslnlp.data.packing import PackedRows
from sslnlp.data.stream import Stream
from sslnlp.data.tokens import build_store
from sslnlp.objectives import OBJECTIVES
from sslnlp.tokenizer import framing, set_framing, train_tokenizer
from tests.contract import OPTIONS, objective_class
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS

LENGTH = 48
WORDS = " ".join(ENGLISH)
SCRIPTS = ["", "a", *ENGLISH, *CHINESE, "🦊 🚀🚀 👩‍👩‍👧‍👦! Ĺéttèrs ﷽. \u200b\u202e x", "\n\n \t"]
SCRIPTS += ["[MASK] [SEP] </s> <|endoftext|>"]
NAMES = [
    name for name in OBJECTIVES if get_collator(objective_class(name).collator).reads == "tokens"
]  # each collator as one of its objectives configures it


@functools.cache
def tokenizer(kind: str, style: str) -> Any:
    """Its ids do not depend on the framing."""
    return set_framing(train_tokenizer((ENGLISH + CHINESE) * 4, vocab_size=640, algorithm=kind), style)


@functools.cache
def store(kind: str) -> Any:
    texts = [*SCRIPTS, " ".join([WORDS] * 1000), *SCRIPTS]
    folder = Path(tempfile.mkdtemp(prefix="sslnlp-tests-")) / "store"
    built = build_store(texts, tokenizer(kind, "encoder"), folder, fingerprint=kind)
    assert {0, 1} <= set(built.lengths.tolist())
    assert built.lengths.max() >= 100_000
    return built


@functools.cache
def parts(name: str, kind: str) -> tuple[Any, Stream, int]:
    """A collator, a stream of packed rows and the size of the vocabulary."""
    cls = objective_class(name)
    own = tokenizer(kind, cls.framing)
    collator = get_collator(cls.collator)(tokenizer=own, seed=5, **cls.collator_options({}))
    frame = framing(own, cls.framing)
    rows = PackedRows(
        store(kind), collator.source_length(LENGTH), frame.prefix, frame.suffix,
        suffix_every_piece=cls.framing != "decoder", reserve=collator.reserve,
    )  # fmt: skip
    return collator, Stream(rows, 5), len(own)


def tensors(batch: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch by its path."""
    for name, value in batch.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, dict):
            yield from tensors(value, f"{prefix}{name}/")


def blocks(batch: Any) -> dict[str, Tensor]:
    """The tensors with one line a row."""
    return {name: value for name, value in tensors(batch) if value.ndim == 2 and not name.endswith("target_index")}


def test_every_collator_of_text_is_here() -> None:
    tried = {objective_class(name).collator for name in NAMES}
    text = {name for name in COLLATORS if get_collator(name).reads == "tokens"}
    assert tried == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@given(start=st.integers(0, 10**6), count=st.integers(1, 9))
@settings(max_examples=3, deadline=None)
def test_laws(name: str, kind: str, start: int, count: int) -> None:
    collator, stream, vocabulary = parts(name, kind)
    rows = stream.rows(range(start, start + count))
    batch = collator(rows)
    assert set(collator.makes) <= set(batch)
    together = blocks(batch)
    for path, value in together.items():
        if path.endswith("input_ids"):
            assert int(value.min()) >= 0
            assert int(value.max()) < vocabulary
            assert value.shape[1] <= LENGTH, "longer than the rows that were asked for"
        if path.endswith("labels") and value.dtype == torch.int64:
            assert int(value.max()) < vocabulary
            assert ((value >= 0) | (value == -100)).all()
            assert value.shape[1] <= LENGTH
    # A function of (seed, position): the same again, and the same for a row that comes by itself.
    again = collator(rows)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(tensors(batch), tensors(again), strict=True))
    alone = blocks(collator(rows[-1:]))
    for path, value in together.items():
        width = min(value.shape[1], alone[path].shape[1])
        assert torch.equal(value[-1, :width], alone[path][0, :width]), path
        if path.endswith("position_ids"):
            continue  # padding counts on, as a document of its own
        for rest in (value[-1, width:], alone[path][0, width:]):
            assert len(rest.unique()) <= 1, f"{path}: more than padding behind the row"


def draws(name: str) -> bool:
    """Whether its collator draws anything: plain and undamaged rows do not; the parts of a joint have their own."""
    return name not in OPTIONS and objective_class(name).collator not in ("causal_lm", "autoencoding")


@pytest.mark.parametrize("name", [name for name in NAMES if draws(name)])
def test_another_seed_is_another_draw(name: str) -> None:
    cls = objective_class(name)
    collator, stream, _ = parts(name, "bpe")
    options = cls.collator_options({})
    other = get_collator(cls.collator)(tokenizer=collator.tokenizer, seed=6, **options)
    rows = stream.rows(range(8))
    first, second = dict(tensors(collator(rows))), dict(tensors(other(rows)))
    assert any(
        value.shape != second[path].shape or not torch.equal(value, second[path]) for path, value in first.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_token_are_a_batch_of_padding(name: str) -> None:
    """Blank lines, which may be all that the last batch of a file holds."""
    collator, _, _ = parts(name, "bpe")
    batch = collator([{"input_ids": [], "position": position} for position in range(2)])
    assert set(collator.makes) <= set(batch)
    masks = {path: value for path, value in tensors(batch) if path.endswith("attention_mask")}
    assert masks
    assert not any(mask.any() for mask in masks.values())
    assert all((value == -100).all() for path, value in tensors(batch) if path.endswith("labels"))
