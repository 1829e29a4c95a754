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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sslnlp.data import split
from sslnlp.data import text as plain
from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.prepare import (
    Prepared,
    bars,
    decide,
    decided,
    fingerprint,
    lock,
    open_part,
    prepared,
    texts_of,
    valid_texts,
    write_facts,
)
from sslnlp.data.sources import Source, text_column
from sslnlp.data.store import TokenStore, open_array
from sslnlp.data.tokens import TokenWriter, build_store
from sslnlp.errors import UserError

NOTE = np.dtype([("hash", "<u8"), ("chars", "<i8"), ("stored", "?")])
"""Of a document: its hash, its characters (-1: only white space), whether its tokens are in the shard's store."""
BLOCK = 1024
"""Documents dealt to a shard at a time where files cannot be."""
UNEVEN = 1.25
"""Files are dealt out whole unless a shard would get this many times its share of the bytes."""
COPIED_TOKENS = 1 << 22
"""Tokens read at a time when shards are joined."""
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
            parts = _Parts(_complete(root, key))
            aside = root / f".{final.name}.joining"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            with bars(progress) as bar:
                decide(config, parts.documents(), valid, aside, bar("deciding", None))
                decided(train, aside)
                if valid is not None:
                    build_store(valid_texts(config, valid), tokenizer, aside / "valid", fingerprint=f"{key}-valid")
                for name, decision in (("valid", split.VALID), ("train", split.TRAIN)):
                    decisions = open_array(aside / "decisions.bin", np.uint8)
                    if name == "train" or (decisions == decision).any():
                        advance = bar(f"joining {name}", None)
                        parts.copy(decisions, decision, aside / name, tokenizer, f"{key}-{name}", advance)
            write_facts(aside, train, valid, tokenizer, key)
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

    def texts(self, notes: Path) -> Iterator[str]:
        """The documents to tokenise, while `notes` is written about all. A repeat inside the shard is left out."""
        seen = HashSet()
        with notes.open("wb") as file:
            for piece, texts in self._pieces():
                count = 0
                for batch in split.batches(texts):
                    note = np.zeros(len(batch), NOTE)
                    note["hash"], note["chars"] = hash_texts(batch), split.characters(batch)
                    stored = note["chars"] >= 0
                    if self.config.deduplicate:
                        stored[stored] = seen.add(note["hash"][stored])
                    note["stored"] = stored
                    file.write(note.tobytes())
                    count += len(batch)
                    yield from (text for text, wanted in zip(batch, stored.tolist(), strict=True) if wanted)
                self.pieces.append((piece, count))

    def _pieces(self) -> Iterator[tuple[int, Iterable[str]]]:
        owners = self._owners()
        if owners is None:
            yield from self._blocks()
            return
        files = [(kind, file) for kind, files in self.source.files.items() for file in files]
        column, how = self._settled()
        for piece, (kind, file) in enumerate(files):
            if owners[piece] == self.shard.number:
                alone = replace(self.source, files={kind: [file]}, hub=[])
                yield piece, alone.documents(None if kind == ".txt" else column, how)

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

    def _blocks(self) -> Iterator[tuple[int, Iterable[str]]]:
        texts, piece = texts_of(self.source, self.config), 0
        while block := list(islice(texts, BLOCK)):
            if piece % self.shard.of == self.shard.number - 1:
                yield piece, block
            piece += 1


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


@dataclass
class _Piece:
    """A run of documents that lie together in one shard."""

    folder: Path
    notes: slice
    first: int
    """Number, in the shard's store, of its first stored document."""


class _Parts:
    """The documents of all shards in the order of the corpus."""

    def __init__(self, folders: list[Path]) -> None:
        self._notes = {folder: open_array(folder / "notes.npy", NOTE) for folder in folders}
        self._stores = {folder: TokenStore(folder / "store") for folder in folders}
        pieces: dict[int, _Piece] = {}
        for folder, notes in self._notes.items():
            at = first = 0
            for number, documents in np.load(folder / "pieces.npy").tolist():
                span = slice(at, at + documents)
                pieces[number] = _Piece(folder, span, first)
                at += documents
                first += int(notes["stored"][span].sum())
            if at != len(notes) or first != len(self._stores[folder]):
                raise UserError(f"the shard {folder} is damaged: remove it and make it again")
        if sorted(pieces) != list(range(len(pieces))):
            raise UserError(f"the shards in {folders[0].parent} overlap or leave gaps: remove them and make them again")
        self._pieces = [pieces[number] for number in range(len(pieces))]

    def documents(self) -> Iterator[split.Documents]:
        """What `split.scan` decides on."""
        for piece in self._pieces:
            notes, offsets = self._notes[piece.folder][piece.notes], self._stores[piece.folder].offsets
            index = piece.first + np.cumsum(notes["stored"]) - 1  # in the store, where stored
            for start in range(0, len(notes), BLOCK):
                block, own = notes[start : start + BLOCK], index[start : start + BLOCK]

                def count(i: int, own: npt.NDArray[Any] = own, offsets: npt.NDArray[Any] = offsets) -> int:
                    return int(offsets[own[i] + 1] - offsets[own[i]])

                yield split.Documents(block["hash"], block["chars"], count)

    def copy(
        self,
        decisions: npt.NDArray[np.uint8],
        wanted: int,
        directory: Path,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        advance: Callable[[int], None],
    ) -> None:
        """Write the store of all documents about which `wanted` was decided."""
        writer = TokenWriter(directory, tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=True))
        at = 0
        try:
            for piece in self._pieces:
                stored = self._notes[piece.folder][piece.notes]["stored"]
                mine = decisions[at : at + len(stored)][stored] == wanted
                at += len(stored)
                for ids, lengths, num_bytes in _chosen(self._stores[piece.folder], piece.first, mine):
                    writer.add(ids, lengths, num_bytes)
                    advance(len(lengths))
            writer.finish(name)
        finally:
            writer.close()


def _chosen(
    store: TokenStore, first: int, mine: npt.NDArray[np.bool_]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Of the documents of `store` from `first` on, those that are `mine`, in batches: ids, and of each its number of
    ids and of bytes."""
    start, end = first, first + len(mine)
    while start < end:
        # As many documents as fit the batch, at least one.
        limit = int(np.searchsorted(store.offsets, store.offsets[start] + COPIED_TOKENS, "right")) - 1
        stop = min(max(start + 1, limit), end)
        offsets, wanted = store.offsets[start : stop + 1], mine[start - first : stop - first]
        lengths = np.diff(offsets)
        ids = store.run(int(offsets[0]), int(offsets[-1]))[np.repeat(wanted, lengths)]
        yield ids, lengths[wanted], store.byte_counts[start:stop][wanted]
        start = stop
