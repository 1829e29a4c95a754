"""Stock models from a name and a size, or from a checkpoint, that fit the tokenizer and the rows."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.adapt import adapt
from sslnlp.architectures import ARCHITECTURES, STARTS, position_offset, size_of
from sslnlp.errors import UserError, reason_of, suggest
from sslnlp.lora import add_lora
from sslnlp.masks import is_causal
from sslnlp.model_config import ModelConfig
from sslnlp.modes import self_check
from sslnlp.tokenizer.specials import vocabulary_size

log = logging.getLogger(__name__)

_NEW = "_sslnlp_new_weights"
"""Attribute of a model: the names of its weights that its checkpoint did not have; None: all are new."""
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout", "mlp_dropout"),
    *("attn_pdrop", "embd_pdrop", "emb_pdrop", "resid_pdrop", "classifier_dropout", "classifier_dropout_prob"),
    *("dropout", "activation_dropout", "dropout_rate", "dropout_p", "hidden_dropout", "embed_dropout"),
    *("resid_dropout", "residual_dropout", "pooler_dropout", "seq_classif_dropout", "classifier_dropout_rate"),
    *("summary_first_dropout", "summary_last_dropout"),
)


def build_config(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None, max_length: int, **extra: Any
) -> PreTrainedConfig:
    """The stock configuration of a model from scratch: size, vocabulary and special ids of the tokenizer, if any."""
    fields = ARCHITECTURES[config.architecture](size_of(config.architecture, config.size), max_length)
    if "head_dim" in fields:  # as in stock configurations, these two follow where they are not given themselves
        width, heads = (config.config.get(name, fields[name]) for name in ("hidden_size", "num_attention_heads"))
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            fields |= {"num_key_value_heads": heads, "head_dim": width // heads}
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
        ids = {name: getattr(tokenizer, name) for name in names}
        fields |= {"vocab_size": vocabulary_size(tokenizer)}
    if config.architecture == "roberta":
        fields["max_position_embeddings"] = max_length + (ids["pad_token_id"] or 0) + 1
    default = AutoConfig.for_model(config.architecture)
    fields |= {name: config.dropout for name in _DROPOUTS if hasattr(default, name)}
    known = known_fields(default) | {"attn_implementation"}
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
    fields |= ids | config.config | extra
    try:
        return AutoConfig.for_model(config.architecture, **fields)
    except Exception as error:  # transformers raises several kinds for inconsistent fields
        raise UserError(f"model.config is not valid for {config.architecture}: {reason_of(error)}") from error


def known_fields(stock: PreTrainedConfig) -> set[str]:
    """What `model.config` may set. A T5 says what its decoder starts from only where it was given."""
    return set(stock.to_dict()) | ({"decoder_start_token_id"} if stock.is_encoder_decoder else set())


def build_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    wraps: Any,
    *,
    max_length: int,
    seed: int = 0,
    **extra: Any,
) -> PreTrainedModel:
    """A stock model of the Auto class `wraps`, in float32, whose vocabulary and length fit the tokenizer and the rows
    (`tokenizer` is None for a model that reads pictures).

    Its dropout is keyed by row (see `sslnlp.keyed`), which changes neither its parameters nor what it computes in eval.
    `extra` are configuration fields of the task (`num_labels`, `id2label`, ...). Fresh weights depend on `seed` alone.
    Raises `UserError` for an architecture without such a head, a vocabulary or length that does not fit, and for
    checkpoints that cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new: list[str] = []
        if config.pretrained:
            model, new = _load(config, tokenizer, wraps, extra)
        else:
            model = _fresh(config, tokenizer, wraps, max_length, extra)
        if tokenizer is not None:
            _check_contract(model, tokenizer, max_length, fresh=config.pretrained is None)
        adapt(model)
        if config.lora_rank is not None:
            add_lora(model, config.lora_rank, new)
    setattr(model, _NEW, frozenset(new) if config.pretrained else None)
    return model


def is_new(model: PreTrainedModel, weight: Tensor) -> bool:
    """Whether this parameter of the model is random, not read from a checkpoint."""
    new: frozenset[str] | None = getattr(model, _NEW, None)
    return new is None or any(own is weight and name in new for name, own in model.named_parameters())


def _supports(wraps: Any, config: PreTrainedConfig) -> None:
    if type(config) not in wraps._model_mapping:
        names = sorted(name for name in ARCHITECTURES if type(AutoConfig.for_model(name)) in wraps._model_mapping)
        raise UserError(
            f"a {config.model_type!r} model has no {wraps.__name__.removeprefix('AutoModel') or 'bare'} form, which "
            f"this objective needs; choose model.architecture from: {', '.join(names)}"
        )


def _without_pooler(wraps: Any, config: PreTrainedConfig) -> dict[str, bool]:
    # An unused pooler gets no gradient: it breaks DDP at the second step and leaves random weights in the export.
    bare = wraps.__name__ == "AutoModel" and config.model_type in ("bert", "roberta", "vit")
    return {"add_pooling_layer": False} if bare else {}


def _fresh(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None, wraps: Any, max_length: int, extra: dict[str, Any]
) -> PreTrainedModel:
    stock = build_config(config, tokenizer, max_length, **extra)
    _supports(wraps, stock)
    try:
        return _started(wraps, stock)
    except ValueError as error:  # fields that do not go together, such as a width the heads do not divide
        raise UserError(f"model.config is not valid for {config.architecture}: {reason_of(error)}") from error


def _started(wraps: Any, stock: PreTrainedConfig) -> PreTrainedModel:
    """A model of random weights."""
    model: PreTrainedModel = wraps.from_config(stock, **_without_pooler(wraps, stock))
    if (start := STARTS.get(stock.model_type)) is not None:
        start(model)
    if model.can_generate():  # a stock pipeline asks for 256 tokens, more than a model of short rows has positions for
        model.generation_config.max_length = max_positions(stock)
    return model.float()


def _load(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None, wraps: Any, extra: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of its weights that are new."""
    path = str(config.pretrained)
    try:
        self_check(path)
        stock = AutoConfig.from_pretrained(path)
        _supports(wraps, stock)
        known = known_fields(stock)
        for name in config.config:
            if name not in known:
                raise UserError(f"unknown model.config.{name} for {path}.{suggest(name, known)}")
        dropouts = {name: config.dropout for name in _DROPOUTS if hasattr(stock, name)}
        stock.update(dropouts | _padding(wraps, stock, tokenizer) | config.config | extra)
        if config.fresh:
            stock.name_or_path = ""  # what stands beside the weights there (`vector_map`) does not go with new ones
            model = _started(wraps, stock)
            return model, [name for name, _ in model.named_parameters()]
        model, info = wraps.from_pretrained(
            path, config=stock, dtype=torch.float32, output_loading_info=True, **_without_pooler(wraps, stock)
        )
        if model.can_generate():  # by a file of its own, which would name other ids than the configuration
            model.generation_config.update(**config.config)
    except UserError:
        raise
    except Exception as error:  # missing folder, corrupt safetensors, unknown type: all are the path's fault
        raise UserError(f"cannot load model.pretrained={path}: {reason_of(error)}") from error
    for name in model._keys_to_ignore_on_save or ():  # Marian's sinusoids: loading thaws them, and no export has them
        model.get_parameter(name).requires_grad_(False)
    if missing := sorted(info["missing_keys"]):
        log.warning("new weights, not in %s: %s", path, ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else ""))
    if config.reinit_layers:
        missing += _reinit(model, wraps, config.reinit_layers)
    return model, missing


def _padding(wraps: Any, stock: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    """The tokenizer's padding, by which a stock decoder finds the last token of a text that it classifies."""
    own = tokenizer.pad_token_id if tokenizer is not None else None
    reads_it = wraps.__name__ == "AutoModelForSequenceClassification" and is_causal(stock)
    return {"pad_token_id": own} if reads_it and own is not None else {}


def _reinit(model: PreTrainedModel, wraps: Any, layers: int) -> list[str]:
    """New weights for the last `layers` layers; their names."""
    places = layer_of(model)
    depth = max(places.values(), default=-1) + 1
    if layers > depth:
        raise UserError(f"model.reinit_layers={layers} of a model of {depth} layers")
    fresh = _started(wraps, model.config).state_dict()
    names = [name for name, place in places.items() if place >= depth - layers]
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).copy_(fresh[name])
    return names


def embedding_tables(module: nn.Module) -> set[Tensor]:
    """The tables of all embeddings; a head that is tied to one is the same parameter."""
    return {part.weight for part in module.modules() if isinstance(part, nn.Embedding)}


def layer_of(model: nn.Module) -> dict[str, int]:
    """For every parameter of a layer: which one, from 0 at the input; of both stacks, where there are two."""
    config = getattr(model, "config", None)
    depths = {getattr(config, name, None) for name in ("num_hidden_layers", "decoder_layers", "num_decoder_layers")}
    return {
        f"{place}.{name}": int(name.partition(".")[0])
        for place, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList) and len(stack) in depths
        for name, _ in stack.named_parameters()
    }


def drops_out(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration has any dropout."""
    return any(getattr(config, name, None) for name in _DROPOUTS)


def dropouts_of_start(config: ModelConfig) -> dict[str, float | None]:
    """The rates in the configuration of `config.pretrained`, which a run trains with its own instead."""
    stock = AutoConfig.from_pretrained(str(config.pretrained))
    return {name: getattr(stock, name) for name in _DROPOUTS if hasattr(stock, name) and name not in config.config}


def max_positions(config: PreTrainedConfig) -> int | None:
    """The longest row a model of this configuration can read; None when nothing bounds it."""
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return None if length is None else length - position_offset(config)


def _check_contract(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, *, fresh: bool
) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if (size := vocabulary_size(tokenizer)) > vocabulary:
        advice = (
            f"leave model.config.vocab_size out, or give {size} or more"
            if fresh
            else "use the tokenizer the model was trained with"
        )
        raise UserError(f"the tokenizer has {size} tokens but the model embeds {vocabulary}; {advice}")
    longest = max_positions(model.config)
    if longest is not None and max_length > longest:
        raise UserError(
            f"rows of {max_length} tokens do not fit a model of {longest} positions; "
            f"set data.seq_length to {longest} or less"
        )


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters (tied weights once)."""
    return sum(p.numel() for p in model.parameters())
