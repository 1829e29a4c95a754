"""How good a classifier gets with how many labels: every method over several draws of the labels and several seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.registry import on_first_use

if TYPE_CHECKING:
    from sslnlp.curve.run import label_curve
else:  # what is wrong with what a command was given is told without what trains
    __getattr__ = on_first_use(__name__, {"run": ("label_curve",)})

__all__ = ["label_curve"]
