"""The objectives, by name. A new one is one new file here and one line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.registry import find_class, on_first_use

if TYPE_CHECKING:
    from sslnlp.objectives.base import Objective
else:  # the names are known without torch
    __getattr__ = on_first_use(__name__, {"base": ("Objective",)})

__all__ = ["OBJECTIVES", "Objective", "get_objective"]

OBJECTIVES: dict[str, str] = {
    "barlow_twins": "sslnlp.objectives.barlow_twins:BarlowTwins",
    "byol": "sslnlp.objectives.byol:BYOL",
    "causal_lm": "sslnlp.objectives.causal_lm:CausalLM",
    "classification": "sslnlp.objectives.classification:Classification",
    "clip": "sslnlp.objectives.clip:Clip",
    "data2vec": "sslnlp.objectives.data2vec:Data2Vec",
    "denoising": "sslnlp.objectives.seq2seq_lm:Denoising",
    "electra": "sslnlp.objectives.electra:Electra",
    "fim": "sslnlp.objectives.fim:Fim",
    "hybrid": "sslnlp.objectives.hybrid:Hybrid",
    "few_shot": "sslnlp.objectives.few_shot:FewShot",
    "info_nce": "sslnlp.objectives.info_nce:InfoNCE",
    "joint": "sslnlp.objectives.joint:Joint",
    "late_interaction": "sslnlp.objectives.late_interaction:LateInteraction",
    "masked_diffusion": "sslnlp.objectives.masked_diffusion:MaskedDiffusion",
    "masked_lm": "sslnlp.objectives.masked_lm:MaskedLM",
    "masked_patches": "sslnlp.objectives.masked_patches:MaskedPatches",
    "moco": "sslnlp.objectives.moco:MoCo",
    "multi_label": "sslnlp.objectives.multi_label:MultiLabel",
    "prefix_lm": "sslnlp.objectives.prefix_lm:PrefixLM",
    "ranking": "sslnlp.objectives.ranking:Ranking",
    "regression": "sslnlp.objectives.regression:Regression",
    "reranking": "sslnlp.objectives.reranking:Reranking",
    "retromae": "sslnlp.objectives.retromae:RetroMAE",
    "rotation": "sslnlp.objectives.rotation:Rotation",
    "segment_order": "sslnlp.objectives.sentence_order:SegmentOrder",
    "sentence_order": "sslnlp.objectives.sentence_order:SentenceOrder",
    "siglip": "sslnlp.objectives.siglip:Siglip",
    "span_corruption": "sslnlp.objectives.seq2seq_lm:SpanCorruption",
    "tagging": "sslnlp.objectives.tagging:Tagging",
    "tsdae": "sslnlp.objectives.tsdae:TSDAE",
    "ul2": "sslnlp.objectives.seq2seq_lm:UL2",
    "ul2_decoder": "sslnlp.objectives.prefix_lm:UL2Decoder",
    "vae": "sslnlp.objectives.vae:VAE",
    "vicreg": "sslnlp.objectives.vicreg:VICReg",
}


def get_objective(name: str) -> type[Objective]:
    """The objective class of a registered name or a dotted path `package.module:Class`; else `UserError`."""
    found: type[Objective] = find_class("objective", name, OBJECTIVES, "sslnlp.objectives.base:Objective")
    return found
