"""What explains a figure, and the levels that guessing has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
"""What chance levels are computed from: `vocab_size`, `bytes_per_token`, `num_labels`, where known."""
Chance = Callable[[Facts], float | None]


@dataclass(frozen=True)
class Measure:
    """One figure's explanation. `chance` returns None where the facts do not tell."""

    unit: str
    meaning: str
    better: str
    chance: Chance = lambda facts: None


def always(level: float) -> Chance:
    """The same whatever the facts."""
    return lambda facts: level


def log_of(key: str) -> Chance:
    """Nats of one answer of so many."""
    return lambda facts: math.log(facts[key]) if facts.get(key) else None


def one_of(key: str) -> Chance:
    """How often one answer of so many is the right one."""
    return lambda facts: 1 / facts[key] if facts.get(key) else None


def uniform_bits_per_byte(facts: Facts) -> float | None:
    """The code length of text whose tokens are all equally likely."""
    size, width = facts.get("vocab_size"), facts.get("bytes_per_token")
    return math.log2(size) / width if size and width else None
