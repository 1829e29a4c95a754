"""The models of an index: loaded only when asked for (they bring torch), and held against what the index remembers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.search.model_folder import resolve

MAP = "map"
"""The folder of the map that an index has behind that of its encoder (`search.whitening`)."""
_DUAL = "vision-text-dual-encoder"
"""The `model_type` that the configuration of a dual encoder states."""


def load_encoder(name: str) -> Any:
    """The encoder at `name`: a `DualEncoder` where its configuration says so, else an `Encoder`."""
    pictures = reads_pictures(name)
    from sslnlp.search.dual import DualEncoder
    from sslnlp.search.encoder import Encoder

    return DualEncoder.load(name) if pictures else Encoder.load(name)


def reads_pictures(name: str) -> bool:
    """Whether the model at `name` is a dual encoder. Raises UserError where there is no model."""
    path = resolve(name) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the loader says what is wrong with it
    return isinstance(config, dict) and config.get("model_type") == _DUAL


def load_reranker(name: str) -> Any:
    """The cross-encoder at `name`."""
    resolve(name)  # one that is not there is told before torch is imported
    from sslnlp.search.reranker import Reranker  # type: ignore[import-untyped, unused-ignore]

    return Reranker.load(name)


def mapped(encoder: Any, folder: Path) -> Any:
    """`encoder`, with the map in `folder` behind its own where there is one."""
    if not (folder / MAP).is_dir():
        return encoder
    from sslnlp.vector_map import read_map

    return encoder.through(read_map(folder, [MAP]))


def same_encoder(index: Path, facts: Mapping[str, Any], model: str | None) -> Any:
    """The encoder that the vectors of `index`, with these `facts`, were made with, from where it was or from `model`.

    Raises UserError when its fingerprint is another: vectors of two models do not compare.
    """
    table, facts = index / facts["table"], facts["dense"]
    encoder = load_encoder(model or facts["model"])
    if encoder.reads != (holds := facts.get("reads", "texts")):
        raise UserError(
            f"the index holds {holds}, and {encoder.name} is an encoder of {encoder.reads}: name with --model the one "
            f"that it was made with ({facts['model']})"
        )
    if encoder.fingerprint != facts["fingerprint"]:
        raise UserError(
            f"the vectors were made by another model ({facts['model']}) than {encoder.name}, or its files changed "
            "since: name the same one with --model or index again"
        )
    return mapped(encoder, table)


def same_reranker(facts: Mapping[str, Any] | None, model: str | None) -> Any:
    """The reranker at `model` (any will do), else the one of `facts`, which must not have changed."""
    if model is not None or facts is None:
        return load_reranker(model or "")
    reranker = load_reranker(facts["model"])
    if reranker.fingerprint != facts["fingerprint"]:
        raise UserError(
            f"the reranker {reranker.name} changed since it was indexed with: name it with --reranker to use it"
        )
    return reranker
