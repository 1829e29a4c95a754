"""What a card is made of: facts of a run, and the rows of its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from sslnlp.errors import UserError, suggest


class ReportRow(NamedTuple):
    """A measure of the report card (`sslnlp report`)."""

    name: str
    value: float
    low: float
    high: float
    chance: float | None
    number: int
    meaning: str


@dataclass(kw_only=True)
class CardFacts:
    """What the card is written from. All optional but the title: a fact that is not known is left out, never guessed.

    `export_model` fills in `architecture`, `parameters`, `max_length`, `pooling`, `normalize`, `pictures`,
    `label_names` and `several` from the model itself, and `modes`; the caller brings what only the run knows.
    """

    title: str
    """Heading of the card; the last part of the run's folder or the repository's name."""
    objective: str = ""
    """Registry name of the last objective."""
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    collator: str = ""
    """Registry name of what made the targets."""
    collator_options: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the loop: steps, batch size, learning rate, precision, seed, ..."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Held-out figures by name."""
    notes: Sequence[str] = ()
    """Why these say little, where they do."""
    report: Sequence[ReportRow] = ()
    """The report card's short form."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library name to version."""
    sources: Iterable[str] = ()
    """Names of the training data: hub names as they are, files by their last part only."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Documents, tokens, bytes, duplicates removed, fingerprint: whatever the preparation counted."""
    tokens_seen: int | None = None
    """Tokens that went through the model in training, repeats counted."""
    base_model: str | None = None
    """What this run continued from; it enters the metadata when it is a hub name and no local folder."""
    data_license: str | None = None
    architecture: str = ""
    """Class name in `transformers`."""
    parameters: int | None = None
    max_length: int | None = None
    """Tokens."""
    pooling: str | None = None
    """Set for an embedder: how token vectors become one."""
    mapped: bool = False
    """Whether pooled vectors go through a linear map."""
    normalize: bool = True
    label_names: Iterable[str] = ()
    several: bool = False
    """A classifier of texts that have any number of its classes."""
    head: bool = False
    """An embedder whose vectors go on through a linear head, to one logit a label."""
    ranks: str | None = None
    """What a reranker compares: `pairs`, read together by a cross-encoder, or `tokens` (late interaction)."""
    pictures: bool = False
    """A model of pictures alone."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What stands before each `query` and `document`."""
    modes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Ways the model is meant to be used: name -> fields of the configuration."""

    @classmethod
    def of(cls, facts: CardFacts | Mapping[str, Any]) -> CardFacts:
        """The facts themselves, or a mapping of them with unknown names refused."""
        if isinstance(facts, CardFacts):
            return facts
        accepted = {f.name for f in fields(cls)}
        for name in facts:
            if name not in accepted:
                raise UserError(f"unknown model card fact {name!r}.{suggest(str(name), accepted)}")
        return cls(**facts)
