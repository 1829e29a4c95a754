"""Several collators on the same rows, for objectives that are trained together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sslnlp.collators import get_collator
from sslnlp.collators.base import Collator
from sslnlp.collators.tokens import carried
from sslnlp.errors import UserError, suggest
from sslnlp.registry import bound_class
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class JointCollator(Collator):
    """The batches of several collators, each made of the same rows.

    `parts`: collator name -> its options, e.g. `{"masked_lm": {"rate": 0.2}, "sentence_order": {}}`. The objective
    names the collators it needs; giving one here sets its options. Each part draws by its own purposes, so its batch is
    the one it makes alone. Makes one entry a part, under its name, and `position` [B].
    Raises `UserError` for an unknown part or option, and for parts that read tables.
    """

    name: ClassVar[str] = "joint"
    makes: ClassVar[frozenset[str]] = frozenset({"position"})

    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[JointCollator]:
        """The class for these parts: what they make and ask of the tokenizer is known before there is one."""
        parts = options.get("parts")
        if not isinstance(parts, Mapping):
            return cls
        bound = [_part(name, options) for name, options in parts.items()]
        made: dict[str, Any] = {
            "makes": cls.makes | parts.keys(),
            "requires": frozenset().union(*(part.requires for part in bound)),
        }
        # A plain subclass: its fields are those of this one.
        return bound_class(cls, options, **made)

    def __post_init__(self) -> None:
        self._parts = {
            name: _part(name, options)(tokenizer=self.tokenizer, seed=self.seed, **options)
            for name, options in self.parts.items()
        }

    @property
    def reserve(self) -> int:
        return max((part.reserve for part in self._parts.values()), default=0)

    def source_length(self, seq_length: int) -> int:
        return min((part.source_length(seq_length) for part in self._parts.values()), default=seq_length)

    def check_rows(self, rows: Sequence[Row]) -> None:
        for part in self._parts.values():
            part.check_rows(rows)

    def for_evaluation(self, seed: int) -> JointCollator:
        """The parts, each as it is for held-out text."""
        fixed = dataclasses.replace(self, seed=seed, horizon=None)
        fixed._parts = {name: part.for_evaluation(seed) for name, part in self._parts.items()}
        return fixed

    def __call__(self, rows: Sequence[Row]) -> Batch:
        batch: Batch = {}
        for name, part in self._parts.items():
            part.horizon = self.horizon
            batch[name] = part(rows)
        return batch | carried(rows)


def _part(name: str, options: Mapping[str, Any]) -> type[Collator]:
    """The class of a part; `UserError` when it does not collate text, or has no such options."""
    cls = get_collator(name).bound(options)
    if cls.reads != "tokens" or issubclass(cls, JointCollator):
        raise UserError(f"collator {name!r} does not collate rows of text, so it can be no part of collator 'joint'")
    accepted = {f.name for f in dataclasses.fields(cls) if f.init} - {"tokenizer", "seed", "horizon"}
    if unknown := sorted(options.keys() - accepted):
        raise UserError(f"unknown option {unknown[0]!r} of {name} in collator.parts.{suggest(unknown[0], accepted)}")
    return cls
