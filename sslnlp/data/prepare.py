"""Sources -> token stores of training and held-out text, cached by content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.data import split
from sslnlp.data.config import DataConfig, all_held_out
from sslnlp.data.dealing import Shard, read_share
from sslnlp.data.encoding import BATCH_CHARS, by_size, split_long, tokenizer_fingerprint
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.joining import Parts
from sslnlp.data.processes import processes_of, read_in_processes
from sslnlp.data.sources import Source, open_part
from sslnlp.data.store import TokenStore, open_array
from sslnlp.data.texts import Texts
from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError
from sslnlp.locks import in_turn
from sslnlp.quiet import passing_bars
from sslnlp.writing import write_json

log = logging.getLogger(__name__)

_VERSION = 1
"""Of the layout and of what is done to the text: a change makes old caches be built anew."""

Bar = Callable[[str, int | None], Callable[[int], None]]


@dataclass
class Prepared:
    """Token stores and what was learnt while making them."""

    train: TokenStore
    valid: TokenStore | None
    facts: dict[str, Any]
    """JSON-able: documents, tokens, bytes, duplicates, overlap, empty, valid, sources, fingerprint."""


def prepare_text(config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, cache_dir: str | Path) -> Prepared:
    """Read, clean, split and tokenise the text of `config`.

    Empty documents and exact duplicates are dropped and counted, and so is training text that is held out in
    `data.valid`; without `data.valid`, documents of small hash are held out. The stores lie in `cache_dir` under a name
    made of the content, the tokenizer and the options, so nothing is done twice; a killed build goes on where it was.

    Raises:
        UserError: the source is wrong (see `sources`), or no text is left.
    """
    train, valid, key = opened(config, tokenizer, cache_dir)
    root = Path(config.cache or cache_dir)
    final = root / f"text-{key}"
    with in_turn(root, final.name):
        if not (final / "facts.json").exists():
            if (root / f"shards-{key}").is_dir():
                log.warning("shards of this text are in %s, not joined: sslnlp prepare ... --merge would do it", root)
            aside = root / f".{final.name}.building"
            aside.mkdir(parents=True, exist_ok=True)
            with bars() as bar:
                _build(config, tokenizer, train, valid, aside, key, cache_dir, bar)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
    return prepared(final)


def prepared(folder: Path) -> Prepared:
    """What lies in a finished folder."""
    facts = json.loads((folder / "facts.json").read_text())
    has_valid = (folder / "valid" / "store.json").exists()
    return Prepared(TokenStore(folder / "train"), TokenStore(folder / "valid") if has_valid else None, facts)


def sample_texts(config: DataConfig, n_bytes: int, *, spread: bool = True) -> Iterator[str]:
    """About `n_bytes` of training text, spread evenly over the corpus, in pieces of at most 64 Ki characters.

    What a tokenizer is trained on: text that is or may be held out is not among it. A corpus is read twice, once to
    know its size and what is held out of it. A stream, or without `spread` anything, is read once, from its beginning:
    of a very small one the document that is held out in any case may be among it. Raises `UserError` where all text is
    in `data.valid` too.
    """
    source = open_part(config, "train", config.cache)
    valid = _hash_all(open_part(config, "valid", config.cache), config) if config.valid is not None else None
    fraction = config.valid_fraction if valid is None else 0.0
    share, held = 1.0, int(fraction * 2**64)
    if spread and not config.streaming:
        held_out = split.HeldOut(fraction, config.valid_tokens)
        total, smallest = _measure(texts_of(source, config), held_out, HashSet() if config.deduplicate else None)
        share, held = min(1.0, n_bytes / max(1, total)), max(held, smallest)
    left = n_bytes
    given = overlap = False
    for batch in by_size(texts_of(source, config), len, 4 * BATCH_CHARS):
        hashes = hash_texts(batch)
        leaked = valid.contains(hashes) if valid is not None else [False] * len(batch)
        trains = split.too_long(np.array([len(text) for text in batch], np.int64), config.valid_tokens)
        for text, number, known, always in zip(batch, hashes.tolist(), leaked, trains, strict=True):
            overlap |= bool(known)
            if known or (number < held and not always):
                continue
            # The low bits draw the sample, the whole hash the held-out side: the two are independent. Of a long text
            # each piece is drawn by itself, as few of them would be none or all of it.
            pieces = list(split_long(text))
            drawn = hash_texts(pieces).tolist() if len(pieces) > 1 else [number] * len(pieces)
            for piece, draw in zip(pieces, drawn, strict=True):
                if (draw & 0xFFFFFFFF) >= share * 2**32 * 1.02:
                    continue
                left -= len(piece.encode("utf-8", "surrogatepass"))
                given = given or bool(piece.strip())
                yield piece
                if left <= 0:
                    return
    if overlap and not given:
        raise all_held_out(config)


def _measure(texts: Iterator[str], held_out: split.HeldOut, seen: HashSet | None) -> tuple[int, int]:
    """Bytes of all texts, and the hash below which one may be held out, with `seen` each different one counting once as
    in `split.scan`: of few, that may be none below the share."""
    total = 0
    for batch in by_size(texts, len, 4 * BATCH_CHARS):
        total += sum(len(text.encode("utf-8", "surrogatepass")) for text in batch)
        chars = np.array([len(text) if text.strip() else -1 for text in batch], np.int64)
        hashes, eligible = hash_texts(batch), chars >= 0
        if seen is not None:
            eligible[eligible] = seen.add(hashes[eligible])
        held_out.offer(split.Documents(hashes, chars, lambda i: 0), eligible)
    return total, held_out.bound()


def texts_of(source: Source, config: DataConfig) -> Iterator[str]:
    """The training documents, up to `data.limit`."""
    return islice(source.documents(config.text, config.split_text), config.limit)


def opened(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, cache_dir: str | Path
) -> tuple[Source, Source | None, str]:
    """Training and held-out source, and the name of their preparation: made of the content, the tokenizer, and the
    options that decide what is stored."""
    train = open_part(config, "train", cache_dir)
    valid = open_part(config, "valid", cache_dir) if config.valid is not None else None
    options = (config.text, config.split_text, config.limit, config.deduplicate)
    held_out = valid.fingerprint if valid else (config.valid_fraction, config.valid_tokens)
    what = (_VERSION, train.fingerprint, held_out, tokenizer_fingerprint(tokenizer), options)
    return train, valid, hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()


def _build(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Source,
    valid: Source | None,
    aside: Path,
    key: str,
    cache_dir: str | Path,
    bar: Bar,
) -> None:
    read = aside / "read"
    if (aside / "facts.json").exists():  # killed while it removed what is not needed any more
        shutil.rmtree(read, ignore_errors=True)
        return
    read.mkdir(exist_ok=True)
    of, advance = processes_of(config, train), bar("tokenising", None)
    if of == 1:
        folders = [read / "1-of-1"]
        read_share(config, train, Shard(1, 1), tokenizer, folders[0], fingerprint=key, advance=advance)
    else:
        folders = read_in_processes(config, tokenizer, read, of, fingerprint=key, cache_dir=cache_dir, advance=advance)
    join(config, tokenizer, train, valid, Parts(folders), aside, key, bar)
    shutil.rmtree(read)


def join(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Source,
    valid: Source | None,
    parts: Parts,
    aside: Path,
    key: str,
    bar: Bar,
) -> None:
    """Decide about all documents, and write into the folder `aside` the stores, and then what was learnt.

    Raises `UserError`, and removes the folder, when no text is left.
    """
    known = _hash_all(valid, config) if valid is not None else None
    held_out = split.HeldOut(config.valid_fraction, config.valid_tokens) if valid is None else None
    scanned = split.scan(
        parts.documents(), aside, held_out=held_out, valid=known, deduplicate=config.deduplicate,
        advance=bar("deciding", None),
    )  # fmt: skip
    if not scanned.train:
        shutil.rmtree(aside)
        if scanned.overlap:
            raise all_held_out(config)
        why = f"its {scanned.read} documents are empty" if scanned.read else "it holds no documents"
        raise UserError(f"{train.spec} leaves no text to train on: {why}")
    decisions = open_array(aside / "decisions.bin", np.uint8)
    if valid is not None and not (aside / "valid" / "store.json").exists():
        texts = _valid_runs(config, valid)
        advance = bar("tokenising valid", None)
        build_store(texts, tokenizer, aside / "valid", fingerprint=f"{key}-valid", advance=advance)
    elif scanned.valid:
        parts.copy(decisions, split.VALID, aside / "valid", tokenizer, f"{key}-valid", bar("valid", scanned.valid))
    parts.copy(decisions, split.TRAIN, aside / "train", tokenizer, f"{key}-train", bar("train", scanned.train))
    _write_facts(aside, scanned, train, valid, tokenizer, key)


def _valid_runs(config: DataConfig, valid: Source) -> Iterator[Texts]:
    """The documents of `data.valid` that hold text. Raises `UserError`, at the end, when there were none."""
    empty = True
    for run in valid.runs(config.text, config.split_text):
        kept = run.characters() >= 0
        empty &= not kept.any()
        yield run.select(kept)
    if empty:
        raise UserError(f"{valid.spec} (data.valid) holds no text")


def _write_facts(
    aside: Path, scanned: split.Scan, train: Source, valid: Source | None, tokenizer: PreTrainedTokenizerBase, key: str
) -> None:
    """The last file of a preparation: what was learnt, beside the finished stores."""
    stores = {name: TokenStore(aside / name) for name in ("train", "valid") if (aside / name / "store.json").exists()}
    (aside / "decisions.bin").unlink()
    facts = {
        **_sizes(stores["train"]),
        "read": scanned.read,
        "empty": scanned.empty,
        "duplicates": scanned.duplicates,
        "overlap": scanned.overlap,
        "valid": {"from": "data.valid" if valid else "split", **_sizes(stores["valid"])} if "valid" in stores else None,
        "sources": {"train": train.spec, "valid": valid.spec if valid else None},
        "content": train.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "fingerprint": key,
    }
    write_json(aside / "facts.json", facts)


def _sizes(store: TokenStore) -> dict[str, int]:
    return {"documents": len(store), "tokens": store.num_tokens, "bytes": store.num_bytes}


def _hash_all(source: Source, config: DataConfig) -> HashSet:
    found = HashSet()
    for run in source.runs(config.text, config.split_text):
        found.add(run.hashes())
    return found


@contextmanager
def bars() -> Iterator[Bar]:
    """A maker of progress bars: `bar("reading", total)` gives the function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with passing_bars(*columns) as shown:

        def start(description: str, total: int | None) -> Callable[[int], None]:
            task = shown.add_task(description, total=total)
            return lambda n: shown.advance(task, n)

        yield start
