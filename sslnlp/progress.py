"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What a checkpoint says beside tensors."""

    steps: int
    rows: int
    together: int
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    skipped: list[int] = field(default_factory=list)
    eval_every: int | None = None
    """Updates between two held-out passes, where a budget has room for fewer than usual."""
    valid: dict[str, float] = field(default_factory=dict)
    owed: bool = False
    """The held-out pass of this step is still to be made: the run was stopped before its end."""
    unlogged: dict[str, Any] = field(default_factory=dict)
    """Sums since the last log, which the next one is of too; and the seconds that they took."""
    unlogged_seconds: float = 0.0
