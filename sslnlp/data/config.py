"""What a person says about the data: the `data.*` keys of a recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from sslnlp.errors import UserError, suggest

SPLIT_TEXT = ("auto", "document", "block", "line")
PACKING = ("pack", "bucket")


@dataclass(kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes rows. Every field is checked at construction."""

    train: str | list[str] | None = None
    """A file, glob, folder or hub name, or a list of them. `.txt .jsonl .json .csv .tsv .parquet`, also compressed."""
    valid: str | list[str] | None = None
    """Held-out data. None: split off `train` by the hash of each document."""
    text: str | None = None
    """The text column. None: the one obvious column."""
    label: str | None = None
    """The label column (classification, tagging). None: the one of a usual name, such as `label`, `class` or `tags`."""
    split_text: str = "auto"
    """How a `.txt` file becomes documents: the whole `document`, blank-line `block`s, `line`s, or decided by `auto`."""
    valid_fraction: float = 0.01
    """Share of documents held out when `valid` is None; 0 holds out none."""
    valid_tokens: int | None = 200_000
    """At most this many held-out tokens, in whole documents taken in the order of their hashes. None: no cap."""
    valid_rows: int | None = 2_000
    """At most this many held-out pairs, labelled texts or pictures, in the order of their hashes. None: no cap."""
    seq_length: int = 128
    """Tokens of a row."""
    packing: str = "pack"
    """`pack`: several documents fill a row. `bucket`: one piece a row, rows of like length in a batch."""
    streaming: bool = False
    """Read hub data as a stream instead of downloading it first."""
    limit: int | None = None
    """Read at most this many documents of `train` (asked for when a stream has no end)."""
    deduplicate: bool = True
    """Remove exact duplicates from `train`; text that is in `valid` is removed from `train` always."""
    cache: str | None = None
    """Where token stores and trained tokenizers are kept. None: $SSLNLP_CACHE, else ~/.cache/sslnlp."""
    processes: int | None = None
    """Processes that tokenise `train`, with the same result. None: a core each, where there is much text."""
    labels_per_class: int | None = None
    """Train on this many labelled rows of each class only, chosen by `draw` (few-label studies)."""
    draw: int = 0
    """Which choice of `labels_per_class` rows."""
    unlabelled: str | list[str] | None = None
    """Texts of the same kind without labels, for classifiers that learn from them too."""
    out_of_scope: str | list[str] | None = None
    """Texts of no known class, to measure how well a classifier tells them from others."""
    beir: str | None = None
    """A BEIR folder (`corpus.jsonl`, `queries.jsonl`, `qrels/`) a ranker is measured on."""
    licence: str | None = None
    """The licence of the data, for the model card."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name of a column (`query`, `positive`, `negative`, ...) -> the data's name."""

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("split_text", self.split_text, SPLIT_TEXT),
            ("packing", self.packing, PACKING),
        ):
            if value not in accepted:
                raise UserError(f"data.{name}={value!r} is not known.{suggest(str(value), accepted)}")
        if not 0 <= self.valid_fraction < 1:
            raise UserError(f"data.valid_fraction must be at least 0 and below 1, got {self.valid_fraction}")
        if self.seq_length < 4:
            raise UserError(f"data.seq_length must be at least 4, got {self.seq_length}")
        for name in ("valid_tokens", "valid_rows", "limit", "processes", "labels_per_class"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"data.{name} must be at least 1 (or left out), got {number}")

    def name_of(self, key: str, value: str = "") -> str:
        """What a message calls `key` (`columns.image`), with a `value` where it tells to give one."""
        return f"data.{key}={value}" if value else f"data.{key}"

    def both_parts(self) -> str:
        """What a message says to do with a folder that holds splits."""
        return "set data.train and data.valid to them"


@dataclass(kw_only=True)
class OptionData(DataConfig):
    """Data that a command reads without a recipe: a message names its options, not keys of a recipe."""

    options: dict[str, str] = field(default_factory=dict)
    """Key (`columns.image`) -> option (`--image-column`)."""

    def name_of(self, key: str, value: str = "") -> str:
        return f"{self.options[key]} {value}".rstrip() if key in self.options else super().name_of(key, value)

    def both_parts(self) -> str:
        return "name one of them"


def all_held_out(config: DataConfig) -> UserError:
    """What is said where `data.valid` leaves nothing to train on."""
    return UserError(
        f"everything in data.train ({config.train}) is also in data.valid ({config.valid}) and was left out; give "
        "another data.valid"
    )


def cache_at(chosen: str | None = None) -> Path:
    """Where tables, token stores and trained tokenizers are kept: `chosen`, $SSLNLP_CACHE, else ~/.cache/sslnlp."""
    name = chosen or os.environ.get("SSLNLP_CACHE") or "~/.cache/sslnlp"
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the cache {name}: {error.strerror}; set data.cache to another") from error
    return folder
