"""Measures of tagging: the share of right words, and entities that are right as a whole.

Entities are counted here and not by a library: seqeval is no longer kept, and nervaluate, which the tests compare with,
asks for a newer Python than this package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from sslnlp.arrays import Ints

OUTSIDE, BEGIN, INSIDE, END, SINGLE = range(5)


def entities(row_N: Ints, prefix_N: Ints, type_N: Ints) -> set[tuple[int, int, int]]:
    """The spans (first word, word after the last, type) of tagged words, numbered through all rows.

    As CoNLL counts: a span begins at `B` or `S`, and at `I` or `E` behind something that it does not go on from
    (outside, another type, another row, a closed span); it ends before the next, and after `E` or `S`.
    """
    found: set[tuple[int, int, int]] = set()
    start, kind, place, closed = -1, 0, -1, True
    for word, (row, prefix, own) in enumerate(zip(row_N.tolist(), prefix_N.tolist(), type_N.tolist(), strict=True)):
        goes_on = prefix in (INSIDE, END) and not closed and own == kind and row == place
        if not goes_on:
            if start >= 0:
                found.add((start, word, kind))
            start = word if prefix != OUTSIDE else -1
        kind, place = own, row
        closed = prefix in (OUTSIDE, END, SINGLE)
        if closed and start >= 0:
            found.add((start, word + 1, kind))
            start = -1
    if start >= 0:
        found.add((start, len(row_N), kind))
    return found


def tagging_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """`accuracy` over words, and where tags have prefixes `entity_precision`, `entity_recall`, `entity_f1` over all
    entities and `entity_macro_f1`, the mean over types. An entity is right when its type and both ends are."""
    row = predicted["row"].numpy()
    guess, label = (
        (predicted[f"{who}_prefix"].numpy(), predicted[f"{who}_type"].numpy()) for who in ("predicted", "label")
    )
    right = (guess[0] == label[0]) & (guess[1] == label[1])
    figures = {"accuracy": float(right.mean())}
    if not label[0].any():
        return figures
    said, true = entities(row, *guess), entities(row, *label)
    hits = Counter(kind for *_, kind in said & true)
    of_said, of_true = (Counter(kind for *_, kind in spans) for spans in (said, true))
    by_type = [2 * hits[kind] / (of_said[kind] + of_true[kind]) for kind in of_said | of_true]
    return figures | {
        "entity_precision": len(said & true) / max(1, len(said)),
        "entity_recall": len(said & true) / max(1, len(true)),
        "entity_f1": 2 * len(said & true) / max(1, len(said) + len(true)),
        "entity_macro_f1": float(np.mean(by_type)),
    }
