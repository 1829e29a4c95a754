"""Prefix language models: a decoder that reads a prefix in both directions and writes on from left to right."""

from __future__ import annotations

from typing import ClassVar

from sslnlp.objectives.causal_lm import CausalLM


class PrefixLM(CausalLM):
    """Next-token cross-entropy in nats over what follows the prefix (Raffel et al., 2020, section 3.2.1).

    Reads `input_ids`, `attention_mask`, `labels`, `document_ids`, `position_ids` and `bidirectional` [B, S]: the
    prefix, whose tokens are seen from all of their document. The model is a stock decoder, and so is the export, which
    by itself reads a prompt from left to right. No bits per byte: the prefix is given away.
    """

    name: ClassVar[str] = "prefix_lm"
    needs: ClassVar[frozenset[str]] = CausalLM.needs | {"bidirectional", "document_ids", "position_ids"}
    collator: ClassVar[str] = "prefix_lm"
    likelihood: ClassVar[bool] = False


class UL2Decoder(PrefixLM):
    """A mixture of denoisers in a decoder (Tay et al., 2023, arXiv:2205.05131): the corrupted text is the prefix, and
    what was taken out of it follows."""

    name: ClassVar[str] = "ul2_decoder"
    collator: ClassVar[str] = "ul2_decoder"
