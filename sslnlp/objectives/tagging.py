"""A tag for every word of a text: entities, parts of speech."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from sslnlp.objectives import functional
from sslnlp.objectives.text_head import TextHead
from sslnlp.types import Batch, StepOutput

PREFIXES = {"B": 1, "I": 2, "E": 3, "S": 4, "L": 3, "U": 4}
"""What stands before the hyphen of a tag, in IOB, IOBES and BILOU; 0 is outside."""


class Tagging(TextHead):
    """Cross-entropy of each word's tag at its first token, with the stock token-classification head.

    Rows: words and as many tags. Held out, entities count: tags such as `B-PER`, `I-PER`, `O` (IOB1, IOB2, IOBES) are
    read as spans, and a span is right when its type and both ends are. Other tags (parts of speech) have an accuracy.
    """

    name: ClassVar[str] = "tagging"
    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels", "tags", "places", "shared"})
    collator: ClassVar[str] = "tagging"
    wraps: ClassVar[Any] = AutoModelForTokenClassification
    measures: ClassVar[tuple[str, ...]] = ("tagging",)
    best: tuple[str, str] = ("accuracy", "max")  # type: ignore[misc]  # of the class; with entities, their F1

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._schemes = schemes([str(model.config.id2label[c]) for c in range(model.config.num_labels)])
        if any(prefix for prefix, _ in self._schemes):
            self.best = ("entity_f1", "max")

    def outcome(self, logits_BSC: Tensor, batch: Batch) -> StepOutput:
        """Mean loss over the words, and `accuracy`: the share of them whose tag is predicted."""
        logits_NC, label_N = logits_BSC.flatten(0, 1), batch["labels"].flatten()
        accuracy = functional.accuracy(logits_NC, label_N)
        return StepOutput(functional.cross_entropy(logits_NC, label_N), {"accuracy": accuracy})

    def predicted(self, logits_BSC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Of every word, int64 [N], row by row: `row`, and prefix and type of the predicted and of the right tag
        (`schemes`). A word without a token (it was cut off) is predicted to be outside; one that shares its token with
        the word before it goes on with the entity that this begins."""
        tags_BW, places_BW = batch["tags"], batch["places"]
        rows_B = batch.get("position", torch.arange(len(tags_BW), device=tags_BW.device))
        guess_BW = logits_BSC.argmax(-1).gather(1, places_BW.clamp(min=0))
        guess_BW = guess_BW.masked_fill(places_BW < 0, len(self._schemes))
        scored_BW = tags_BW != functional.IGNORED
        table = torch.tensor([*self._schemes, (0, 0)], device=tags_BW.device)
        guess, label = table[guess_BW[scored_BW]], table[tags_BW[scored_BW]]
        goes_on = (batch["shared"][scored_BW] == 1) & (guess[:, 0] == PREFIXES["B"])
        return {
            "row": rows_B[:, None].expand_as(tags_BW)[scored_BW],
            "predicted_prefix": guess[:, 0].masked_fill(goes_on, PREFIXES["I"]),
            "predicted_type": guess[:, 1],
            "label_prefix": label[:, 0],
            "label_type": label[:, 1],
        }


def schemes(names: list[str]) -> list[tuple[int, int]]:
    """Each tag as (prefix, type): `O` is (0, 0), `B-PER` (1, the number of PER), one without a prefix (0, its own)."""
    types: dict[str, int] = {}
    found = []
    for name in names:
        prefix, hyphen, kind = name.partition("-")
        if name == "O":
            found.append((0, 0))
        elif hyphen and prefix in PREFIXES:
            found.append((PREFIXES[prefix], types.setdefault(kind, len(types) + 1)))
        else:
            found.append((0, types.setdefault(name, len(types) + 1)))
    return found
