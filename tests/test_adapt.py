"""Stock models compute what they did before `adapt`, in the loop and out of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from sslnlp.adapt import adapt
from sslnlp.attention import NAME
from sslnlp.keyed import RowDropout, _Key, row_keyed_dropout
from sslnlp.masks import attention_inputs
from sslnlp.nn import TanhGELU
from sslnlp.packed import hidden_states, seq2seq_logits, trust_rows

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "modernbert": {
        **{"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
        **{"local_attention": 6, "global_attn_every_n_layers": 3},
    },
    "llama": {
        **{"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
        **{"num_key_value_heads": 2, "max_position_embeddings": 64},
    },
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64},
    "t5": {"num_layers": 2, "num_decoder_layers": 2, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4},
    "bart": {
        **{"encoder_layers": 2, "decoder_layers": 2, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64},
    },
}
SEQ2SEQ = ("t5", "bart")
WRAPS: dict[str, Any] = {"bert": AutoModelForMaskedLM, "modernbert": AutoModelForMaskedLM}
WRAPS |= dict.fromkeys(("llama", "gpt2"), AutoModelForCausalLM) | dict.fromkeys(SEQ2SEQ, AutoModelForSeq2SeqLM)


def stock(architecture: str, **options: Any) -> PreTrainedModel:
    ids = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    start = {"decoder_start_token_id": 0} if architecture in SEQ2SEQ else {}
    config = AutoConfig.for_model(architecture, vocab_size=50, **SIZES[architecture], **ids, **start, **options)
    torch.manual_seed(0)
    model: PreTrainedModel = WRAPS[architecture].from_config(config)
    with torch.no_grad():  # fresh weights of 0.02 make models nearly uniform; T5's are larger
        for parameter in model.parameters():
            if parameter.ndim > 1 and architecture != "t5":
                parameter.mul_(3.0)
    return model.eval()


def packed(architecture: str) -> dict[str, Tensor]:
    """Two rows of a few documents; the second ends in padding."""
    document = torch.tensor([[0] * 10 + [1] * 6, [0] * 3 + [1] * 9 + [-1] * 4])
    place = torch.tensor([[*range(10), *range(6)], [*range(3), *range(9), *range(4)]])
    ids = torch.randint(5, 50, document.shape, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": document >= 0, "document_ids": document, "position_ids": place}
    if architecture in SEQ2SEQ:
        batch |= {"labels": ids.flip(0), "decoder_document_ids": document, "decoder_position_ids": place}
    return batch


def logits(model: PreTrainedModel, batch: dict[str, Tensor], kind: str) -> Tensor:
    """At real positions, of packed rows or of rows with a plain mask."""
    seq2seq = "decoder_document_ids" in batch
    if kind == "packed":
        if seq2seq:
            found = seq2seq_logits(model, batch)
        else:
            found = model(input_ids=batch["input_ids"], **attention_inputs(model.config, batch)).logits
    else:
        target = {"decoder_input_ids": batch["labels"]} if seq2seq else {}
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **target).logits
    return found[batch["attention_mask"]]


@pytest.mark.parametrize("kind", ["packed", "plain"])
@pytest.mark.parametrize("architecture", SIZES)
def test_an_adapted_model_computes_what_the_stock_one_does(architecture: str, kind: str) -> None:
    untouched, batch = stock(architecture), packed(architecture)
    adapted = copy.deepcopy(untouched)
    adapt(adapted)
    with torch.no_grad():
        expected = logits(untouched, batch, kind)
        assert expected.std() > 0.1, "too uniform to tell anything"
        assert torch.allclose(logits(adapted, batch, kind), expected, atol=1e-5 * float(expected.abs().max()))
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = logits(adapted, batch, kind), logits(untouched, batch, kind)
    # The residual stream is in bf16 as well: 1.1 to 2 times as far from float32 as stock bf16 is.
    error, usual = ours.float() - expected, theirs.float() - expected
    assert float(error.abs().max()) <= 0.015 * float(expected.abs().max())
    assert float(error.abs().mean()) <= 2.5 * float(usual.abs().mean())


@pytest.mark.parametrize("architecture", SIZES)
def test_an_adapted_model_has_the_gradients_of_the_stock_one(architecture: str) -> None:
    gradients = []
    for adapts in (False, True):
        model = stock(architecture)
        if adapts:
            adapt(model)
        logits(model, packed(architecture), "packed").logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    theirs, ours = gradients
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-4 * max(1.0, float(gradient.abs().max()))), name


@pytest.mark.parametrize("architecture", SIZES)
def test_adapting_leaves_parameters_and_config_as_they_are(architecture: str) -> None:
    untouched = stock(architecture)
    adapted = copy.deepcopy(untouched)
    adapt(adapted)
    assert {part.config._attn_implementation for part in adapted.modules() if hasattr(part, "config")} == {NAME}
    assert adapted.config.to_dict() == untouched.config.to_dict()
    before, after = untouched.state_dict(), adapted.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(isinstance(part, nn.Dropout) for part in adapted.modules())
    assert not any(part.training for part in adapted.modules()), "what is put in place drops out in eval"


@pytest.mark.parametrize("architecture", SIZES)
def test_dropout_of_an_adapted_model_is_the_rows_own(architecture: str) -> None:
    """One batch of two rows and two of one: the same logits, which are not those without dropout."""
    rates = {"t5": ("dropout_rate",), "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    rates |= {"bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"), "llama": ("attention_dropout",)}
    rates |= {"modernbert": ("attention_dropout", "mlp_dropout", "embedding_dropout")}
    names = rates.get(architecture, ("dropout", "attention_dropout", "activation_dropout"))
    model = stock(architecture, **dict.fromkeys(names, 0.2))
    adapt(model)
    model.train()
    batch = packed(architecture)

    def run(rows: slice) -> Tensor:
        part = {name: value[rows] for name, value in batch.items()}
        with torch.no_grad(), row_keyed_dropout(3, torch.tensor([11, 12])[rows]):
            return logits(model, part, "packed")

    whole, halves = run(slice(None)), torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    assert torch.allclose(whole, halves, atol=1e-5 * float(whole.abs().max()))
    with torch.no_grad():
        assert not torch.allclose(whole, logits(model.eval(), batch, "packed"), atol=1e-2)


@pytest.mark.parametrize(("kind", "rate"), [("starcoder2", "residual_dropout"), ("gemma2", "attention_dropout")])
def test_dropout_that_stock_code_calls_as_a_function_is_the_rows_own(
    kind: str, rate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Falcon, Starcoder2 and others hold the rate under a name of their own; eager attention (Gemma 2's is always)
    drops its weights so."""
    monkeypatch.setattr(_Key, "functional", False)
    config = AutoConfig.for_model(kind, vocab_size=50, **SIZES["llama"], **{rate: 0.2})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    adapt(model)
    ids = packed("llama")["input_ids"]

    def run(rows: slice) -> Tensor:
        with torch.no_grad(), row_keyed_dropout(3, torch.tensor([11, 12])[rows]):
            return model(input_ids=ids[rows], use_cache=False).logits

    assert torch.allclose(run(slice(None)), torch.cat([run(slice(0, 1)), run(slice(1, 2))]), atol=1e-5)


def test_deberta_drops_out_of_its_distances_which_are_no_rows() -> None:
    config = AutoConfig.for_model(
        "deberta-v2", vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=20,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).train()
    adapt(model)
    ids = torch.arange(30).view(3, 10) + 5

    def run(seed: int) -> Tensor:
        with torch.no_grad(), row_keyed_dropout(seed, torch.tensor([11, 12, 13])):
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    assert torch.equal(run(3), run(3))
    assert not torch.allclose(run(3), run(4), atol=1e-3)


def test_under_bf16_the_stream_of_a_decoder_stays_in_bf16() -> None:
    model = stock("gpt2")
    adapt(model)
    trust_rows(model)  # as the loop does: no trial before the first
    seen = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda module, args, output: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden_states(model, packed("gpt2"))
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
def test_gelu_by_tanh_is_the_same_formula_in_a_faster_form(
    activation: str, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stock("gpt2", activation_function=activation)
    published = model.transformer.h[0].mlp.act
    adapt(model)
    fast = model.transformer.h[0].mlp.act
    assert type(fast) is TanhGELU
    assert isinstance(model.transformer.drop, RowDropout)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64).requires_grad_()
    expected = published(x)
    expected_slope = torch.autograd.grad(expected.sum(), x)[0]
    for dtype, relative in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        own = x.detach().to(dtype).requires_grad_()
        result = fast(own)
        (slope,) = torch.autograd.grad(result.sum(), own)
        assert result.dtype == slope.dtype == dtype
        assert torch.allclose(result.double(), expected, atol=1e-6 if relative < 1e-3 else relative, rtol=relative)
        assert torch.allclose(slope.double(), expected_slope, atol=relative, rtol=relative)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "modernbert"])
def test_padded_rows_are_the_same_inside_the_loop(architecture: str) -> None:
    """Real positions; what stands at padding is nobody's business."""
    model = stock(architecture)
    adapt(model)
    model.eval()
    ids = torch.arange(18).view(2, 9) % 40 + 5
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    outside = model(input_ids=ids, attention_mask=mask).logits
    with row_keyed_dropout(0, torch.arange(2)):
        inside = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(inside[mask.bool()], outside[mask.bool()], atol=1e-5)
