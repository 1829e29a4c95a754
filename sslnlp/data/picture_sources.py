"""What a spec of pictures stands for: tables with pictures, folders and lists of files, tar shards.

Opening reads captions, labels and ids into memory, as Arrow arrays; pictures stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]

from sslnlp.data.config import DataConfig
from sslnlp.data.files import IMAGE_FILES, find_files, kind
from sslnlp.data.picture_columns import (
    CAPTION_NAMES,
    Pictures,
    Seen,
    image_column,
    join,
    known_columns,
    not_pictures,
)
from sslnlp.data.picture_contents import Contents, FileContents, TableContents, stamped
from sslnlp.data.picture_shards import open_shard
from sslnlp.data.readers import quiet
from sslnlp.data.sources import open_source
from sslnlp.errors import UserError, reason_of

LISTS = (".csv", ".tsv", ".jsonl", ".json")
KINDS_READ = ".parquet .arrow .tar .csv .tsv .jsonl .json, folders of pictures, and hub names"

_RUN = 1024


def open_pictures(config: DataConfig, name: str, cache_dir: str | Path | None) -> Pictures:
    """The pictures of `data.train` or `data.valid`: several places one behind the other, in the order given.

    Raises:
        UserError: nothing there, an unknown kind of file, no column of pictures, a column of the wrong type.
    """
    spec = getattr(config, name)
    if not spec or (isinstance(spec, list) and not all(spec)):
        raise UserError(f"data.{name} is not set: give {KINDS_READ}")
    cache = str(config.cache or cache_dir or "") or None
    split = "validation" if name == "valid" else "train"
    places = [place for one in ([spec] if isinstance(spec, str) else spec) for place in _places(str(one), split)]
    parts: list[Pictures] = []
    # Tables of one kind become one table, which must have the same columns.
    for suffix, group in groupby(places, lambda place: kind(Path(place)) == ".parquet" and not Path(place).is_dir()):
        if suffix:
            parts.append(_open_table_files([str(place) for place in group], config, split, cache))
        else:
            parts.extend(part for place in group for part in _open(place, config, split, cache))
    return parts[0] if len(parts) == 1 else join(parts)


def _places(spec: str, split: str) -> list[Path | str]:
    """The folder, or the files of a glob, or the hub name as a string."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return [path]
    if path.suffix in (".tar", ".arrow") and not path.exists() and not set(spec) & set("*?["):
        raise UserError(f"{spec} does not exist; check the path of the data")
    found = find_files(spec, split)
    return [spec] if found is None else list(found)


def _open(place: Path | str, config: DataConfig, split: str, cache: str | None) -> Iterator[Pictures]:
    if isinstance(place, str):
        yield _open_table_files([place], config, split, cache)
    elif place.is_dir():
        yield from _open_folder(place, config, split, cache)
    elif place.suffix == ".tar":
        yield _open_tar(place, config)
    elif place.name.endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise UserError(f"{place} is compressed, so pictures cannot be found in it by place; unpack it to a .tar")
    elif place.suffix == ".arrow":
        yield _open_table(_arrow([place]), stamped([place]), place.parent, config, str(place))
    elif kind(place) in LISTS:
        yield _open_list(place, config)
    elif place.suffix.lower() in IMAGE_FILES:
        raise UserError(f"{place} is a single picture: give the folder it is in, or a .csv or .jsonl that names it")
    else:
        raise UserError(f"{place}: unknown kind of file; pictures are read from {KINDS_READ}")


def _open_folder(folder: Path, config: DataConfig, split: str, cache: str | None) -> Iterator[Pictures]:
    """A data set saved by `datasets`, tar shards, a table beside pictures, pictures in folders of their label, or
    tables with pictures in them; whichever it is."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if shards := [path for path in files if path.suffix == ".tar"]:
        yield from (_open_tar(path, config) for path in shards)
        return
    if arrows := [path for path in files if path.suffix == ".arrow"]:
        yield _open_table(_arrow(arrows), stamped(arrows), folder, config, str(folder))
        return
    if any(path.name == "dataset_dict.json" for path in files):
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise UserError(f"the folder {folder} holds {', '.join(splits)}: {config.both_parts()}")
    tables = [path for path in files if path.stem == "metadata" and kind(path) in (*LISTS, ".parquet")]
    tables = tables or [path for path in files if kind(path) in (".csv", ".tsv", ".jsonl")]
    if len(tables) > 1:
        raise UserError(f"the folder {folder} holds {', '.join(path.name for path in tables)}: name the one to read")
    if tables and kind(tables[0]) == ".parquet":
        yield _open_table_files([str(tables[0])], config, split, cache)
    elif tables:
        yield _open_list(tables[0], config)
    elif found := sorted(_picture_files(folder)):
        yield _open_labelled(folder, found, config)
    elif any(map(kind, folder.rglob("*"))):
        yield _open_table_files([str(folder)], config, split, cache)
    else:
        known = " ".join(IMAGE_FILES)
        raise UserError(f"the folder {folder} holds no pictures ({known}); pictures are read from {KINDS_READ}")


def _open_labelled(folder: Path, found: list[Path], config: DataConfig) -> Pictures:
    """Pictures without a table: the name of the folder that one is in is its label, where there are several."""
    names = [path.relative_to(folder) for path in found]
    top = {name.parts[0].lower() for name in names}
    if "train" in top and top & {"test", "valid", "validation", "val", "dev"}:
        raise UserError(f"the folder {folder} holds {', '.join(sorted(top))}: {config.both_parts()}")
    labels = [name.parent.name for name in names]
    several = len(set(labels)) > 1
    columns = {"label": "label"} if several else {}
    if several and config.columns.get("caption") == "label":  # the one column there is to name
        columns["caption"] = "label"
    seen = Seen(columns, list(columns.values())[:1], config, str(folder))
    seen.add({"label": label} for label in labels)
    return seen.pictures(FileContents(folder, pa.array([str(name) for name in names], pa.large_string())))


def _open_list(path: Path, config: DataConfig) -> Pictures:
    """A table of the names of files, which are relative to its folder."""
    source = open_source(str(path))
    image = image_column(source.columns, config, str(path))
    columns = known_columns(source.columns, config, str(path), image)
    names: list[str] = []
    seen = Seen(columns, source.columns, config, str(path))

    def noted() -> Iterator[Mapping[str, Any]]:
        for row in source.rows():
            name = row.get(image)
            if name is not None and not isinstance(name, str):
                raise UserError(not_pictures(image, str(path), type(name).__name__, config))
            names.append(name or "")
            yield row

    seen.add(noted())
    return seen.pictures(FileContents(path.parent, pa.array(names, pa.large_string())))


def _open_tar(path: Path, config: DataConfig) -> Pictures:
    """One shard: its samples are rows whose columns are the extensions, and the keys of what is in `.json`."""
    shard, rows, there = open_shard(path, IMAGE_FILES, config.columns.get("image"))
    columns = known_columns(
        there, config, str(path), None, captions=("txt", *CAPTION_NAMES), labels=("cls", "label"), ids=("__key__",)
    )
    seen = Seen(columns, there, config, str(path))
    seen.add(rows)
    return seen.pictures(shard)


def _open_table_files(specs: list[str], config: DataConfig, split: str, cache: str | None) -> Pictures:
    source = open_source(specs, split=split, cache=cache)
    root = Path(specs[0]).expanduser().parent
    return _open_table(source.table(), source.fingerprint, root, config, source.spec)


def _open_table(table: datasets.Dataset, fingerprint: str, root: Path, config: DataConfig, spec: str) -> Pictures:
    features = table.features
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = image_column(table.column_names, config, spec, typed)
    columns = known_columns(table.column_names, config, spec, image)
    contents = _table_contents(table, image, fingerprint, root, config, spec)
    seen = Seen(columns, table.column_names, config, spec, features.get(columns.get("label", "")))
    read = [theirs for ours, theirs in columns.items() if ours != "image"]
    if read:
        for batch in table.select_columns(list(dict.fromkeys(read))).iter(batch_size=_RUN):
            seen.add(dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    return seen.pictures(contents)


def _table_contents(
    table: datasets.Dataset, image: str, fingerprint: str, root: Path, config: DataConfig, spec: str
) -> Contents:
    feature = table.features[image]
    dtype = getattr(feature, "dtype", None)
    if isinstance(feature, datasets.Image) or dtype in ("binary", "large_binary"):
        return TableContents(table, image, fingerprint, root)
    if isinstance(feature, dict) and "bytes" in feature:
        return TableContents(table, image, fingerprint, root)
    if dtype in ("string", "large_string"):
        names = [name or "" for batch in table.select_columns([image]).iter(batch_size=_RUN) for name in batch[image]]
        return FileContents(root, pa.array(names, pa.large_string()))
    raise UserError(not_pictures(image, spec, dtype or type(feature).__name__, config))


def _arrow(files: list[Path]) -> datasets.Dataset:
    try:
        with quiet():
            return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    except Exception as error:
        raise UserError(f"cannot read {files[0]} as .arrow: {reason_of(error)}") from None


def _picture_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_FILES and not hidden and path.is_file():
            yield path
