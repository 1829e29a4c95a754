"""Small pictures with captions, in every form that they are read in."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from sslnlp.data.picture_check import RUN
from sslnlp.data.pictured import PictureRows

COUNT = 2 * RUN + 6


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


PICTURES = [picture(i) for i in range(COUNT)]
CAPTIONS = [f"picture number {i}" for i in range(COUNT)]


def rows(of: PictureRows | None) -> list[dict]:
    return [] if of is None else [dict(row) for row in of.rows(range(len(of)))]


def pairs(of: PictureRows | None) -> list[tuple[bytes, list[str]]]:
    return [(row["image"], row["captions"]) for row in rows(of)]


def parquet(path: Path, images: list, **columns: list) -> str:
    features = datasets.Features({"image": datasets.Image()})
    given = [None if image is None else {"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    table = datasets.Dataset.from_dict({"image": given}, features=features)
    for name, values in columns.items():
        table = table.add_column(name, values)
    table.to_parquet(path)
    return str(path)


def folder(path: Path, images: dict[str, bytes], table: str = "", listed: list[dict] | None = None) -> str:
    path.mkdir()
    for name, content in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    if table.endswith(".csv"):
        with (path / table).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(listed[0]))
            writer.writeheader()
            writer.writerows(listed)
    elif table:
        (path / table).write_text("".join(json.dumps(row) + "\n" for row in listed))
    return str(path)


def shard(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)
