"""Stock models: sizes, packed rows that equal separate ones, and checkpoints that do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    MistralConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    pipeline,
)

from sslnlp.architectures import ARCHITECTURES
from sslnlp.errors import UserError
from sslnlp.heads import prediction_head, scored_logits
from sslnlp.keyed import row_keyed_dropout
from sslnlp.models import ModelConfig, build_model, max_positions
from sslnlp.objectives.masked_lm import MaskedLM
from sslnlp.objectives.seq2seq_lm import Seq2SeqLM
from sslnlp.packed import hidden_states, isolates, isolates_pairs, reads_alone, seq2seq_logits
from sslnlp.recipe.checks import check_config

WRAPS = {
    **dict.fromkeys(("bert", "modernbert", "roberta", "electra"), AutoModelForMaskedLM),
    **dict.fromkeys(("gpt2", "llama", "qwen3"), AutoModelForCausalLM),
}
SEQ2SEQ = ("bart", "t5")


def packed(lengths: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """One row that holds documents of these lengths, then three tokens of padding."""
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths) + 3
    ids = torch.randint(150, 490, (1, total), generator=generator)
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)] + [torch.full((3,), -1)])[None]
    positions = torch.cat([torch.arange(n) for n in [*lengths, 3]])[None]
    return {
        "input_ids": ids.masked_fill(documents < 0, tokenizer.pad_token_id),
        "attention_mask": documents >= 0,
        "document_ids": documents,
        "position_ids": positions,
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", sorted(WRAPS))
def test_a_packed_row_is_its_documents_run_alone(
    architecture: str, attention: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Isolation, positions and sliding windows: each document's states are those it has in a row of its own."""
    fields = {"attn_implementation": attention} | ({"local_attention": 8} if architecture == "modernbert" else {})
    config = ModelConfig(architecture=architecture, size="nano", config=fields)
    model = build_model(config, tokenizer, WRAPS[architecture], max_length=64).eval()
    lengths = [20, 1, 17]
    row = packed(lengths, tokenizer)
    with torch.no_grad():
        together, start = hidden_states(model, row), 0
        for length in lengths:
            ids = row["input_ids"][:, start : start + length]
            # The reference is the stock model's own forward on the document alone.
            alone = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            assert torch.allclose(together[:, start : start + length], alone, atol=2e-5)
            start += length


@pytest.mark.parametrize("kind", [MistralConfig, LlamaConfig])
def test_a_window_of_all_layers_is_kept_in_packed_rows(
    kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Mistral's layers all slide and are of no kinds; a Llama that was converted from it still names the window."""
    config = kind(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, sliding_window=8,
    )  # fmt: skip
    model = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    row = packed([20, 17], tokenizer)
    ids = row["input_ids"][:, :20]
    with torch.no_grad():
        assert torch.allclose(hidden_states(model, row)[:, :20], model(ids).last_hidden_state, atol=2e-5)


def test_mpnet_counts_its_positions_behind_the_padding_id(tokenizer: PreTrainedTokenizerBase) -> None:
    config = MPNetConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66,
    )  # fmt: skip
    assert max_positions(config) == 64
    model = AutoModel.from_config(config).eval()
    row = packed([20, 17], tokenizer)
    ids = row["input_ids"][:, 20:37]
    with torch.no_grad():
        assert torch.allclose(hidden_states(model, row)[:, 20:37], model(ids).last_hidden_state, atol=2e-5)


@pytest.mark.parametrize("architecture", sorted(WRAPS))
def test_scored_logits_are_the_models_own(architecture: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_model(
        ModelConfig(architecture=architecture, size="nano"), tokenizer, WRAPS[architecture], max_length=64
    ).eval()
    ids = torch.randint(150, 490, (3, 12))
    encoding = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    index = torch.tensor([0, 5, 13, 35])
    head = prediction_head(model)
    assert head is not None
    with torch.no_grad():
        expected = model(**encoding).logits.flatten(0, 1)[index]
        assert torch.allclose(scored_logits(model, head, encoding, index), expected, atol=1e-5)
        assert torch.allclose(scored_logits(model, None, encoding, index), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("distilbert", {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64}), ("albert", {"embedding_size": 16})],
)
def test_heads_of_further_kinds_teach_all_that_the_whole_model_does(kind: str, fields: dict[str, int]) -> None:
    objective = MaskedLM(of_kind(kind, AutoModelForMaskedLM, **fields))
    ids = torch.arange(5, 29).view(2, 12)
    labels = torch.where(ids % 3 == 0, ids, -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    batch["target_index"] = (labels != -100).flatten().nonzero()[:, 0]
    apart, found = objective.head, []
    assert apart is not None
    pickle.dumps(apart)
    for head in (apart, None):
        objective.head = head
        objective.zero_grad()
        objective(batch).loss.backward()
        found.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def test_a_head_that_is_not_the_whole_story_is_not_used(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_model(ModelConfig(architecture="llama", size="nano"), tokenizer, AutoModelForCausalLM, max_length=64)
    original = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        output = original(*args, **kwargs)
        output.logits = output.logits * 0.5 + 1
        return output

    model.forward = scaled
    assert prediction_head(model) is None


def of_kind(kind: str, wraps: Any, **fields: Any) -> Any:
    """A small stock model of a kind that has no size here, in evaluation mode."""
    sizes = {"vocab_size": 512, "hidden_size": 32, "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "state_size": 4, "n_head": 4, "n_layer": 2}
    sizes |= {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    known = AutoConfig.for_model(kind).to_dict()
    own = {name: value for name, value in sizes.items() if name in known} | fields
    torch.manual_seed(0)
    return wraps.from_config(AutoConfig.for_model(kind, **own)).eval()


@pytest.mark.parametrize(
    ("kind", "packed", "alone"),
    [
        *[("bart", True, True), ("mbart", True, True), ("pegasus", True, True), ("marian", True, True)],
        # Learned positions that a norm comes before; sinusoidal ones that are no table; attention by windows.
        *[("blenderbot-small", False, True), ("m2m_100", False, False), ("led", False, False)],
    ],
)
def test_pairs_of_a_row_are_tried_on_an_encoder_decoder(kind: str, packed: bool, alone: bool) -> None:
    model = of_kind(kind, AutoModelForSeq2SeqLM, decoder_start_token_id=2)
    assert isolates_pairs(model) == packed
    assert isolates_pairs(model, alone=True) == alone


@pytest.mark.parametrize("kind", ["bart", "mbart", "pegasus", "marian"])
def test_pairs_of_a_row_are_apart_where_embeddings_are_scaled(kind: str) -> None:
    """As all published Marian, Pegasus and mBART models do it: some in the table, some in the stack."""
    model = of_kind(kind, AutoModelForSeq2SeqLM, decoder_start_token_id=2, scale_embedding=True, init_std=0.3)
    assert isolates_pairs(model)
    assert isolates_pairs(model, alone=True)


@pytest.mark.parametrize(
    ("kind", "wraps"),
    [("deberta-v2", AutoModelForMaskedLM), ("mamba", AutoModelForCausalLM), ("bloom", AutoModelForCausalLM)],
)
def test_rows_of_one_document_suit_models_that_take_no_mask_of_pairs(kind: str, wraps: Any) -> None:
    """The states and logits are those of the stock model on each document without the padding."""
    model = of_kind(kind, wraps)
    ids = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    real = torch.arange(12) < torch.tensor([[12], [7]])
    place = torch.arange(12).expand(2, 12)
    row = {"input_ids": ids, "attention_mask": real, "document_ids": real.long() - 1, "position_ids": place}
    assert not isolates(model)
    assert not reads_alone(model, plain=False)
    assert reads_alone(model)
    with torch.no_grad():
        states, logits = hidden_states(model, row), scored_logits(model, None, row, torch.arange(24)).view(2, 12, -1)
        for b, length in enumerate((12, 7)):
            alone = model(input_ids=ids[b : b + 1, :length], output_hidden_states=True)
            assert torch.allclose(states[b, :length], alone.hidden_states[-1][0], atol=1e-5)
            assert torch.allclose(logits[b, :length], alone.logits[0], atol=1e-5)


def test_a_decoder_that_sees_what_is_ahead_is_none() -> None:
    assert not reads_alone(of_kind("bert-generation", AutoModelForCausalLM))
    assert reads_alone(of_kind("bert-generation", AutoModelForCausalLM, is_decoder=True))


def test_a_head_of_other_parts_is_left_to_the_whole_model() -> None:
    assert prediction_head(of_kind("rembert", AutoModelForMaskedLM, input_embedding_size=32)) is None
    protein = of_kind("esm", AutoModelForMaskedLM, mask_token_id=3)
    assert not protein.lm_head.bias.any()  # which the projection has not, and no probe sees while it is zero
    assert prediction_head(protein) is None


def test_layers_of_an_encoder_decoder_slide_in_packed_rows_as_they_do_alone() -> None:
    stack = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    stack |= {"head_dim": 8, "vocab_size": 512, "intermediate_size": 64, "sliding_window": 2}
    model = of_kind("t5gemma", AutoModelForSeq2SeqLM, encoder=stack, decoder=stack, decoder_start_token_id=2)
    assert "sliding_attention" in model.config.encoder.layer_types
    assert isolates_pairs(model)


def test_a_soft_cap_is_found_while_the_logits_are_small() -> None:
    model = of_kind("gemma2", AutoModelForCausalLM, head_dim=8, num_key_value_heads=4)
    ids = torch.arange(9)[None]
    small = model(ids).logits
    assert float(small.detach().abs().max()) < 0.02 * model.config.final_logit_softcapping
    assert prediction_head(model) is None
    assert torch.equal(model(ids).logits, small)


def test_what_a_stock_class_does_not_save_is_not_trained(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Marian's sinusoids: the export of a model that had moved them was another one."""
    of_kind("marian", AutoModelForSeq2SeqLM, decoder_start_token_id=2).save_pretrained(tmp_path / "before")
    config = ModelConfig(pretrained=str(tmp_path / "before"))
    model = build_model(config, tokenizer, AutoModelForSeq2SeqLM, max_length=64)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight += 1
    model.save_pretrained(tmp_path / "after")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "after").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "wraps"),
    [
        *[(kind, AutoModelForCausalLM) for kind in ("falcon", "gpt_neox", "gpt_neo", "starcoder2", "seed_oss")],
        *[(kind, AutoModelForMaskedLM) for kind in ("distilbert", "albert", "deberta-v2")],
    ],
)
def test_the_dropout_of_a_model_is_all_of_its_rates(
    kind: str, wraps: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    of_kind(kind, wraps).save_pretrained(tmp_path)
    for rate in (0.0, 0.25):
        model = build_model(ModelConfig(pretrained=str(tmp_path), dropout=rate), tokenizer, wraps, max_length=64)
        rates = {name: value for name, value in model.config.to_dict().items() if "dropout" in name}
        rates.pop("qa_dropout", None)  # of a head that answers questions, which nothing here trains
        assert rates == dict.fromkeys(rates, rate)


def test_what_a_decoder_starts_from_can_be_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A T5 made in transformers 5 does not name it, which training asks for and generation needs."""
    of_kind("t5", AutoModelForSeq2SeqLM, num_layers=1, d_kv=8, d_ff=32).save_pretrained(tmp_path)
    fields = {"decoder_start_token_id": 0, "eos_token_id": 9}
    config = ModelConfig(pretrained=str(tmp_path), config=fields)
    model = build_model(config, tokenizer, AutoModelForSeq2SeqLM, max_length=64)
    check_config(config, Seq2SeqLM, 64)
    for settings in (model.config, model.generation_config):
        assert {name: getattr(settings, name) for name in fields} == fields


@pytest.mark.parametrize("given", [None, 7])
def test_a_decoder_that_classifies_knows_the_padding(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, given: int | None
) -> None:
    """By it a stock head finds the last token: without one it refuses a batch, by another it reads at the padding."""
    stock = of_kind("qwen2", AutoModelForCausalLM, pad_token_id=given, num_key_value_heads=4)
    stock.save_pretrained(tmp_path)
    config = ModelConfig(pretrained=str(tmp_path))
    model = build_model(config, tokenizer, AutoModelForSequenceClassification, max_length=64, num_labels=2).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id
    texts = ["a cat", "a dog that sat on a mat and on another one"]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    alone = tokenizer(texts[:1], return_tensors="pt")
    inputs = [{name: part[name] for name in ("input_ids", "attention_mask")} for part in (batch, alone)]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs[0]).logits[:1], model(**inputs[1]).logits)
    encoder = of_kind("bert", AutoModelForMaskedLM, pad_token_id=5)  # its embeddings and positions may go by its own
    encoder.save_pretrained(tmp_path / "encoder")
    config = ModelConfig(pretrained=str(tmp_path / "encoder"))
    read = build_model(config, tokenizer, AutoModelForSequenceClassification, max_length=64, num_labels=2)
    assert read.config.pad_token_id == 5


def test_a_stock_pipeline_stops_where_the_positions_end(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Unasked it writes 256 tokens, which would be an IndexError here."""
    config = ModelConfig(architecture="gpt2", size="nano")
    build_model(config, tokenizer, AutoModelForCausalLM, max_length=16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    writer = pipeline("text-generation", model=str(tmp_path), return_full_text=True, eos_token_id=-1)
    (made,) = writer("a cat", return_tensors=True)
    assert len(made["generated_token_ids"]) == 16


def test_fresh_weights_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    def build(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever was drawn before does not matter
        model = build_model(ModelConfig(size="nano"), tokenizer, AutoModel, max_length=64, seed=seed)
        return model.get_input_embeddings().weight

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


def test_a_checkpoint_must_fit_tokenizer_and_rows(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = build_model(ModelConfig(architecture="bert", size="nano"), tokenizer, AutoModelForMaskedLM, max_length=64)
    model.save_pretrained(tmp_path / "whole")
    again = ModelConfig(pretrained=str(tmp_path / "whole"))
    build_model(again, tokenizer, AutoModelForMaskedLM, max_length=64)
    with pytest.raises(UserError, match="do not fit a model of 64 positions"):
        build_model(again, tokenizer, AutoModelForMaskedLM, max_length=65)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match="but the model embeds 100"):
        build_model(ModelConfig(pretrained=str(tmp_path / "small")), tokenizer, AutoModelForMaskedLM, max_length=64)
    weights = tmp_path / "whole" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot load model"):
        build_model(again, tokenizer, AutoModelForMaskedLM, max_length=64)


def pairs(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Two rows of two documents each, source and target of different lengths, padded in different places."""
    source = torch.tensor([[0] * 5 + [1] * 7 + [-1] * 2, [0] * 10 + [1] * 4])
    target = torch.tensor([[0] * 4 + [1] * 5, [0] * 3 + [1] * 4 + [-1] * 2])
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(150, 490, x.shape, generator=generator) for x in (source, target))
    places = [torch.stack([torch.arange(14), torch.arange(14)]), torch.stack([torch.arange(9), torch.arange(9)])]
    for place, documents in zip(places, (source, target), strict=True):
        for row, document in zip(place, documents, strict=True):
            for d in document.unique():
                row[document == d] -= row[document == d].min()
    return {
        "input_ids": ids.masked_fill(source < 0, tokenizer.pad_token_id),
        "attention_mask": source >= 0,
        "document_ids": source,
        "position_ids": places[0],
        "labels": labels.masked_fill(target < 0, -100),
        "decoder_document_ids": target,
        "decoder_position_ids": places[1],
    }


def test_every_architecture_is_tried() -> None:
    assert {*WRAPS, *SEQ2SEQ} == set(ARCHITECTURES) - {"vit"}  # which reads no text


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_packed_pair_is_its_documents_run_alone(
    architecture: str, attention: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Encoder, decoder and the attention between them: the logits are those of the stock model on one pair."""
    config = ModelConfig(architecture=architecture, size="nano", config={"attn_implementation": attention})
    model = build_model(config, tokenizer, AutoModelForSeq2SeqLM, max_length=64).eval()
    batch = pairs(tokenizer)
    with torch.no_grad():
        together = seq2seq_logits(model, batch)
        assert together.isfinite().all()
        for row in range(2):
            for d in range(2):
                inside = batch["decoder_document_ids"][row] == d
                source = batch["input_ids"][row][batch["document_ids"][row] == d]
                alone = model(input_ids=source[None], labels=batch["labels"][row][inside][None]).logits[0]
                assert torch.allclose(together[row][inside], alone, atol=1e-5)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_dropout_of_an_encoder_decoder_belongs_to_the_row(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = ModelConfig(architecture=architecture, size="nano", dropout=0.2)
    model = build_model(config, tokenizer, AutoModelForSeq2SeqLM, max_length=64).train()
    batch = pairs(tokenizer)
    with torch.no_grad():
        with row_keyed_dropout(1, torch.tensor([7, 8])):
            together = seq2seq_logits(model, batch)
        for row in range(2):
            with row_keyed_dropout(1, torch.tensor([7 + row])):
                alone = seq2seq_logits(model, {name: x[row : row + 1] for name, x in batch.items()})
            assert torch.allclose(together[row], alone[0], atol=1e-5)
        with row_keyed_dropout(2, torch.tensor([7, 8])):
            assert not torch.allclose(together, seq2seq_logits(model, batch), atol=1e-2)
