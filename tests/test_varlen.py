"""Documents of packed rows told by where they start: what that stands for, and that a kernel for it is used as meant.

The kernel itself needs a GPU. Here a loop over documents stands in its place; on a GPU `kernel_agrees` holds the real
one against the mask before a run relies on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig, MistralConfig, ModernBertConfig, T5Config

from sslnlp.adapt import adapt
from sslnlp.masks import attention_inputs, same_document, starts_suffice
from sslnlp.packed import hidden_states, takes_starts, trust_rows
from sslnlp.train import Trainer
from sslnlp.types import Encoding
from sslnlp.varlen import STARTS, as_mask, attention_by_starts, document_starts, kernel_agrees
from tests.contract import make_trainer
from tests.pretend_gpu import one_device_a_run, pretended

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "bert": lambda: BertConfig(**SMALL, intermediate_size=48, attention_probs_dropout_prob=0, hidden_dropout_prob=0),
    "gpt2": lambda: GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    ),
    "llama": lambda: LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2),
}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def built(config: Any) -> Any:
    model = AutoModel.from_config(config)
    adapt(model)
    return model


def each_document(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, _: Tensor, longest: int, __: int,
    *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """What the kernel is for, document by document: [T, A, W] three times -> [T, A, W]."""
    assert query.shape[1] == key.shape[1] == value.shape[1]
    mixed = []
    for start, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        assert end - start <= longest
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(1, 2) * (scale or query.shape[-1] ** -0.5)
        if window_size == (-1, 0):
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        mixed.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(mixed)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel, one that is called for queries of all kinds; and how often it was."""
    called: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return each_document(*args, **kwargs)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", counted)
    monkeypatch.setattr("sslnlp.attention.kernel_takes", lambda query: True)
    kernel_agrees.cache_clear()
    yield called
    kernel_agrees.cache_clear()


def packed_rows(seed: int = 0, rows: int = 3, length: int = 24) -> Encoding:
    """Rows of documents of 1 to 8 tokens, the last with padding."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (rows, length), generator=draw)
    document = torch.stack([torch.arange(length).repeat_interleave(row)[:length] for row in lengths])
    document[-1, -5:] = -1
    opens = F.pad(document[:, 1:] != document[:, :-1], (1, 0), value=True)
    index = torch.arange(length).expand_as(document)
    origin = index.where(opens, torch.zeros_like(index)).cummax(1).values
    ids = torch.randint(5, 40, (rows, length), generator=draw)
    return {"input_ids": ids, "document_ids": document, "position_ids": index - origin, "attention_mask": document >= 0}


def test_starts_are_those_of_rows_documents_and_padding() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 2, -1, -1]])
    assert document_starts(documents).tolist() == [0, 0, 2, 5, 10, 11, 12, 13, 15]
    assert document_starts(documents).dtype == torch.int32
    assert document_starts(documents[1:2]).tolist() == [0, 5]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_they_stand_for_the_mask(seed: int, causal: bool) -> None:
    document = packed_rows(seed)["document_ids"]
    expected = same_document(document, document)
    expected = expected.tril() if causal else expected
    found = as_mask(document_starts(document), *document.shape, causal=causal)
    real = document >= 0
    assert torch.equal(found[:, 0][real], expected[:, 0][real])
    assert found.any(-1).all()  # a row of nothing would be NaN


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_gradients_are_those_of_the_mask(kind: str, by_kernel: bool, kernel: Any, monkeypatch: Any) -> None:
    if not by_kernel:
        monkeypatch.undo()
    torch.manual_seed(0)
    model = built(CONFIGS[kind]())
    rows = packed_rows()
    assert "document_starts" not in attention_inputs(model.config, rows)
    found = []
    for batch in (rows, rows | {STARTS: document_starts(rows["document_ids"])}):
        states = hidden_states(model, batch)[rows["attention_mask"]]
        loss = (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append(torch.cat([states.flatten(), *(grad.flatten() for grad in grads if grad is not None)]))
    assert len(kernel) == (model.config.num_hidden_layers if by_kernel else 0)
    assert torch.allclose(*found, atol=1e-5, rtol=1e-5)


def test_what_drops_out_or_has_a_bias_goes_by_the_mask(kernel: Any) -> None:
    config = CONFIGS["bert"]()
    config.attention_probs_dropout_prob = 0.5
    rows = packed_rows()
    model = built(config).train()
    hidden_states(model, rows | {STARTS: document_starts(rows["document_ids"])})
    assert not kernel


def test_models_that_need_more_than_starts_keep_their_mask() -> None:
    wide = {"intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    modern = ModernBertConfig(**SMALL, **wide, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2)
    sliding = MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=4)
    for config in (modern, sliding):
        model = built(config)
        assert not starts_suffice(model.config)
        rows = packed_rows()
        mask = attention_inputs(model.config, rows | {STARTS: document_starts(rows["document_ids"])})["attention_mask"]
        assert all(m.dtype == torch.bool for m in (mask.values() if isinstance(mask, dict) else [mask]))
    bert = built(CONFIGS["bert"]())
    rows = packed_rows() | {"bidirectional": torch.ones(3, 24, dtype=torch.bool)}
    starts = {STARTS: document_starts(rows["document_ids"])}
    assert attention_inputs(bert.config, rows | starts)["attention_mask"].dtype == torch.bool
    assert starts_suffice(bert.config)
    assert not starts_suffice(BertConfig(**SMALL, attn_implementation="eager"))


def test_a_kernel_is_held_against_the_mask(kernel: Any, monkeypatch: Any, caplog: Any) -> None:
    for causal in (False, True):
        assert kernel_agrees(CPU, 16, causal=causal)
    kernel_agrees.cache_clear()

    def sees_all(*args: Any, **kwargs: Any) -> Tensor:
        whole = torch.tensor([0, len(args[0])])
        return each_document(*args[:3], whole, whole, 10**6, 10**6, **kwargs)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", sees_all)
    assert not kernel_agrees(CPU, 16, causal=False)
    assert "off" in caplog.text


def test_without_a_kernel_there_is_none(caplog: Any) -> None:
    kernel_agrees.cache_clear()
    with caplog.at_level("INFO"):
        assert not kernel_agrees(CPU, 16, causal=True)  # the real one has no code for a CPU
    assert "kept apart by masks: no kernel" in caplog.text
    model = built(CONFIGS["bert"]())
    assert not takes_starts(model, CPU, "bf16")
    assert not takes_starts(model, GPU, "fp32")


def test_a_model_is_tried_before_it_is_relied_on(kernel: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sslnlp.packed.kernel_agrees", lambda *args, **kwargs: True)
    models = {kind: built(config()) for kind, config in CONFIGS.items()}
    assert all(takes_starts(model, GPU, "bf16") for model in models.values())
    t5 = T5Config(vocab_size=40, d_model=32, num_layers=1, num_heads=4, d_ff=48, d_kv=8)
    assert not takes_starts(built(t5), GPU, "bf16")

    def forgetful(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return attention_by_starts(query, *args[:2], torch.tensor([0, query.shape[2]]), causal=False), None

    monkeypatch.setattr("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.get_interface", lambda *_: forgetful)
    assert not takes_starts(models["bert"], GPU, "bf16")


@pytest.mark.parametrize("name", ["causal_lm", "electra"])
def test_a_run_on_a_gpu_tells_the_starts_and_learns_the_same(
    name: str, tmp_path: Path, kernel: Any, monkeypatch: Any
) -> None:
    def update(trainer: Trainer, waits: list[str]) -> tuple[list[float], list[str]]:
        trainer.module.train()
        rows = trainer.stream.rows(range(12))
        sums = [trainer.train_step([trainer.collate(rows[:6])], 0, 4)]
        waits.clear()
        sums.append(trainer.train_step([trainer.collate(rows[6:])], 1, 4))
        waited = list(waits)
        return [float(value.sum()) for found in sums for _, value in sorted(found.items())], waited

    expected, _ = update(make_trainer(name, tmp_path / "cpu"), [])
    assert not kernel
    # A pretended GPU has no bf16, and numbers of float32 tell more.
    monkeypatch.setattr("sslnlp.train.takes_starts", lambda module, device, _: takes_starts(module, device, "bf16"))
    with one_device_a_run(), pretended() as waits:
        trainer = make_trainer(name, tmp_path / "gpu")
        assert trainer.tells_starts
        kernel.clear()
        found, waited = update(trainer, waits)
    assert kernel
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert {wait.split(":")[0] for wait in waited} == {"tolist"}  # by what stands in the kernel's place


def test_the_interface_of_the_kernel_is_as_it_is_called() -> None:
    """The real one, of shapes alone, both ways: what a version of torch wants shows without a GPU."""
    with FakeTensorMode():
        draws = torch.empty(3, 2, 4, 64, 32, dtype=torch.bfloat16)
        inputs = [x.detach().requires_grad_() for x in draws]
        mixed = attention_by_starts(*inputs, torch.empty(9, dtype=torch.int32), causal=True, scaling=0.1)  # type: ignore[misc]
        grads = torch.autograd.grad(mixed.sum(), inputs)
    assert (mixed.shape, mixed.dtype) == ((2, 64, 4, 32), torch.bfloat16)
    assert all(grad.shape == (2, 4, 64, 32) for grad in grads)


def test_compiled_they_are_no_break() -> None:
    model, rows = built(CONFIGS["gpt2"]()), packed_rows()
    trust_rows(model)
    rows |= {STARTS: document_starts(rows["document_ids"])}
    whole = torch.compile(hidden_states, backend="eager", fullgraph=True)
    assert torch.allclose(whole(model, rows), hidden_states(model, rows), atol=1e-5)
