"""Stock models from a name and a size, or from a checkpoint; and how packed rows run through any of them.

Shape suffixes: B rows, S tokens, H width, N scored positions, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.adapt import adapt
from sslnlp.errors import UserError, suggest
from sslnlp.modes import self_check
from sslnlp.types import Encoding

log = logging.getLogger(__name__)


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
        "tie_word_embeddings": True,
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
}
"""Name of a stock `transformers` architecture -> its configuration at a size, for rows of a given length."""

_STARTS: dict[str, Callable[[Any], None]] = {"t5": _start_t5}
"""What is done to the fresh weights of an architecture beside its own initialisation."""

_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout", "mlp_dropout"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "classifier_dropout"),
    *("dropout", "activation_dropout", "dropout_rate"),
)


@dataclass(kw_only=True)
class ModelConfig:
    """Which model: a named architecture and size from scratch, or a checkpoint to go on from."""

    architecture: str = "modernbert"
    """One of `ARCHITECTURES`. Ignored when `pretrained` is set."""
    size: str = "mini"
    """One of `SIZES`: nano, tiny, mini, small, base."""
    pretrained: str | None = None
    """A Hugging Face folder or hub name (for instance a run's `export/`) whose weights to start from."""
    dropout: float = 0.0
    """Every dropout rate of the model. 0 suits a single pass over the text; fine-tuning small sets likes 0.1."""
    config: dict[str, Any] = field(default_factory=dict)
    """Any further field of the stock configuration, e.g. `model.config.hidden_size=384`."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"unknown model.architecture {self.architecture!r}.{suggest(self.architecture, ARCHITECTURES)}"
            )
        if self.size not in SIZES:
            raise UserError(f"unknown model.size {self.size!r}.{suggest(self.size, SIZES)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be in [0, 1), got {self.dropout}")


def build_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_length: int, **extra: Any
) -> PreTrainedConfig:
    """The stock configuration of a model from scratch: size, vocabulary and special ids of the tokenizer."""
    fields = ARCHITECTURES[config.architecture](SIZES[config.size], max_length)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    if config.architecture == "roberta":
        fields["max_position_embeddings"] = max_length + (ids["pad_token_id"] or 0) + 1
    default = AutoConfig.for_model(config.architecture)
    fields |= {name: config.dropout for name in _DROPOUTS if hasattr(default, name)}
    known = set(default.to_dict()) | {"attn_implementation"}
    for name in config.config:
        if name not in known:
            raise UserError(f"unknown model.config.{name} for {config.architecture}.{suggest(name, known)}")
    ids = {name: value for name, value in ids.items() if name in known or name[:3] in ("pad", "bos", "eos")}
    if default.is_encoder_decoder:
        # As published: BART's decoder starts from the end-of-text token, T5's from padding.
        start = "eos_token_id" if "forced_eos_token_id" in known else "pad_token_id"
        ids |= {"decoder_start_token_id": ids[start]}
        if "forced_eos_token_id" in known:
            ids |= {"forced_eos_token_id": ids["eos_token_id"]}
    fields |= {"vocab_size": len(tokenizer)} | ids | config.config | extra
    try:
        return AutoConfig.for_model(config.architecture, **fields)
    except Exception as error:  # transformers raises several kinds for inconsistent fields
        raise UserError(f"model.config is not valid for {config.architecture}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def build_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, wraps: Any, *, max_length: int, seed: int = 0, **extra: Any
) -> PreTrainedModel:
    """A stock model of the Auto class `wraps`, in float32, whose vocabulary and length fit the tokenizer and the rows.

    Its dropout is keyed by row (see `sslnlp.nn`), which changes neither its parameters nor what it computes in eval.
    `extra` are configuration fields of the task (`num_labels`, `id2label`, ...). Fresh weights depend on `seed` alone.
    Raises `UserError` for an architecture without such a head, a vocabulary or length that does not fit, and for
    checkpoints that cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.pretrained:
            model = _load(config, wraps, extra)
        else:
            model = _fresh(config, tokenizer, wraps, max_length, extra)
    _check_contract(model, tokenizer, max_length)
    adapt(model)
    return model


def _supports(wraps: Any, config: PreTrainedConfig) -> None:
    if type(config) not in wraps._model_mapping:
        names = sorted(name for name in ARCHITECTURES if type(AutoConfig.for_model(name)) in wraps._model_mapping)
        raise UserError(
            f"a {config.model_type!r} model has no {wraps.__name__.removeprefix('AutoModel') or 'bare'} form, which "
            f"this objective needs; choose model.architecture from: {', '.join(names)}"
        )


def _without_pooler(wraps: Any, config: PreTrainedConfig) -> dict[str, bool]:
    # An unused pooler gets no gradient: it breaks DDP at the second step and leaves random weights in the export.
    bare = wraps.__name__ == "AutoModel" and config.model_type in ("bert", "roberta")
    return {"add_pooling_layer": False} if bare else {}


def _fresh(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, wraps: Any, max_length: int, extra: dict[str, Any]
) -> PreTrainedModel:
    stock = build_config(config, tokenizer, max_length, **extra)
    _supports(wraps, stock)
    try:
        model: PreTrainedModel = wraps.from_config(stock, **_without_pooler(wraps, stock))
    except ValueError as error:  # fields that do not go together, such as a width the heads do not divide
        raise UserError(f"model.config is not valid for {config.architecture}: {_one_line(error)}") from error
    if (start := _STARTS.get(stock.model_type)) is not None:
        start(model)
    return model.float()


def _load(config: ModelConfig, wraps: Any, extra: dict[str, Any]) -> PreTrainedModel:
    path = str(config.pretrained)
    try:
        self_check(path)
        stock = AutoConfig.from_pretrained(path)
        _supports(wraps, stock)
        known = set(stock.to_dict())
        for name in config.config:
            if name not in known:
                raise UserError(f"unknown model.config.{name} for {path}.{suggest(name, known)}")
        dropouts = {name: config.dropout for name in _DROPOUTS if hasattr(stock, name)}
        stock.update(dropouts | config.config | extra)
        model, info = wraps.from_pretrained(
            path, config=stock, dtype=torch.float32, output_loading_info=True, **_without_pooler(wraps, stock)
        )
    except UserError:
        raise
    except Exception as error:  # missing folder, corrupt safetensors, unknown type: all are the path's fault
        raise UserError(f"cannot load model.pretrained={path}: {_one_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        log.warning("new weights, not in %s: %s", path, ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else ""))
    return model


def max_positions(config: PreTrainedConfig) -> int | None:
    """The longest row a model of this configuration can read; None when nothing bounds it."""
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if length is not None and config.model_type in _OFFSET_POSITIONS:
        length -= (config.pad_token_id or 0) + 1
    return length


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")


def _check_contract(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds {vocabulary}; "
            f"use the tokenizer the model was trained with"
        )
    longest = max_positions(model.config)
    if longest is not None and max_length > longest:
        raise UserError(
            f"rows of {max_length} tokens do not fit a model of {longest} positions; "
            f"set data.seq_length to {longest} or less"
        )


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters (tied weights once)."""
    return sum(p.numel() for p in model.parameters())


# --- running packed rows through a stock model -----------------------------------------------------------------------


def attention_inputs(config: PreTrainedConfig, encoding: Encoding) -> dict[str, Any]:
    """The `attention_mask` and `position_ids` that keep the documents of a packed row apart, for any stock model.

    Without `document_ids` the plain mask [B, S] is passed on. With them (int [B, S], -1 = padding) the mask is a
    boolean [B, 1, S, S] (True = attend): same document, and not ahead when the model is causal; models that mix full
    and sliding-window layers get one mask per kind. Positions restart at 0 in each document. Tokens marked in
    `bidirectional` (bool [B, S], optional) are seen from the whole of their document, also by a causal model.
    """
    document_BS = encoding.get("document_ids")
    if document_BS is None:
        return {"attention_mask": encoding["attention_mask"]}
    same = _same_document(document_BS, document_BS)
    index = torch.arange(document_BS.shape[1], device=document_BS.device)
    distance = index[:, None] - index[None, :]
    causal = is_causal(config)
    if causal:
        visible = distance >= 0
        if (open_BS := encoding.get("bidirectional")) is not None:
            visible = visible | open_BS[:, None, None, :]
        same = same & visible
    mask: Any = same
    kinds = set(getattr(config, "layer_types", None) or [])
    if "sliding_attention" in kinds:
        # The window of a causal model counts the token itself; a bidirectional one reaches `window` to each side.
        near = distance < config.sliding_window if causal else distance.abs() <= config.sliding_window
        mask = {"full_attention": same, "sliding_attention": same & near}
    position_BS = encoding["position_ids"]
    if config.model_type in _OFFSET_POSITIONS:
        position_BS = position_BS + (config.pad_token_id or 0) + 1
    return {"attention_mask": mask, "position_ids": position_BS}


def _same_document(query_BT: Tensor, key_BS: Tensor) -> Tensor:
    """bool [B, 1, T, S]: the pairs of the same document. Padding sees everything: nobody reads it, and a row of a mask
    without a single True would be NaN."""
    query = query_BT[:, None, :, None]
    return (query == key_BS[:, None, None, :]) | (query < 0)


def seq2seq_logits(model: PreTrainedModel, batch: Encoding) -> Tensor:
    """Logits [B, T, V] of a stock encoder-decoder for `labels` [B, T] at their own place, the labels before it given.

    `batch` is what `collators.seq2seq.seq2seq_batch` makes: decoder document d reads source document d and nothing of
    the others; each begins with the model's start token. Works for learned positions (BART) and relative ones (T5).
    """
    source_BS, target_BT = batch["document_ids"], batch["decoder_document_ids"]
    index = torch.arange(target_BT.shape[1], device=target_BT.device)
    causal = _same_document(target_BT, target_BT) & (index[:, None] >= index[None, :])
    encoder, decoder = model.get_encoder(), model.get_decoder()
    encoded = encoder(
        attention_mask=_same_document(source_BS, source_BS),
        **_placed(encoder, batch["input_ids"], batch["position_ids"]),
    )
    shifted = _placed(decoder, _decoder_input_ids(model.config, batch), batch["decoder_position_ids"])
    logits: Tensor = model(
        encoder_outputs=encoded,
        attention_mask=_same_document(target_BT, source_BS),
        decoder_attention_mask=causal,
        use_cache=False,
        **{f"decoder_{name}": value for name, value in shifted.items()},
    ).logits
    return logits


def _decoder_input_ids(config: PreTrainedConfig, batch: Encoding) -> Tensor:
    """int64 [B, T]: the labels moved one place to the right inside each document, behind the model's start token."""
    labels_BT = batch["labels"]
    previous = torch.nn.functional.pad(labels_BT[:, :-1], (1, 0), value=0).clamp(min=0)
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise UserError("the model's config does not say what its decoder starts from; set decoder_start_token_id")
    return torch.where(batch["decoder_position_ids"] == 0, start, previous)


def _placed(stack: Any, ids_BT: Tensor, position_BT: Tensor) -> dict[str, Tensor]:
    """The ids, or, where a stack adds learned positions 0 to T - 1 and takes no others, embeddings that make up for it.

    Relative positions are right as they are: documents do not see each other.
    """
    table = getattr(stack, "embed_positions", None)
    if table is None:
        return {"input_ids": ids_BT}
    index = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    offset = getattr(table, "offset", 0)
    embedded = stack.get_input_embeddings()(ids_BT)
    return {"inputs_embeds": embedded + table.weight[position_BT + offset] - table.weight[index + offset]}


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a stock model of this configuration reads left to right only."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if (explicit := getattr(config, "is_causal", None)) is not None:
        return bool(explicit)
    if getattr(config, "is_decoder", False):
        return True
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def hidden_states(model: PreTrainedModel, encoding: Encoding) -> Tensor:
    """The last hidden states [B, S, H] of the backbone, documents isolated."""
    output: Tensor = _backbone_output(model, encoding).last_hidden_state
    return output


def all_hidden_states(model: PreTrainedModel, encoding: Encoding) -> list[Tensor]:
    """The output [B, S, H] of every layer of the backbone, first to last (not the embeddings), documents isolated."""
    states: tuple[Tensor, ...] = _backbone_output(model, encoding, output_hidden_states=True).hidden_states
    return list(states[1:])


def _backbone_output(model: PreTrainedModel, encoding: Encoding, **options: bool) -> Any:
    inputs = attention_inputs(model.config, encoding) | options
    if "token_type_ids" in encoding:
        inputs["token_type_ids"] = encoding["token_type_ids"]
    if getattr(model.config, "use_cache", False):
        inputs["use_cache"] = False
    return model.base_model(input_ids=encoding["input_ids"], **inputs)


@dataclass(frozen=True)
class Head:
    """The vocabulary head of a stock language model: logits are `features(hidden) @ weight.T + bias`."""

    features: Callable[[Tensor], Tensor]
    """[..., H] -> [..., H]: what stands between the backbone and the vocabulary."""
    projection: nn.Linear

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> logits [..., V]."""
        logits: Tensor = self.projection(self.features(hidden))
        return logits


def prediction_head(model: PreTrainedModel) -> Head | None:
    """The vocabulary head of a stock masked or causal LM, apart from the model.

    Found by the attribute names stock models use, then *checked* against the model's own logits on a probe; None when
    the model does something else with its hidden states (scaling, soft-capping), so that callers fall back to the
    whole model.
    """
    # Kept as a plain object: a module kept as an attribute would enter the objective's state a second time.
    head = _find_head(model)
    if head is None or not isinstance(head.projection, nn.Linear):
        return None
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        ids = torch.arange(4, device=device)[None] % model.config.vocab_size
        probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        same = torch.allclose(head(hidden_states(model, probe)), model(**probe).logits, atol=1e-4, rtol=1e-4)
    model.train(training)
    return head if same else None


def _find_head(model: PreTrainedModel) -> Head | None:
    parts: Any = model
    if hasattr(parts, "head") and hasattr(parts, "decoder"):  # ModernBERT
        return Head(parts.head, parts.decoder)
    if hasattr(parts, "generator_predictions"):  # ELECTRA
        return Head(parts.generator_predictions, parts.generator_lm_head)
    if hasattr(parts, "cls"):  # BERT
        return Head(parts.cls.predictions.transform, parts.cls.predictions.decoder)
    found: Any = getattr(parts, "lm_head", None)
    if isinstance(found, nn.Linear):  # decoders
        return Head(nn.Identity(), found)
    if found is not None and hasattr(found, "dense") and hasattr(found, "layer_norm"):  # RoBERTa
        return Head(lambda x: found.layer_norm(nn.functional.gelu(found.dense(x))), found.decoder)
    return None


def scored_features(model: PreTrainedModel, head: Head, encoding: Encoding, index_N: Tensor | None = None) -> Tensor:
    """What `head.projection` multiplies, [N, H]: at the flat positions `index_N` of [B × S], or at all of them."""
    hidden_NH = hidden_states(model, encoding).flatten(0, 1)
    return head.features(hidden_NH if index_N is None else hidden_NH[index_N])


def scored_logits(
    model: PreTrainedModel, head: Callable[[Tensor], Tensor] | None, encoding: Encoding, index_N: Tensor
) -> Tensor:
    """Logits [N, V] at the flat positions `index_N` of [B × S]: the head is computed only there where it can be."""
    if head is not None:
        return head(hidden_states(model, encoding).flatten(0, 1)[index_N])
    inputs = attention_inputs(model.config, encoding)
    logits: Tensor = model(input_ids=encoding["input_ids"], **inputs).logits
    return logits.flatten(0, 1)[index_N]
