"""A contender of a benchmark in the process of the test."""

from __future__ import annotations

from typing import Any


class Turns:
    """Stands in for the gate: lets a contender get ready and have its rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.said: list[dict[str, Any]] = []

    def __call__(self, **facts: Any) -> None:
        self.said.append(facts)
        if len(self.said) > self.rounds:
            raise SystemExit(0)
