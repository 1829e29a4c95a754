"""What is measured: a model with its tokenizer, and the ways it can be asked."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.distributed import own_device
from sslnlp.errors import UserError, reason_of
from sslnlp.hub import how_again
from sslnlp.models import max_positions
from sslnlp.quiet import quiet_loading
from sslnlp.search.encoder import Encoder, EncoderSettings, read_settings

_MOST = 512
"""Tokens of a text that are read, whatever the model could."""
Kind = Literal["masked", "causal", "encoder-decoder", "encoder"]


@dataclass
class Subject:
    """A stock model; `kind` is what its class can do besides making vectors."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: EncoderSettings
    max_length: int

    @property
    def kind(self) -> Kind:
        name = type(self.model).__name__
        if self.model.config.is_encoder_decoder:
            return "encoder-decoder" if "ConditionalGeneration" in name else "encoder"
        if name.endswith("ForMaskedLM"):
            return "masked"
        # A decoder reads from the left whatever its head is named (GPT2LMHeadModel, LlamaForCausalLM).
        return "causal" if name.endswith(("ForCausalLM", "LMHeadModel")) else "encoder"

    @property
    def encoder(self) -> Encoder:
        """Its vectors; the weights are the model's own, not a copy."""
        backbone: Any = self.model.base_model
        if self.model.config.is_encoder_decoder:
            backbone = backbone.get_encoder()
        return Encoder(backbone, self.tokenizer, self.settings, "", "")


def subject_of(export: Path) -> Subject:
    """The model in a Hugging Face folder, of the class its config names. `UserError` when it cannot be loaded."""
    try:
        (name,) = json.loads((export / "config.json").read_text(encoding="utf-8"))["architectures"]
        cls: Any = getattr(transformers, name)
        with quiet_loading():
            model = cls.from_pretrained(export, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(export)
    except Exception as error:  # the loaders raise anything from OSError to safetensors' own type
        raise UserError(
            f"cannot measure the model in {str(export)!r}: {reason_of(error, 200)}; {how_again(export)}"
        ) from error
    model.to(own_device()).eval()
    return in_memory(model, tokenizer, settings=read_settings(export, head=True))


def in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, settings: EncoderSettings) -> Subject:
    """The same for a model that is at hand."""
    if tokenizer.pad_token is None:
        tokenizer = copy.deepcopy(tokenizer)  # the caller's may yet be exported
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked out, so any token serves
    # A tokenizer at hand may have no limit yet, and of RoBERTa's positions not all are places of tokens.
    longest = int(
        min(tokenizer.model_max_length, settings.max_length or _MOST, max_positions(model.config) or _MOST, _MOST)
    )
    return Subject(model, tokenizer, replace(settings, max_length=settings.max_length or longest), longest)
