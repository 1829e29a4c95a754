"""A model as a person names it: its folder, what the files in that say, and what tells it from others.

Without torch, so that a model that is not there is told at once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError, first_line
from sslnlp.writing import sha256_of

_WEIGHTS_AND_WORDS = ("*.safetensors", "*.json", "*.model", "*.txt", "pytorch_model*.bin")


def resolve(name: str) -> Path:
    """The folder of a model: itself when it is one, otherwise its snapshot from the hub (or the hub's cache)."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            hint = f"; did you mean {Path(name) / 'export'}?" if (Path(name) / "export").is_dir() else ""
            raise UserError(f"{name} is not a model folder (no config.json){hint}")
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except HFValidationError as error:
        raise UserError(f"no model folder at {name}") from error
    except Exception as error:  # not found, refused, offline with an empty cache: all mean the same to the person
        raise UserError(f"no model folder at {name}, and no such model on the hub: {first_line(error)}") from error


def called(name: str) -> str:
    """What an index remembers a model by: where it is from anywhere, or its name on the hub."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def fingerprint(folder: Path) -> str:
    """SHA-256 over every file that decides a vector: weights, configuration, tokenizer, pooling."""
    files = {file for pattern in _WEIGHTS_AND_WORDS for file in folder.rglob(pattern)}
    files = {file for file in files if file.name != "recipe.json"}  # a biography, it changes no vector
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def read_json(path: Path, absent: Any = None) -> Any:
    """What a file of a model's folder holds, of the type of `absent` (a mapping), which stands for a file that is not
    there. Raises `UserError` for anything else in it."""
    if not path.is_file():
        return {} if absent is None else absent
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(read, dict if absent is None else type(absent)):
        raise UserError(f"{path} holds {type(read).__name__}, not what its name says")
    return read
