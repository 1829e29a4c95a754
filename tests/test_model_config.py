"""What the configuration of a model from scratch says: sizes, fields that are given, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerBase,
)

from sslnlp.architectures import SIZES
from sslnlp.errors import UserError
from sslnlp.models import ModelConfig, build_config, build_model, count_parameters

WRAPS = {
    **dict.fromkeys(("bert", "modernbert", "roberta", "electra"), AutoModelForMaskedLM),
    **dict.fromkeys(("gpt2", "llama", "qwen3"), AutoModelForCausalLM),
}
SEQ2SEQ = ("bart", "t5")


@pytest.mark.parametrize(("architecture", "shared"), [("llama", False), ("qwen3", False), ("gpt2", True)])
def test_a_decoder_has_a_head_of_its_own_as_published(
    architecture: str, shared: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = ModelConfig(architecture=architecture, size="nano")
    build_model(config, tokenizer, AutoModelForCausalLM, max_length=16).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == shared


def test_sizes_grow(tokenizer: PreTrainedTokenizerBase) -> None:
    counts = [
        count_parameters(build_model(ModelConfig(size=size), tokenizer, AutoModelForMaskedLM, max_length=64))
        for size in list(SIZES)[:4]
    ]
    assert counts == sorted(counts)
    assert len(set(counts)) == 4


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_keys_and_their_width_follow_the_heads_that_are_given(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    for given, expected in {
        (("num_attention_heads", 2),): (2, 128),
        (("num_attention_heads", 8), ("num_key_value_heads", 2)): (2, 32),
        (("hidden_size", 512),): (4, 128),
        (("num_attention_heads", 2), ("head_dim", 64)): (2, 64),
    }.items():
        config = build_config(ModelConfig(architecture=architecture, size="mini", config=dict(given)), tokenizer, 32)
        assert (config.num_key_value_heads, config.head_dim) == expected


def test_any_field_of_the_configuration_can_be_set(tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(architecture="bert", size="nano", config={"hidden_size": 96, "num_attention_heads": 3})
    assert build_model(config, tokenizer, AutoModel, max_length=64).config.hidden_size == 96


def test_a_vocabulary_may_be_larger_than_the_tokenizers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Rounded up for the products of a GPU, say."""
    config = ModelConfig(architecture="bert", size="nano", config={"vocab_size": 1024})
    assert build_model(config, tokenizer, AutoModel, max_length=64).get_input_embeddings().num_embeddings == 1024


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "brt"}, "Did you mean 'bert'"),
        ({"size": "mnii"}, "Did you mean 'mini'"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"config": {"hiden_size": 3}}, "Did you mean 'hidden_size'"),
        ({"architecture": "bert", "config": {"hidden_size": 65}}, "not valid for bert|65"),
        ({"config": {"vocab_size": 10}}, r"embeds 10; leave model.config.vocab_size out, or give \d+ or more"),
        ({"architecture": "gpt2"}, "no ForMaskedLM form"),
        ({"pretrained": "nowhere/at/all"}, "cannot load model.pretrained=nowhere"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(
    config: dict[str, object], message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(ModelConfig(**config), tokenizer, AutoModelForMaskedLM, max_length=64)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
