"""A tiny byte-level tokenizer and stores of random documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sslnlp.data import DataConfig
from sslnlp.data.pictured import Pictured, pictured
from sslnlp.data.store import TokenStore
from sslnlp.data.tokens import TokenWriter

TEXTS = [f"The {a} fox {b} over the {c} dog." for a in ("quick", "brown") for b in ("jumps", "ran") for c in "xyz"]


@pytest.fixture(scope="package")
def tiny() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[Sequence[int]], TokenStore]:
    """A store of documents of the given lengths, ids 10..999."""

    def make(lengths: Sequence[int], name: str = "store") -> TokenStore:
        rng = np.random.default_rng(len(lengths))
        writer = TokenWriter(tmp_path / name, 1000)
        counts = np.array(lengths, np.int64)
        writer.add(rng.integers(10, 1000, int(counts.sum())), counts, counts)
        writer.finish(name)
        return TokenStore(tmp_path / name)

    return make


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Pictured]:
    """Pictures of a spec, with what was found in them kept beside it."""

    def read(train: str | list[str], captions_needed: bool = True, **options: Any) -> Pictured:
        options.setdefault("valid_fraction", 0)
        config = DataConfig(train=train, **options)
        return pictured(config, cache_dir=tmp_path / "cache", captions_needed=captions_needed)

    return read
