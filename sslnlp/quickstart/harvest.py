"""Real technical English that every installation already carries: the documentation of its libraries.

Docstrings are read with `ast`, so nothing is imported or run, and the help topics of `pydoc` come along. What is
left out: tests, vendored copies of other projects, objects whose name starts with an underscore, and exact
duplicates. The order is fixed by names alone, so the same installed versions give the same corpus.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

STDLIB = "python"
"""The label of the standard library and its help topics."""
ROOTS = ("accelerate", "bm25s", "datasets", "evaluate", "jinja2", "scikit-learn", "torch", "transformers", "typer")
"""What this package stands on; their own dependencies (numpy, pandas, sympy, ...) are followed."""
_TESTS = ("test", "tests", "testing", "benchmarks", "examples", "conftest")
_COPIES = ("vendor", "vendored", "_vendor", "_vendored", "third_party", "extern", "externals")
_NOT_THE_LIBRARY = ("site-packages", "dist-packages", "ensurepip", "idlelib", "lib2to3", "__pycache__")
SKIPPED_FOLDERS = frozenset([*_TESTS, *_COPIES, *_NOT_THE_LIBRARY])
MIN_CHARACTERS = 60
"""Shorter docstrings ("Returns the name.") say too little to learn from or to search for."""
MAX_FILE_BYTES = 400_000
"""A larger source file is generated code (tables, schemas), slow to parse and poor in prose."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Library:
    """One documented library: its label, the names it goes by in prose and code, and its source files."""

    label: str
    names: tuple[str, ...]
    files: tuple[tuple[str, Path], ...]
    """(path relative to the installation, absolute path), sorted by the first."""


@dataclass(frozen=True, order=True)
class Entry:
    """The documentation of one module, class, function or help topic."""

    library: str
    module: str
    name: str
    summary: str
    body: str

    @property
    def text(self) -> str:
        """Summary and body, as a reader sees them."""
        return f"{self.summary}\n\n{self.body}" if self.body else self.summary


@dataclass
class Harvest:
    """What was found: entries in a fixed order, and what was passed over and why."""

    entries: list[Entry] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Label -> the names the library goes by."""
    counts: Counter[str] = field(default_factory=Counter)
    """Files read, files skipped by reason, duplicates dropped, characters kept."""


def harvest(libraries: Sequence[Library] | None = None, *, source_bytes: int = 3_000_000) -> Harvest:
    """Read the documentation of `libraries` (default: everything `installed()` finds).

    `source_bytes` caps the source read from each library, so that no single one fills the corpus; the files of a
    larger library are drawn by the hash of their path. Files that do not parse or decode are skipped and counted.
    """
    found = Harvest()
    seen: set[bytes] = set()
    for library in installed() if libraries is None else libraries:
        found.names[library.label] = library.names
        entries: list[Entry] = []
        for relative, path in _drawn(library.files, source_bytes):
            entries.extend(_read(library.label, relative, path, found.counts))
        for entry in sorted(entries):
            fingerprint = hashlib.blake2b(" ".join(entry.text.lower().split()).encode(), digest_size=12).digest()
            if fingerprint in seen:
                found.counts["duplicates dropped"] += 1
                continue
            seen.add(fingerprint)
            found.counts["characters"] += len(entry.text)
            found.entries.append(entry)
    found.counts["entries"] = len(found.entries)
    return found


def installed() -> list[Library]:
    """The standard library, then the installed dependencies by label.

    The dependencies are `ROOTS` and theirs in turn: other things in the same environment do not change the corpus.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [(path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")]
    libraries = [Library(STDLIB, (STDLIB,), _kept(files))]
    for distribution in _dependencies():
        label = distribution.metadata["Name"].lower().replace("_", "-")
        listed = [(str(f), Path(str(f.locate()))) for f in distribution.files or () if f.suffix == ".py"]
        kept = _kept(listed)
        if kept:
            packages = {relative.split("/")[0].removesuffix(".py") for relative, _ in kept}
            libraries.append(Library(label, tuple(sorted({label, *packages})), kept))
    return libraries


def _dependencies() -> list[metadata.Distribution]:
    """The installed distributions reachable from `ROOTS` without extras, sorted by name."""
    present = {_canonical(d.metadata["Name"]): d for d in metadata.distributions() if d.metadata["Name"]}
    wanted = set(ROOTS)
    queue = list(ROOTS)
    while queue:
        distribution = present.get(queue.pop())
        for requirement in (distribution.requires if distribution else None) or ():
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            if match and "extra ==" not in requirement and (name := _canonical(match.group())) not in wanted:
                wanted.add(name)
                queue.append(name)
    return [present[name] for name in sorted(wanted & present.keys())]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _kept(files: Iterable[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    def skipped(relative: str) -> bool:
        *folders, name = relative.split("/")
        return not SKIPPED_FOLDERS.isdisjoint(folders) or name.startswith(("test_", "conftest")) or ".." in folders

    return tuple(sorted((relative, path) for relative, path in files if not skipped(relative)))


def _drawn(files: Sequence[tuple[str, Path]], source_bytes: int) -> Iterator[tuple[str, Path]]:
    """Files in the order of their path's hash until `source_bytes` are reached; help topics always."""
    total = 0
    for relative, path in sorted(files, key=lambda f: hashlib.blake2b(f[0].encode(), digest_size=8).digest()):
        if relative == "pydoc_data/topics.py":
            yield relative, path
            continue
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if size <= MAX_FILE_BYTES and total < source_bytes:
            total += size
            yield relative, path


def _read(label: str, relative: str, path: Path, counts: Counter[str]) -> Iterator[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not ours to report
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        counts[f"files skipped: {type(error).__name__}"] += 1
        return
    counts["files read"] += 1
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    documented = _topics(tree) if relative == "pydoc_data/topics.py" else _docstrings(tree)
    for name, text in documented:
        # Each help topic is a module of its own for the split: topics are long, and independent of each other.
        owner = f"{module}.{name}" if relative == "pydoc_data/topics.py" else module
        summary, body = split_summary(text)
        if len(summary) + len(body) >= MIN_CHARACTERS:
            yield Entry(label, owner, f"{module}.{name}" if name else module, summary, body)


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(qualified name inside the module, docstring) of the module and its public classes, methods and functions."""
    pending: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]] = [("", tree)]
    while pending:
        name, node = pending.pop()
        text = ast.get_docstring(node, clean=False)
        if text:
            yield name, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name[0] != "_":
                    pending.append((f"{name}.{child.name}" if name else child.name, child))


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The help topics of `pydoc_data/topics.py`: a dictionary literal from name to text."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in ast.literal_eval(node.value).items():
                yield str(key), str(value)


def split_summary(text: str) -> tuple[str, str]:
    """(first paragraph on one line, the rest) of a docstring, dedented, without control characters.

    A title underlined with punctuation, and the ruler itself, are layout and not prose: the ruler is dropped.
    """
    cleaned = inspect.cleandoc(_CONTROL.sub("", text.expandtabs(4).encode("utf-8", "ignore").decode()))
    lines = [line.rstrip() for line in cleaned.split("\n") if not re.fullmatch(r"\s*([=\-~*^#_+.`'\"])\1{3,}\s*", line)]
    paragraphs = "\n".join(lines).strip().split("\n\n", 1)
    return " ".join(paragraphs[0].split()), paragraphs[1].strip("\n") if len(paragraphs) > 1 else ""
