"""What every test stands on: no network, one thread's arithmetic, a small corpus and a tokenizer trained on it."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest

gc.disable()  # until all is imported and collected: little of that is garbage, and to look for it takes three seconds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What is heavy is imported where it is used: with `-n` a process of its own reads this file and only hands out the
# tests, and the others wait for it.


def pytest_collection_finish() -> None:
    # What was imported is there to the end; looking through it for garbage again and again takes seconds.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    # Tiny tensors gain nothing from a second thread, and two workers on one core lose a lot.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data goes to a folder of this test session, never to the user's."""
    monkeypatch.setenv("SSLNLP_CACHE", str(tmp_path_factory.getbasetemp() / "sslnlp-cache"))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    from tests.contract import corpus

    return corpus()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of a few hundred tokens, framed like an encoder."""
    from tests.contract import small_tokenizer

    return small_tokenizer()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a file, a blank line between documents."""
    from tests.contract import corpus

    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(corpus()), encoding="utf-8")
    return path
