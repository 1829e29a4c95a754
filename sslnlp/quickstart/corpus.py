"""The quickstart's data on disk: text, labels, pairs and a search task, split so that nothing leaks.

One split serves every task: a module (and each help topic) is held out as a whole, by the hash of its name. Text of
held-out modules is in no training file, so a class's methods, or functions documented from one template, stay on
one side.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.quickstart.harvest import Entry, Harvest
from sslnlp.writing import replacing, write_json, write_lines

HELD_OUT_SHARE = 0.15
VALID_CHARACTERS = 150_000
"""Held-out text that pretraining is measured on: enough for a steady figure, little enough to be read in seconds."""
MASK_WORD = "thislibrary"
"""Stands where a text named any of the labelled libraries, so that the label is not literally given."""
ALIASES: Mapping[str, tuple[str, ...]] = {
    "numpy": ("np",),
    "pandas": ("pd",),
    "pyarrow": ("pa", "arrow"),
    "networkx": ("nx",),
    "torch": ("pytorch",),
    "scikit-learn": ("sklearn", "scikit"),
    "huggingface-hub": ("hf", "hugging face", "huggingface"),
}
"""Spellings that package names do not show: prose names and the customary import abbreviations."""


@dataclass(frozen=True)
class Corpus:
    """Where the files are, and what they hold."""

    train_text: Path
    """`{"text"}` per line: the documentation of the modules that are not held out."""
    valid_text: Path
    """`{"text"}` per line: held-out modules, as many entries as fit `VALID_CHARACTERS`."""
    labelled: Mapping[str, Path]
    """`{"text", "label"}` per line: `train` and `test`."""
    pairs: Path
    """`{"query", "positive"}` per line: summary line and body, from the modules that are not held out."""
    beir: Path
    """A BEIR folder from the held-out modules: each query's one relevant document is its own body."""
    labels: tuple[str, ...]
    facts: Mapping[str, Any]


def write_corpus(
    found: Harvest, out: Path, *, classes: int = 12, per_class: int = 400, test: int = 40, least: int = 64
) -> Corpus:
    """Write every file of the quickstart under `out`.

    classes: at most this many libraries become labels, those with the most documentation. per_class: cap of the
    training rows of a class. test: rows of each class in the test file (the same for all, so guessing is right one
    time in `classes`). least: a library with fewer training entries is not a label.
    Raises UserError when too little documentation was found to build the tasks.
    """
    out.mkdir(parents=True, exist_ok=True)
    train = [e for e in found.entries if not held_out(e)]
    valid = [e for e in found.entries if held_out(e)]
    labelled, labels = _labelled(found, train, valid, classes, {"train": per_class, "test": test}, least)
    pairs, held_out_pairs = _pairs(train), _pairs(valid)
    if len(labels) < 2 or not pairs or not held_out_pairs:
        raise UserError(
            f"only {len(found.entries):,} documented objects found in this installation, too few for the quickstart; "
            "install sslnlp with its dependencies from packages that carry their Python sources"
        )
    texts = {"train": [{"text": e.text} for e in train], "valid": [{"text": e.text} for e in _capped(valid)]}
    paths = {name: _write(out / f"text-{name}.jsonl", rows) for name, rows in texts.items()}
    folder = _write_beir(out / "beir", held_out_pairs)
    facts = {
        **dict(found.counts),
        "train characters": sum(len(e.text) for e in train),
        "held-out characters": sum(len(row["text"]) for row in texts["valid"]),
        "train entries": len(train),
        "held-out entries": len(valid),
        "pairs": len(pairs),
        "search queries": len(held_out_pairs),
        "labels": list(labels),
        "labelled examples": {name: len(rows) for name, rows in labelled.items()},
        "fingerprint": fingerprint(found),
    }
    write_json(out / "corpus.json", facts)
    return Corpus(
        train_text=paths["train"],
        valid_text=paths["valid"],
        labelled={name: _write(out / f"labelled-{name}.jsonl", rows) for name, rows in labelled.items()},
        pairs=_write(out / "pairs.jsonl", [{"query": e.summary, "positive": e.body} for e in pairs]),
        beir=folder,
        labels=labels,
        facts=facts,
    )


def fingerprint(found: Harvest) -> str:
    """What tells the texts of one installation from those of another."""
    return hashlib.blake2b("\n".join(e.text for e in found.entries).encode(), digest_size=8).hexdigest()


def held_out(entry: Entry) -> bool:
    """Whether the entry's module is held out: a function of the library's and the module's name alone."""
    return _order(f"{entry.library}:{entry.module}") < HELD_OUT_SHARE


def _order(text: str) -> float:
    """A number in [0, 1) from the hash of `text`: splits and draws that do not depend on what else is there."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2.0**64


def _capped(entries: Iterable[Entry]) -> list[Entry]:
    """Entries in hash order until `VALID_CHARACTERS` are reached."""
    kept, total = [], 0
    for entry in sorted(entries, key=lambda e: (_order(f"valid:{e.library}:{e.name}"), e)):
        if total < VALID_CHARACTERS:
            kept.append(entry)
            total += len(entry.text)
    return kept


def _labelled(
    found: Harvest, train: list[Entry], valid: list[Entry], classes: int, caps: Mapping[str, int], least: int
) -> tuple[dict[str, list[dict[str, str]]], tuple[str, ...]]:
    """Masked training and test rows, and the labels chosen."""
    n_train, n_test = Counter(e.library for e in train), Counter(e.library for e in valid)
    able = [name for name in n_train if n_train[name] >= least and n_test[name] >= caps["test"]]
    labels = tuple(sorted(sorted(able, key=lambda name: (-n_train[name], name))[:classes]))
    mask = name_mask({name: found.names.get(name, (name,)) for name in labels})

    seen: set[str] = set()

    def rows(entries: Iterable[Entry], cap: int) -> list[dict[str, str]]:
        taken: Counter[str] = Counter()
        kept = []
        for entry in sorted(entries, key=lambda e: (_order(f"draw:{e.library}:{e.name}"), e)):
            text = mask.sub(MASK_WORD, entry.text)
            # Two texts may differ in nothing but the name that was masked: only the first is kept.
            if entry.library in labels and taken[entry.library] < cap and text not in seen:
                seen.add(text)
                taken[entry.library] += 1
                kept.append({"text": text, "label": entry.library})
        return kept

    test = rows(valid, caps["test"])  # first, so that the test file stays balanced
    return {"train": rows(train, caps["train"]), "test": test}, labels


def name_mask(names: Mapping[str, Iterable[str]]) -> re.Pattern[str]:
    """Matches every labelled library's name and alias as a whole word, any case."""
    words = {word for label, given in names.items() for word in (label, *given, *ALIASES.get(label, ()))}
    spelled = {re.escape(word).replace(r"\-", "[-_ ]") for word in words if word.strip("_")}
    longest_first = "|".join(sorted(spelled, key=lambda w: (-len(w), w)))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{longest_first})(?![A-Za-z0-9])", re.IGNORECASE)


def _pairs(entries: Iterable[Entry]) -> list[Entry]:
    """Entries whose summary is a usable query and whose body can answer it; repeated summaries keep their first."""
    kept: dict[str, Entry] = {}
    for entry in entries:
        query = entry.summary
        usable = len(query.split()) >= 4 and len(query) <= 200 and len(entry.body) >= 120
        if usable and query.lower() not in entry.body.lower():
            kept.setdefault(query.lower(), entry)
    return list(kept.values())


def _write_beir(folder: Path, pairs: Sequence[Entry]) -> Path:
    """`corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`; identifiers are numbers, so names cannot help a ranker."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": e.body} for i, e in enumerate(pairs)])
    _write(folder / "queries.jsonl", [{"_id": f"q{i}", "text": e.summary} for i, e in enumerate(pairs)])
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(pairs)))]
    with replacing(folder / "qrels" / "test.tsv") as file:
        file.write("\n".join(lines) + "\n")
    return folder


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    write_lines(path, rows)
    return path
