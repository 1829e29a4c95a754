"""The ways of making targets from text and pictures, by name. A new one is one new file here and one line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.registry import find_class, on_first_use

if TYPE_CHECKING:
    from sslnlp.collators.base import Collator
else:  # the names are known without transformers
    __getattr__ = on_first_use(__name__, {"base": ("Collator",)})

__all__ = ["COLLATORS", "Collator", "get_collator"]

COLLATORS: dict[str, str] = {
    "autoencoding": "sslnlp.collators.tsdae:AutoencodingCollator",
    "causal_lm": "sslnlp.collators.causal_lm:CausalLMCollator",
    "classification": "sslnlp.collators.classification:ClassificationCollator",
    "denoising": "sslnlp.collators.denoising:DenoisingCollator",
    "electra": "sslnlp.collators.electra:ElectraCollator",
    "fim": "sslnlp.collators.fim:FimCollator",
    "hybrid": "sslnlp.collators.hybrid:HybridCollator",
    "image_text": "sslnlp.collators.image_text:ImageTextCollator",
    "image_views": "sslnlp.collators.images:ImageViewsCollator",
    "joint": "sslnlp.collators.joint:JointCollator",
    "masked_diffusion": "sslnlp.collators.masked_diffusion:MaskedDiffusionCollator",
    "masked_lm": "sslnlp.collators.masked_lm:MaskedLMCollator",
    "masked_patches": "sslnlp.collators.images:MaskedPatchesCollator",
    "pair_views": "sslnlp.collators.views:PairViewsCollator",
    "multi_label": "sslnlp.collators.classification:MultiLabelCollator",
    "prefix_lm": "sslnlp.collators.prefix_lm:PrefixLMCollator",
    "ranking": "sslnlp.collators.ranking:RankingCollator",
    "regression": "sslnlp.collators.classification:RegressionCollator",
    "reranking": "sslnlp.collators.reranking:RerankingCollator",
    "retromae": "sslnlp.collators.retromae:RetroMAECollator",
    "rotation": "sslnlp.collators.images:RotationCollator",
    "same_class": "sslnlp.collators.same_class:SameClassCollator",
    "segment_order": "sslnlp.collators.sentence_order:SegmentOrderCollator",
    "sentence_order": "sslnlp.collators.sentence_order:SentenceOrderCollator",
    "span_corruption": "sslnlp.collators.span_corruption:SpanCorruptionCollator",
    "tagging": "sslnlp.collators.tagging:TaggingCollator",
    "tsdae": "sslnlp.collators.tsdae:TSDAECollator",
    "ul2": "sslnlp.collators.ul2:UL2Collator",
    "ul2_decoder": "sslnlp.collators.ul2_decoder:UL2DecoderCollator",
    "views": "sslnlp.collators.views:ViewsCollator",
}


def get_collator(name: str) -> type[Collator]:
    """The collator class of a registered name or a dotted path `package.module:Class`; else `UserError`."""
    found: type[Collator] = find_class("collator", name, COLLATORS, "sslnlp.collators.base:Collator")
    return found
