"""The special tokens every tokenizer of ours reserves, and the two tables that keep them out of the targets."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Ints
from sslnlp.errors import UserError, first_line

ROLES: Final[dict[str, str]] = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
}
"""The attributes `transformers` knows, and our token for each."""

SENTINELS: Final[tuple[str, ...]] = tuple(f"<extra_id_{i}>" for i in range(100))
"""Span sentinels of T5 (Raffel et al., 2020): one for each span that a corruption takes out of a row."""

MODES: Final[tuple[str, ...]] = ("[NLU]", "[NLG]", "[S2S]")
"""Mode tokens of UL2 (Tay et al., 2022): which denoiser a row was made by."""

FIM: Final[tuple[str, ...]] = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
"""Infilling markers (Bavarian et al., 2022)."""

EXTRA: Final[tuple[str, ...]] = (*SENTINELS, *MODES, *FIM)

SPECIALS: Final[tuple[str, ...]] = (*ROLES.values(), *EXTRA)
"""All of them, in the order of their ids: [PAD] is 0, [UNK] 1, ..., the sentinels start at 7."""


def load_tokenizer(path_or_name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or a hub name.

    Raises `UserError` when there is none, when it cannot be read, or when it has no fast (Rust) implementation:
    offsets and vocabulary tables, which word masking and the contract need, exist only there.
    """
    name = os.fspath(path_or_name)
    from transformers import AutoTokenizer  # brings torch, which those that only read data do without

    if name.startswith((os.sep, ".", "~")) and not os.path.exists(name):
        raise UserError(f"there is no tokenizer folder {name!r}; train one with `sslnlp tokenizer`, or give a hub name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, JSON and Rust errors alike
        reason = first_line(error)
        if os.path.isdir(name) and not os.path.exists(os.path.join(name, "tokenizer.json")):
            reason = "the folder holds no tokenizer.json"
        raise UserError(
            f"no tokenizer could be loaded from {name!r} ({reason[:200]}); give a folder with tokenizer.json, "
            "a hub name, or train one with `sslnlp tokenizer`"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"the tokenizer {name!r} has no fast version (tokenizer.json); convert it or choose another")
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def pad_by_end(tokenizer: PreTrainedTokenizerBase, requires: Container[str]) -> bool:
    """Let end-of-text pad where a tokenizer has no padding (GPT-2's, Llama's) and a collator `requires` no more than
    some: attention masks take it out again. Returns whether it is so now."""
    asked = "pad" in requires and "pad_is_not_eos" not in requires
    if not asked or tokenizer.pad_token is not None or tokenizer.eos_token is None:
        return False
    tokenizer.pad_token = tokenizer.eos_token
    return True


@contextmanager
def spelling() -> Iterator[None]:
    """Inside, what `tokenizers` raises for text that a vocabulary cannot spell, and has no unknown token for, is a
    `UserError`."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # it has no class of its own
            raise
        raise UserError(
            f"the tokenizer cannot encode some of the text ({first_line(error)}): its vocabulary lacks characters and "
            "has no unknown token; choose another, or train one with `sslnlp tokenizer`"
        ) from error


def is_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the vocabulary holds every one of `SPECIALS`, that is, whether `train_tokenizer` made it."""
    vocabulary = tokenizer.get_vocab()
    return all(token in vocabulary for token in SPECIALS)


def special_mask(tokenizer: PreTrainedTokenizerBase) -> Bools:
    """bool [V]: which ids are special: never a target, never a replacement. V = `len(tokenizer)`.

    Covers named special tokens, extra ones, and added tokens flagged special.
    """
    return _special(tokenizer, vocabulary_size(tokenizer))


def _special(tokenizer: PreTrainedTokenizerBase, size: int) -> Bools:
    mask = np.zeros(size, dtype=np.bool_)
    mask[[i for i in tokenizer.all_special_ids if i is not None]] = True
    mask[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
    return mask


def drawable_ids(tokenizer: PreTrainedTokenizerBase) -> Ints:
    """int64 [K]: ids that may stand in as random replacements: of the vocabulary, neither special nor added."""
    ids = _ids(tokenizer)
    present = np.zeros(max(len(tokenizer), int(ids.max(initial=-1)) + 1), dtype=np.bool_)
    present[ids] = True  # a vocabulary may have holes
    present[list(tokenizer.added_tokens_decoder)] = False
    drawable: Ints = np.flatnonzero(present & ~_special(tokenizer, len(present))).astype(np.int64)
    return drawable


def forget_last_call(tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes out how the last texts were cut and padded, which a tokenizer would be saved with, and loaded as if these
    were options of its own."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id: the length of a table indexed by id."""
    return max(len(tokenizer), int(_ids(tokenizer).max(initial=-1)) + 1)


def _ids(tokenizer: PreTrainedTokenizerBase) -> Ints:
    vocabulary = tokenizer.get_vocab()
    return np.fromiter(vocabulary.values(), np.int64, len(vocabulary))


def special_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    """The id of `cls`, `sep`, `bos`, `eos`, `pad`, `mask` or `unk`, or None when the tokenizer has no such token."""
    value: Any = getattr(tokenizer, f"{role}_token_id", None)
    return None if value is None else int(value)
