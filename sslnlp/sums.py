"""Sums over targets since the last log, kept on the device: reading them is the only wait for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sslnlp import distributed
from sslnlp.types import Batch


class Running:
    """Adds up what `Trainer.train_step` returns, and turns it into means over the targets of all ranks."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def means(self) -> dict[str, float]:
        """Means over the targets, all ranks; `tokens` stays a sum. Empties the sums."""
        names = sorted(self.sums)
        stacked = distributed.all_reduce_sum(torch.stack([torch.as_tensor(self.sums[n]).double() for n in names]))
        values = dict(zip(names, stacked.tolist(), strict=True))
        self.sums = {}
        targets, tokens = max(1.0, values.pop("targets")), values.pop("tokens")
        return {name: value / targets for name, value in values.items()} | {"tokens": tokens}


def count_tokens(batch: Batch) -> Tensor:
    """Real tokens of a batch, over all its encodings."""
    count = torch.zeros((), dtype=torch.int64)
    for name, value in batch.items():
        if isinstance(value, dict):
            count = count.to(value["attention_mask"].device) + value["attention_mask"].sum()
        elif name == "attention_mask":
            count = count.to(value.device) + value.sum()
    return count.double()
