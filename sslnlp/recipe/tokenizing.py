"""`sslnlp tokenizer`: a tokenizer of its own, for several runs to share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sslnlp.data.config import OptionData
from sslnlp.data.prepare import sample_texts
from sslnlp.errors import UserError
from sslnlp.locks import exclusive
from sslnlp.recipe.build import TOKENIZER_BYTES, contract_of
from sslnlp.tokenizer import train_tokenizer
from sslnlp.writing import room_in, write_json


def make_tokenizer(
    data: Sequence[str], out: Path, *, text: str | None = None, console: Console | None = None, **options: Any
) -> Path:
    """Train a tokenizer on `data`, print its contract and write both to the folder `out`.

    `options` are those of `train_tokenizer`. Raises `UserError` when `out` is taken or cannot be written.
    """
    console = console or Console()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists: choose another --out, or delete it")
    config = OptionData(train=list(data), text=text, options={"text": "--text"})
    tokenizer = train_tokenizer(sample_texts(config, TOKENIZER_BYTES), **options)
    kept = contract_of(tokenizer, sample_texts(config, TOKENIZER_BYTES))
    aside = out.with_name(f".{out.name}.beginning")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(out.with_name(f".{out.name}.lock"), f"writing {out}"):
            try:
                shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
                aside.mkdir()
                with room_in(out):
                    tokenizer.save_pretrained(aside)
                write_json(aside / "contract.json", kept.to_dict())
                os.rename(aside, out)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error
    # Not broken to the width of a terminal: a path that is must be put together again by who copies it.
    console.print(kept.table(), highlight=False, markup=False, soft_wrap=True)
    last = f"{len(tokenizer):,} tokens in {out}; use it with tokenizer.path={out}"
    console.print(last, highlight=False, markup=False, soft_wrap=True)
    return out
