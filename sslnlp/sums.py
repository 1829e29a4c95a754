"""Sums over targets since the last log, kept on the device: reading them is the only wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslnlp import distributed
from sslnlp.types import Batch, StepOutput


def add_sums(sums: dict[str, Tensor], output: StepOutput, count: Tensor) -> None:
    """Add one micro-batch to `sums`, in place: means times `count` (int64 [K], K = 1 without terms), float64.

    A figure that is a mean over the first kind of targets is kept as a scalar; what has its own denominator (the loss
    of several terms, metrics of shape [2]) as (sum, number) pairs, so that means over everything are ratios of sums.
    """
    figures: dict[str, Tensor] = {}
    if output.terms is None:
        figures["loss"] = output.loss.detach().double() * count.sum()
    else:
        for k, term in enumerate(output.terms.detach().double()):
            figures[f"loss/{k}"] = torch.stack([term * count[k], count[k].double()])
    for name, value in output.metrics.items():
        figures[name] = value.double() * count[0] if value.ndim == 0 else value.double()
    for name, value in figures.items():
        sums[name] = sums[name] + value if name in sums else value


def ratios(sums: Mapping[str, Tensor], targets: float) -> dict[str, float]:
    """Means of what `add_sums` gathered over `targets` first-kind targets; the loss is the sum of its terms' means."""
    values: dict[str, float] = {}
    terms = [name for name in sums if name.startswith("loss/")]
    for name, value in sums.items():
        if value.ndim == 0:
            values[name] = float(value) / max(targets, 1.0)
        elif (number := float(value[1])) > 0:
            values[name] = float(value[0]) / number
    if terms:
        values["loss"] = sum(values.pop(name, 0.0) for name in terms)
    return values


class Running:
    """Adds up what `Trainer.train_step` returns, and turns it into means over the targets of all ranks.

    `before` is what `so_far` said when the run was stopped; each rank is given it, and it counts once.
    """

    def __init__(self, before: Mapping[str, Any] | None = None, device: torch.device | None = None) -> None:
        self.sums: dict[str, Tensor] = {}
        for name, value in (before or {}).items():
            given = torch.tensor(value, dtype=torch.float64, device=device)
            self.sums[name] = given if distributed.rank() == 0 else torch.zeros_like(given)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Means over the targets, all ranks; `tokens` stays a sum. Empties the sums."""
        sums = self._of_all_ranks()
        self.sums = {}
        targets, tokens = float(sums.pop("targets")), float(sums.pop("tokens"))
        return ratios(sums, targets) | {"tokens": tokens}

    def so_far(self) -> dict[str, Any]:
        """The sums, all ranks, as plain numbers: what a run that goes on from here begins with."""
        return {name: value.tolist() for name, value in self._of_all_ranks().items()}

    def _of_all_ranks(self) -> dict[str, Tensor]:
        if not self.sums:
            return {}
        names = sorted(self.sums)
        shapes = [self.sums[name].shape for name in names]
        flat = torch.cat([self.sums[name].double().reshape(-1) for name in names])
        parts = torch.split(distributed.all_reduce_sum(flat).cpu(), [shape.numel() for shape in shapes])
        return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def count_tokens(batch: Batch) -> Tensor:
    """Real tokens of a batch, over all its encodings, at any depth."""
    # A number of the host is moved by nobody, so nothing waits for a GPU.
    count: Tensor | int = 0
    for name, value in batch.items():
        if isinstance(value, dict):
            count = count + count_tokens(value)
        elif name == "attention_mask":
            count = count + value.sum()
    return torch.as_tensor(count, dtype=torch.float64)
