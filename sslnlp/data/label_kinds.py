"""What a label column may hold: one class, several classes, or a number; each read from however a table writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Bools
from sslnlp.errors import UserError

SEPARATOR = "|"
"""Between the labels of a cell of text, where a table has no lists (CSV)."""

UNKNOWN = -100
"""The number of a class that is not known, of a text or a word: neither learnt nor scored."""

Label = str | tuple[str, ...] | float
"""A row's label: a class by name, several of them, or a number."""


def plain(value: Any) -> Any:
    """A cell as Python has it: rows of a dataset in the torch or numpy format hold tensors and arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


@dataclass(frozen=True)
class LabelKind:
    """How a kind of label is read from a cell, which classes it names, and what a batch gets of it."""

    read: Callable[[Any, Any, str], Label | None]
    """(cell, the column's feature, the column's name) -> the label; None where the row has none."""
    classes: Callable[[Label], tuple[str, ...]]
    """The classes of a label, by name."""
    encode: Callable[[Sequence[Label], dict[str, int]], npt.NDArray[Any]]
    """Labels, number of each class -> one value a row."""


def class_names(found: Sequence[str] | set[str], feature: Any) -> list[str]:
    """The classes that occur: in the order of a `ClassLabel`, numbers by value, names by alphabet."""
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        return [name for name in feature.names if name in found]
    if all(label.removeprefix("-").isdecimal() for label in found):
        return sorted(found, key=lambda label: (int(label), label))  # 01 beside 1
    return sorted(found)


def _one(value: Any, feature: Any, column: str) -> str | None:
    """A label as its name, without white space around it; None where there is none (also -1 of a `ClassLabel`, the
    hub's mark for a hidden label, and NaN, which pandas has for a missing value)."""
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if isinstance(feature, datasets.ClassLabel):
        return None if value < 0 else str(feature.int2str(int(value)))
    if isinstance(value, float) and not value.is_integer():
        raise UserError(
            f"label column {column!r} holds {value}: classes are names or whole numbers; for measurements take "
            "objective.name=regression"
        )
    if isinstance(value, (int, float)):
        return str(int(value))
    if isinstance(value, list):
        raise UserError(
            f"label column {column!r} holds lists: for texts of several classes take objective.name=multi_label"
        )
    if not isinstance(value, str):
        raise UserError(f"label column {column!r} holds {type(value).__name__}: labels must be names or whole numbers")
    return value.strip() or None


def marks(labels: Sequence[Any]) -> bool:
    """Whether a list has one 0 or 1 for each class, and not the classes that apply, of which none comes twice."""
    if any(isinstance(label, bool) for label in labels):
        return True
    found = {str(label) for label in labels}
    return len(found) < len(labels) and found <= {"0", "1", "0.0", "1.0"}


def _several(value: Any, feature: Any, column: str) -> tuple[str, ...] | None:
    """The labels of a list, or of text with `|` between them; an empty one is a text of no class."""
    if value is None or value != value:
        return None
    if isinstance(value, str):
        value = value.split(SEPARATOR)
    if not isinstance(value, list):
        value = [value]
    if marks(value):
        raise UserError(
            f"label column {column!r} holds {shorten(value)}, which reads as a 0 or 1 for each class: give the classes "
            'that apply, by name or number, such as ["news", "sport"] or [0, 4]'
        )
    inner = getattr(feature, "feature", feature)
    names = [_one(item, inner, column) for item in value]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _number(value: Any, feature: Any, column: str) -> float | None:
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"label column {column!r} holds {value!r}, which is not a number; regression needs one"
        ) from None
    if not np.isfinite(number):
        raise UserError(f"label column {column!r} holds {value}: regression needs finite numbers")
    return number


def _as_tuple(label: Any) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else (label,)


def _class_ids(labels: Sequence[Any], number: dict[str, int]) -> npt.NDArray[Any]:
    return np.array([number[label] for label in labels], np.int64)


def _class_lists(labels: Sequence[Any], number: dict[str, int]) -> npt.NDArray[Any]:
    lists = np.empty(len(labels), object)
    for i, names in enumerate(labels):
        lists[i] = sorted(number[name] for name in names)
    return lists


KINDS: dict[str, LabelKind] = {
    "one": LabelKind(_one, _as_tuple, _class_ids),
    "several": LabelKind(_several, _as_tuple, _class_lists),
    "number": LabelKind(_number, lambda label: (), lambda labels, number: np.array(labels, np.float64)),
}


def few(classes: Sequence[tuple[str, ...]], order: Sequence[int], per_class: int) -> Bools:
    """The first rows in `order` until each class has `per_class`; a row of several classes counts for all of them."""
    taken: Counter[str] = Counter()
    mask = np.zeros(len(classes), bool)
    for i in order:
        if any(taken[name] < per_class for name in classes[i]):
            taken.update(classes[i])
            mask[i] = True
    return mask
