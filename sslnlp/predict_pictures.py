"""What a dual encoder says of new pictures: which of the given names fits best, and how surely."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from sslnlp.arrays import Vectors
from sslnlp.data.config import OptionData
from sslnlp.data.pictured import PictureRows, every_picture
from sslnlp.evaluation.zero_shot import TEMPLATES, check_templates, class_vectors
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.quiet import quiet_loading
from sslnlp.search.model_folder import resolve
from sslnlp.writing import check_output, replacing

BLOCK = 256


def predict_pictures(
    name: str,
    data: Path,
    out: Path,
    labels: Sequence[str],
    *,
    templates: Sequence[str] = (),
    image: str | None = None,
    top: int = 5,
    batch_size: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
) -> int:
    """Write what is said of every picture of `data` as JSON lines to `out`, and return how many there are.

    `data`: whatever pictures are trained on (a folder of files, a table, tar shards); `image` names the column. A line
    has `picture` (its file, or its row), the row's `id` where there is one, the most probable `label` and the `top`
    most probable ones (0: all): the softmax over the labels of the cosine with each, times the learned scale. Each
    label is put into `templates` (`evaluation.zero_shot`), whose mean stands for it. Broken pictures are left out with
    a warning. `out` appears whole or not at all.

    Raises `UserError` for an `out` that is read, a model without a text tower, and as `data.pictured` does.
    """
    check_output(out, data)
    check_templates(templates or TEMPLATES)
    folder = resolve(name)
    with quiet_loading():
        encoder = PictureEncoder.load(str(folder))
    class_CD = class_vectors(encoder.texts, labels, templates or TEMPLATES)
    columns = {"image": image} if image is not None else {}
    asked = OptionData(train=str(data), columns=columns, options={"columns.image": "--text"})
    rows, _ = every_picture(asked, "train")
    with replacing(out) as file:
        for start in range(0, len(rows), BLOCK):
            at = range(start, min(start + BLOCK, len(rows)))
            for line in _lines(encoder, rows, at, class_CD, labels, top, batch_size):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            progress(len(at))
    return len(rows)


def _lines(
    encoder: PictureEncoder,
    rows: PictureRows,
    at: range,
    class_CD: Vectors,
    labels: Sequence[str],
    top: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    read = rows.rows(at)
    vectors_BD = encoder.pictures([row["image"] for row in read], batch_size=batch_size)
    shares_BC = softmax(encoder.scale * (vectors_BD @ class_CD.T).astype(np.float64), axis=-1)
    for n, row, share_C in zip(at, read, shares_BC, strict=True):
        order = np.argsort(-share_C, kind="stable")[: top or None].tolist()
        named = {"id": row["id"]} if row.get("id") else {}
        yield {
            "picture": rows.contents.name(int(rows.index[n])),
            **named,
            "label": labels[order[0]],
            "probabilities": {labels[c]: float(share_C[c]) for c in order},
        }
