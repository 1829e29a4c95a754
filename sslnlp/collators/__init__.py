"""The ways of making targets from text, by name. A new one is one new file here and one line below."""

from __future__ import annotations

from sslnlp.collators.base import Collator
from sslnlp.registry import find_class

__all__ = ["COLLATORS", "Collator", "get_collator"]

COLLATORS: dict[str, str] = {
    "causal_lm": "sslnlp.collators.causal_lm:CausalLMCollator",
    "classification": "sslnlp.collators.classification:ClassificationCollator",
    "denoising": "sslnlp.collators.denoising:DenoisingCollator",
    "fim": "sslnlp.collators.fim:FimCollator",
    "hybrid": "sslnlp.collators.hybrid:HybridCollator",
    "joint": "sslnlp.collators.joint:JointCollator",
    "masked_lm": "sslnlp.collators.masked_lm:MaskedLMCollator",
    "ranking": "sslnlp.collators.ranking:RankingCollator",
}


def get_collator(name: str) -> type[Collator]:
    """The collator class of a registered name or a dotted path `package.module:Class`; else `UserError`."""
    return find_class("collator", name, COLLATORS, Collator)  # type: ignore[type-abstract]
