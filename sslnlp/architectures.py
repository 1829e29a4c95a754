"""The stock architectures and their sizes: what a name and a size mean as a `transformers` configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Size(NamedTuple):
    layers: int
    width: int
    heads: int


SIZES = {
    "nano": Size(2, 64, 2),
    "tiny": Size(2, 128, 2),
    "mini": Size(4, 256, 4),
    "small": Size(4, 512, 8),
    "base": Size(12, 768, 12),
}
"""Named sizes; tiny, mini, small and base have the depth and width of the compact BERTs of Turc et al. (2019)."""
VISION_SIZES = {
    "nano": Size(2, 32, 2),
    "tiny": Size(4, 128, 2),
    "mini": Size(6, 192, 3),
    "small": Size(12, 384, 6),
    "base": Size(12, 768, 12),
}
"""The same of a ViT (Dosovitskiy et al., 2021, arXiv:2010.11929); `small` and `base` as published."""
IMAGE_SIZE, PATCH_SIZE = 64, 8
"""Pixels, of a fresh vision tower."""


def _bert(size: Size, length: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": size.layers,
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "max_position_embeddings": length,
    }


def _roberta(size: Size, length: int) -> dict[str, Any]:
    # RoBERTa counts positions from padding_idx + 1, so the table is that much longer.
    return _bert(size, length) | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}


def _modernbert(size: Size, length: int) -> dict[str, Any]:
    # Masked-LM pretraining never trains [CLS] to sum up a text, so the classification head averages instead.
    return _bert(size, length) | {"intermediate_size": 3 * size.width // 2, "classifier_pooling": "mean"}


def _llama(size: Size, length: int) -> dict[str, Any]:
    return _bert(size, length) | {
        "intermediate_size": -(-8 * size.width // 3 // 32) * 32,
        "num_key_value_heads": size.heads,
        "head_dim": size.width // size.heads,
        # Two matrices, as published: what follows a token is not what stands for it, and a head of its own can start
        # from what follows (sslnlp.embedding_init).
        "tie_word_embeddings": False,
    }


def _gpt2(size: Size, length: int) -> dict[str, Any]:
    return {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "n_positions": length}


def _electra(size: Size, length: int) -> dict[str, Any]:
    return _bert(size, length) | {"embedding_size": size.width, "summary_last_dropout": 0.0}


def _bart(size: Size, length: int) -> dict[str, Any]:
    # Half of the layers encode and half decode: about as many parameters as the encoder of that size.
    half = {"layers": max(1, size.layers // 2), "attention_heads": size.heads, "ffn_dim": 4 * size.width}
    return {
        "d_model": size.width,
        "max_position_embeddings": length,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in half.items()},
    }


def _t5(size: Size, length: int) -> dict[str, Any]:
    half = max(1, size.layers // 2)
    return {
        "d_model": size.width,
        "d_kv": size.width // size.heads,
        "d_ff": -(-8 * size.width // 3 // 32) * 32,
        "num_layers": half,
        "num_decoder_layers": half,
        "num_heads": size.heads,
        "feed_forward_proj": "gated-gelu",  # T5 1.1 (Shazeer, 2020)
        # Embeddings of deviation 1, as published, suit Adafactor, whose steps grow with the weights; Adam's do not.
        "initializer_factor": 0.2,
    }


def _vit(size: Size, length: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": size.layers,
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }


def _start_t5(model: Any) -> None:
    """Undo, at the start, the division of the decoder's states by the root of their width.

    T5 with tied embeddings divides; T5 1.1 does not, but stock classes tell the two apart by a field that later
    versions overwrite. The gain of the last norm says the same in every version, and is trained like any other.
    """
    model.get_decoder().final_layer_norm.weight.data.fill_(model.config.d_model**0.5)


ARCHITECTURES: dict[str, Callable[[Size, int], dict[str, Any]]] = {
    "modernbert": _modernbert,
    "bert": _bert,
    "roberta": _roberta,
    "electra": _electra,
    "bart": _bart,
    "t5": _t5,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen3": _llama,
    "vit": _vit,
}
"""Name of a stock `transformers` architecture -> its configuration at a size, for rows of a given length."""

STARTS: dict[str, Callable[[Any], None]] = {"t5": _start_t5}
"""What is done to the fresh weights of an architecture beside its own initialisation."""


def size_of(architecture: str, name: str) -> Size:
    """What a name means for an architecture."""
    return (VISION_SIZES if architecture == "vit" else SIZES)[name]


OFFSET_POSITIONS = (
    *("roberta", "xlm-roberta", "camembert", "mpnet"),
    *("data2vec-text", "ibert", "luke", "roberta-prelayernorm", "xlm-roberta-xl"),
)
"""Types of models that count positions from the padding id + 1."""


def position_offset(config: Any) -> int:
    """What the position of a first token is to a model of this configuration."""
    if config.model_type not in OFFSET_POSITIONS:
        return 0
    if config.model_type == "mpnet":  # whose code takes the padding id of the published models for any
        return 2
    return (config.pad_token_id or 0) + 1
