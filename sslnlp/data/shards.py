"""Preparation in shards: every machine tokenises its share of the documents, and joining gives the single run's store.

Shard i of n (i counts from 1) reads whole files where they can be dealt out evenly, else it reads everything and takes
every n-th block of documents. What depends on the whole corpus (which copy of a duplicate is the first, which documents
of small hash are held out) is not decided by a shard: it notes the hash and length of each of its documents, and the
join makes the same decisions as a single run, from the same numbers in the same order.

    shards-<key>/2-of-8/   store/ (see `store`)  notes.npy (NOTE, one a document)  pieces.npy  shard.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.data import joining
from sslnlp.data import text as plain
from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import HashSet
from sslnlp.data.joining import NOTE, Parts, noted
from sslnlp.data.prepare import Prepared, bars, fingerprint, join, lock, open_part, prepared, runs_of
from sslnlp.data.sources import Source, text_column
from sslnlp.data.texts import Texts, regrouped
from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError

UNEVEN = 1.25
"""Files are dealt out whole unless a shard would get this many times its share of the bytes."""
_SPELLING = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `2/8`. Raises `UserError` for anything but 1/n to n/n."""
        match = _SPELLING.fullmatch(text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text}: write i/n with i from 1 to n, for instance 1/8 ... 8/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"


def prepare_shard(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    shard: Shard,
    *,
    cache_dir: str | Path,
    progress: bool = True,
) -> Path:
    """Read and tokenise one shard of `data.train`, and return its folder; a killed one goes on where it was.

    Nothing is done when the shard is there already. Raises `UserError` for a wrong source.
    """
    train, _, key = _opened(config, tokenizer, cache_dir)
    root = Path(config.cache or cache_dir)
    final = root / f"shards-{key}" / str(shard)
    with lock(root, f"shards-{key}-{shard}"):
        if not (final / "shard.json").exists():
            aside = final.with_name(f".{final.name}.building")
            aside.mkdir(parents=True, exist_ok=True)
            with bars(progress) as bar:
                dealt = _Dealt(config, train, shard)
                store = build_store(
                    dealt.texts(aside / "notes.npy"), tokenizer, aside / "store",
                    fingerprint=f"{key}-{shard}", advance=bar(f"shard {shard.number}/{shard.of}", None),
                )  # fmt: skip
            np.save(aside / "pieces.npy", np.array(dealt.pieces, np.int64).reshape(-1, 2))
            facts = {"fingerprint": key, "shard": shard.number, "of": shard.of, "documents": len(store)}
            (aside / "shard.json").write_text(json.dumps(facts) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
    return final


def merge_shards(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, cache_dir: str | Path, progress: bool = True
) -> Prepared:
    """Join all shards into the store that `prepare_text` makes, byte for byte; a later run finds it under that name.

    Raises `UserError` when shards are missing, or were made from other text, another tokenizer or other options.
    """
    train, valid, key = _opened(config, tokenizer, cache_dir)
    root = Path(config.cache or cache_dir)
    final = root / f"text-{key}"
    with lock(root, final.name):
        if not (final / "facts.json").exists():
            parts = Parts(_complete(root, key))
            aside = root / f".{final.name}.joining"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            with bars(progress) as bar:
                join(config, tokenizer, train, valid, parts, aside, key, bar)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
    return prepared(final)


def _opened(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, cache_dir: str | Path
) -> tuple[Source, Source | None, str]:
    train = open_part(config, "train", cache_dir)
    valid = open_part(config, "valid", cache_dir) if config.valid is not None else None
    return train, valid, fingerprint(config, train, valid, tokenizer)


# --- one shard -------------------------------------------------------------------------------------------------------


class _Dealt:
    """The documents of one shard, in the order of the corpus."""

    def __init__(self, config: DataConfig, source: Source, shard: Shard) -> None:
        self.config, self.source, self.shard = config, source, shard
        self.pieces: list[tuple[int, int]] = []
        """(number of the piece in the whole corpus, documents in it); known when `texts` has been walked through."""

    def texts(self, notes: Path) -> Iterator[Texts]:
        """The documents to tokenise, while `notes` is written about all. A repeat inside the shard is left out."""
        seen = HashSet() if self.config.deduplicate else None
        with notes.open("wb") as file:
            for piece, runs in self._pieces():
                before = file.tell()
                yield from noted(runs, file, seen)
                self.pieces.append((piece, (file.tell() - before) // NOTE.itemsize))

    def _pieces(self) -> Iterator[tuple[int, Iterable[Texts]]]:
        owners = self._owners()
        if owners is None:
            yield from self._blocks()
            return
        files = [(kind, file) for kind, files in self.source.files.items() for file in files]
        column, how = self._settled()
        for piece, (kind, file) in enumerate(files):
            if owners[piece] == self.shard.number:
                alone = replace(self.source, files={kind: [file]}, hub=[])
                yield piece, alone.runs(None if kind == ".txt" else column, how)

    def _owners(self) -> list[int] | None:
        """Which shard reads which file: the largest first, each to the shard with the least; None where uneven."""
        sizes = [file.stat().st_size for files in self.source.files.values() for file in files]
        if self.source.hub or self.config.limit is not None or len(sizes) < self.shard.of:
            return None
        load, owners = [0] * self.shard.of, [0] * len(sizes)
        for piece in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            least = load.index(min(load))
            load[least] += sizes[piece]
            owners[piece] = least + 1
        return owners if max(load) * self.shard.of <= UNEVEN * sum(sizes) else None

    def _settled(self) -> tuple[str | None, str]:
        """The text column and the way `.txt` files are cut, which are read off all files together."""
        files, config = self.source.files, self.config
        how = plain.resolve(files[".txt"], config.split_text) if ".txt" in files else config.split_text
        if set(files) == {".txt"}:
            return None, how
        row = next(self.source.rows(), None)
        return (text_column(row, config.text, self.source.spec) if row is not None else config.text), how

    def _blocks(self) -> Iterator[tuple[int, Iterable[Texts]]]:
        for piece, block in enumerate(regrouped(runs_of(self.source, self.config), joining.BLOCK, sys.maxsize)):
            if piece % self.shard.of == self.shard.number - 1:
                yield piece, [block]


# --- all shards ------------------------------------------------------------------------------------------------------


def _complete(root: Path, key: str) -> list[Path]:
    """The folders of all shards of one set. Raises `UserError` when there is no whole set."""
    place = root / f"shards-{key}"
    sets: dict[int, dict[int, Path]] = {}
    for path in place.glob("*-of-*/shard.json"):
        facts = json.loads(path.read_text())
        if facts["fingerprint"] != key:
            raise UserError(f"{path.parent} was made from other text, another tokenizer or other data keys; remove it")
        sets.setdefault(facts["of"], {})[facts["shard"]] = path.parent
    whole = [found for of, found in sets.items() if len(found) == of]
    if whole:
        return list(whole[0].values())
    if not sets:
        others = " (those there are were made from other text, another tokenizer or other data keys)"
        raise UserError(
            f"no shards of this recipe are in {root}{others if any(root.glob('shards-*')) else ''}: make them with "
            "--shard 1/n ... n/n and the same keys, in the same data.cache or copied into it"
        )
    of, found = max(sets.items(), key=lambda one: len(one[1]) / one[0])
    missing = [str(number) for number in range(1, of + 1) if number not in found]
    raise UserError(f"of {of} shards {', '.join(missing)} are missing in {place}: make each with --shard i/{of}")
