"""The tokenizer of a recipe, given or trained on its text; and `sslnlp tokenizer`: one for several runs to share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from sslnlp.data.config import OptionData
from sslnlp.data.prepare import sample_texts
from sslnlp.errors import UserError
from sslnlp.locks import exclusive, in_turn
from sslnlp.recipe.schema import Recipe
from sslnlp.tokenizer import Contract, contract, load_tokenizer, pad_by_end, set_framing, train_tokenizer
from sslnlp.writing import room_in, write_json

log = logging.getLogger(__name__)

LOST = 0.01
"""The share of characters that may be unknown to a tokenizer before it is told."""

TOKENIZER_BYTES = 100 << 20
"""Text a tokenizer is trained on at most: word counts of more change a vocabulary of this size hardly at all."""
CONTRACT_TEXTS, CONTRACT_CHARACTERS = 200, 2000


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


def text_tokenizer(recipe: Recipe, cache: Path, path: Path | None = None) -> tuple[PreTrainedTokenizerBase, Contract]:
    """The tokenizer of a recipe that reads raw text, given or trained on it, and its contract."""
    # The contract of a tokenizer that is given is taken on the beginning of the text: much text is not read for it.
    trained = path is None and recipe.tokenizer.path is None
    return recipe_tokenizer(recipe, lambda: sample_texts(recipe.data, TOKENIZER_BYTES, spread=trained), cache, path)


def recipe_tokenizer(
    recipe: Recipe, texts: Callable[[], Iterator[str]], cache: Path, path: Path | None
) -> tuple[PreTrainedTokenizerBase, Contract]:
    """The tokenizer of a recipe, framed as the objective reads, and its contract, which the collator's needs meet."""
    chosen = path or recipe.tokenizer.path
    tokenizer = load_tokenizer(str(chosen)) if chosen is not None else _trained_tokenizer(recipe, texts, cache)
    set_framing(tokenizer, recipe.objective_class.framing)
    if pad_by_end(tokenizer, recipe.collator_class.requires):
        log.warning("the tokenizer has no padding token: its end-of-text token %s pads", tokenizer.eos_token)
    kept = contract_of(tokenizer, texts())
    kept.require(sorted(recipe.collator_class.requires))
    if (lost := kept.figures["unknown_rate"]) > LOST:
        log.warning(
            "%s stands for %.1f %% of the text's characters, which the model never sees: train a tokenizer with "
            "tokenizer.algorithm=bpe, unigram or bytes", tokenizer.unk_token, 100 * lost,
        )  # fmt: skip
    end = tokenizer("a")["input_ids"][-1:] if recipe.objective_class.framing == "decoder" else []
    if end and end[0] in tokenizer.all_special_ids:  # made for encoders; BERT's kind puts it back whenever it is loaded
        token = tokenizer.convert_ids_to_tokens(end[0])
        log.warning("this tokenizer puts %s behind a prompt: generate with add_special_tokens=False", token)
    return tokenizer, kept


def _trained_tokenizer(recipe: Recipe, texts: Callable[[], Iterator[str]], cache: Path) -> PreTrainedTokenizerBase:
    """Trained once for (the text, how it is trained), then found in the cache."""
    options = {name: value for name, value in asdict(recipe.tokenizer).items() if name != "path"}
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=12)
    for text in texts():
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    place = cache / "tokenizers" / digest.hexdigest()
    if not (place / "tokenizer_config.json").is_file():
        with in_turn(cache, "tokenizer"):  # of runs or shards that start together one trains it, the others find it
            if not (place / "tokenizer_config.json").is_file():
                _train_tokenizer_into(place, texts(), options)
    return load_tokenizer(str(place))


def _train_tokenizer_into(place: Path, texts: Iterator[str], options: dict[str, Any]) -> None:
    if options["algorithm"] != "bytes":  # its vocabulary is there from the beginning
        log.info("training a %s tokenizer of %d tokens", options["algorithm"], options["vocab_size"])
    trained = train_tokenizer(texts, **options)
    aside = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
    trained.save_pretrained(aside)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(aside, place)


def contract_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Contract:
    """The contract on the beginnings of the first texts: enough to tell, whatever the length of a document."""
    sample = [text[:CONTRACT_CHARACTERS] for text in islice((text for text in texts if text.strip()), CONTRACT_TEXTS)]
    if not sample:
        raise UserError("there is no text in data.train: it is empty, only white space, or all of it is held out")
    return contract(tokenizer, sample)
