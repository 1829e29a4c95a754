"""A loss that stays at chance: the run learns nothing, told while it trains and on the page of its report."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

CHANCE, LOSS, ACCURACY = "chance_loss", "loss", "accuracy"
"""What an objective logs beside its loss when it knows what a model that tells nothing would have."""

GAIN = 0.02
"""A loss is at chance unless it is below it by more than this share of it: 3.40 where chance is 3.47 (ln 32)."""

LEAST = 8
"""Logs from which on anything is said, so that a quarter of them is two."""


def at_chance(loss: Sequence[float], chance: Sequence[float]) -> str | None:
    """What is wrong when the mean of the last quarter of the logs is not below chance by more than 2 % of it.

    None for a loss that is below, and for fewer than eight logs. `loss` and `chance` are of the same steps.
    """
    if len(loss) < LEAST:
        return None
    quarter = len(loss) // 4
    mean, level = sum(loss[-quarter:]) / quarter, sum(chance[-quarter:]) / quarter
    if mean < level - GAIN * abs(level):
        return None
    where = "above" if mean > level else "at"
    return f"the loss is {where} chance: {mean:.4g}, and a model that tells nothing has {level:.4g}"


@dataclass
class ChanceWatch:
    """Called with the training figures of every log; says once, in one line, that a run has learnt nothing.

    It speaks when half of the run is over, since a fresh model begins at chance and may stay there for a while. Any
    objective that logs `chance_loss` beside `loss` is watched, parts of a joint one too (`part/chance_loss`).
    """

    said: bool = False
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """`chance_loss`, with what stands before it -> (loss, chance) of each log."""

    def __call__(self, step: int, steps: int, values: Mapping[str, float]) -> str | None:
        """What is said at this step of `steps`, after logging it; None otherwise."""
        for name, chance in values.items():
            if not is_chance(name) or (loss := values.get(loss_of(name))) is None or self.said:
                continue
            self.seen[name].append((loss, chance))
            wrong = at_chance(*zip(*self.seen[name], strict=True)) if 2 * step >= steps else None
            if wrong is not None:
                self.said = True
                line = f"step {step} of {steps}: {wrong}; {ADVICE}"
                log.warning(line)
                return line
        return None


ADVICE = (
    "nothing has been learnt yet: try another train.lr or a longer train.warmup, and look whether what belongs "
    "together stands in the same row"
)


def is_chance(name: str) -> bool:
    """Whether a logged number is what chance would have: `chance_loss`, or that of a part."""
    return name.rpartition("/")[2] == CHANCE


def loss_of(name: str) -> str:
    """The number that such a one belongs to."""
    return name.removesuffix(CHANCE) + LOSS


def accuracy_of(name: str) -> str:
    """The accuracy that is drawn beside it, where there is one."""
    return name.removesuffix(CHANCE) + ACCURACY
