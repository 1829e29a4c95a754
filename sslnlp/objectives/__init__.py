"""The objectives, by name. A new one is one new file here and one line below."""

from __future__ import annotations

from sslnlp.objectives.base import Objective
from sslnlp.registry import find_class

__all__ = ["OBJECTIVES", "Objective", "get_objective"]

OBJECTIVES: dict[str, str] = {
    "causal_lm": "sslnlp.objectives.causal_lm:CausalLM",
    "classification": "sslnlp.objectives.classification:Classification",
    "data2vec": "sslnlp.objectives.data2vec:Data2Vec",
    "electra": "sslnlp.objectives.electra:Electra",
    "denoising": "sslnlp.objectives.seq2seq_lm:Denoising",
    "fim": "sslnlp.objectives.fim:Fim",
    "hybrid": "sslnlp.objectives.hybrid:Hybrid",
    "joint": "sslnlp.objectives.joint:Joint",
    "masked_diffusion": "sslnlp.objectives.masked_diffusion:MaskedDiffusion",
    "masked_lm": "sslnlp.objectives.masked_lm:MaskedLM",
    "ranking": "sslnlp.objectives.ranking:Ranking",
    "retromae": "sslnlp.objectives.retromae:RetroMAE",
    "tsdae": "sslnlp.objectives.tsdae:TSDAE",
    "vae": "sslnlp.objectives.vae:VAE",
}


def get_objective(name: str) -> type[Objective]:
    """The objective class of a registered name or a dotted path `package.module:Class`; else `UserError`."""
    return find_class("objective", name, OBJECTIVES, Objective)  # type: ignore[type-abstract]
