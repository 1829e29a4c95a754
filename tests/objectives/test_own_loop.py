"""Objectives as modules in somebody else's loop: any stock model, other types of weights, and copies by pickling."""

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from sslnlp.collators import get_collator
from sslnlp.errors import UserError
from sslnlp.keyed import row_keyed_dropout
from sslnlp.objectives import OBJECTIVES, Objective, get_objective
from sslnlp.types import Batch
from tests.contract import (
    OPTIONS,
    VARIANTS,
    make_collator,
    make_objective,
    make_stream,
    objective_class,
    one_batch,
    small_tokenizer,
)
from tests.test_models import of_kind

NAMES = sorted({*OBJECTIVES, *VARIANTS})


@functools.cache
def batch_for(name: str) -> Batch:
    return one_batch(name)


def loss_of(objective: Objective, name: str) -> float:
    """Of one batch; its gradients stay."""
    batch = batch_for(name)
    with row_keyed_dropout(0, torch.arange(6)):
        loss = objective.train()(batch).loss
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    return float(loss.detach())


@functools.cache
def loss_in_float32(name: str) -> float:
    return loss_of(make_objective(name), name)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.1), (torch.float64, 1e-3)], ids=["bf16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_may_be_of_another_type(name: str, dtype: torch.dtype, rounding: float) -> None:
    expected = loss_in_float32(name)
    assert loss_of(make_objective(name).to(dtype), name) == pytest.approx(expected, rel=rounding, abs=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_is_of_the_type_of_the_model(name: str, dtype: torch.dtype) -> None:
    """`from_pretrained` loads a checkpoint in the type it was saved in."""
    model = make_objective(name).model.to(dtype)
    objective = objective_class(name)(model, **OPTIONS.get(name, {}))
    trained = {parameter.dtype for parameter in objective.parameters() if parameter.requires_grad}
    kept = {parameter.dtype for parameter in objective.parameters() if not parameter.requires_grad}
    assert trained == {dtype}
    assert kept <= {torch.promote_types(dtype, torch.float32)}  # slow copies
    numbers = [x for x in (*objective.parameters(), *objective.buffers()) if x.is_floating_point()]
    if {x.dtype for x in numbers} != {dtype}:  # all of one type run in the test before
        assert loss_of(objective, name) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_objective_is_the_same(name: str) -> None:
    """Also one of a class that its options made (`Objective.bound`), which stands in no module."""
    objective, file = make_objective(name), io.BytesIO()
    torch.save(objective, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert (again.needs, again.name) == (objective.needs, objective.name)
    assert loss_of(again, name) == loss_in_float32(name)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "electra"])
def test_a_copy_has_a_head_of_its_own(kind: str) -> None:
    """`copy.deepcopy`, as averages of weights are made, and pickling: neither goes on with a part of the first one."""
    objective = get_objective("masked_lm")(of_stock(kind, AutoModelForMaskedLM)).eval()
    assert objective.head is not None
    batch = batch_of("masked_lm", 12, 9)
    copies = [copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))]
    expected = objective(batch).loss.item()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_()
    for one in copies:
        one(batch).loss.backward()
        assert one(batch).loss.item() == expected
    assert all(parameter.grad is None for parameter in objective.parameters())


BOUND: list[tuple[str, dict[str, Any]]] = [
    ("ul2", {"modes": False}),
    ("joint", {"parts": {"masked_lm": {}, "ul2": {"modes": False}}}),
    ("image_text", {"views": 2}),
]


@pytest.mark.parametrize(("name", "options"), BOUND, ids=[name for name, _ in BOUND])
def test_a_collator_that_its_options_made_goes_to_worker_processes(name: str, options: dict[str, Any]) -> None:
    cls = get_collator(name).bound(options)
    collator = cls(tokenizer=small_tokenizer(), **options)
    again = pickle.loads(pickle.dumps(collator))
    assert (again.makes, again.requires, again.seed) == (collator.makes, collator.requires, collator.seed)
    assert vars(again).keys() == vars(collator).keys()


@pytest.mark.parametrize(("name", "key"), [("masked_lm", "target_index"), ("electra", "judged"), ("vae", "position")])
def test_a_batch_of_rows_without_a_position_says_so(name: str, key: str) -> None:
    rows = [{"input_ids": list(range(100, 112))}] * 2
    batch = make_collator(name)(rows)
    with pytest.raises(
        UserError, match=rf"objective {name} reads '\w+', which the batch has not.*with a 'position' each"
    ):
        make_objective(name)(batch)
    batch = one_batch(name)
    del batch[key]
    with pytest.raises(UserError, match=f"reads '{key}'"):
        make_objective(name)(batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_collator_goes_to_worker_processes_that_are_spawned(name: str) -> None:
    """As they are by default on macOS, on Windows and, from Python 3.14 on, elsewhere too."""
    collator, rows = make_collator(name), make_stream(name).rows(range(6))
    found, expected = (leaves(one(rows)) for one in (pickle.loads(pickle.dumps(collator)), collator))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def leaves(batch: Batch, prefix: str = "") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in batch.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def batch_of(name: str, *documents: int) -> Batch:
    """One row that holds documents of these lengths."""
    ids = [100 + n % 300 for n in range(sum(documents))]
    number = [d for d, length in enumerate(documents) for _ in range(length)]
    row = {"input_ids": ids, "document_ids": number, "position": 0}
    return get_collator(name)(tokenizer=small_tokenizer(), seed=0)([row])


def of_stock(kind: str, wraps: Any, **fields: Any) -> Any:
    return of_kind(kind, wraps, vocab_size=len(small_tokenizer()), **fields)


HEADS = {"masked_lm": AutoModelForMaskedLM, "causal_lm": AutoModelForCausalLM, "data2vec": AutoModel}
MIXED = [
    *[("masked_lm", kind) for kind in ("fnet", "mra", "convbert", "deberta-v2")],
    *[("causal_lm", kind) for kind in ("rwkv", "mamba", "bloom", "trocr", "bart", "pegasus")],
    ("data2vec", "fnet"),
]
"""Objectives and kinds of models that do not keep the documents of a row apart: some say so by an error of their own,
most say nothing."""


@pytest.mark.parametrize(("name", "kind"), MIXED)
def test_rows_that_a_model_would_mix_are_refused(name: str, kind: str) -> None:
    objective = get_objective(name)(of_stock(kind, HEADS[name]))
    collator = objective.collator
    loss = objective(batch_of(collator, 12)).loss
    assert loss.isfinite()
    with pytest.raises(UserError, match=r"does not keep the documents of a packed row apart.*rows of one document"):
        objective(batch_of(collator, 12, 9))
    assert objective(batch_of(collator, 12)).loss == loss


def test_pairs_that_a_model_would_mix_are_refused() -> None:
    model = of_stock("blenderbot-small", AutoModelForSeq2SeqLM, decoder_start_token_id=2)
    objective = get_objective("denoising")(model)
    assert objective(batch_of("denoising", 12)).loss.isfinite()
    with pytest.raises(UserError, match="does not keep the documents of a packed row apart"):
        objective(batch_of("denoising", 12, 9))
    model = of_stock("m2m_100", AutoModelForSeq2SeqLM, decoder_start_token_id=2)
    with pytest.raises(UserError, match="does not run on rows with document_ids"):
        get_objective("denoising")(model)(batch_of("denoising", 12))


def test_a_plain_mask_does_not_stand_for_what_is_seen_from_ahead() -> None:
    """Bloom takes no other, which two objectives of one model may find out one after the other."""
    model = of_stock("bloom", AutoModelForCausalLM)
    get_objective("causal_lm")(model)(batch_of("causal_lm", 12))
    with pytest.raises(UserError, match="does not run on rows with document_ids"):
        get_objective("prefix_lm")(model)(batch_of("prefix_lm", 12))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *[("bert", torch.float32), ("roberta", torch.bfloat16)],
        ("bert-generation", torch.float32),  # said to be causal, so it is doubted for more than rounding alone
    ],
    ids=["bert", "roberta-bf16", "bert-generation"],
)
def test_a_model_that_sees_what_it_is_to_predict_is_refused(kind: str, dtype: torch.dtype) -> None:
    """Its loss would fall to nothing; all three have a causal form, which they take with is_decoder=True."""
    with pytest.raises(UserError, match="would see what it is to predict"):
        get_objective("causal_lm")(of_stock(kind, AutoModelForCausalLM).to(dtype))
    model = of_stock(kind, AutoModelForCausalLM, is_decoder=True).to(dtype)
    assert get_objective("causal_lm")(model)(batch_of("causal_lm", 12)).loss.isfinite()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    assert get_objective("causal_lm")(model)(batch_of("causal_lm", 12)).loss.isnan()  # which is another fault


@pytest.mark.parametrize(("name", "kind"), [("masked_lm", "bert"), ("causal_lm", "gpt2"), ("data2vec", "bert")])
def test_a_model_within_adapters_is_the_stock_one_until_they_learn(name: str, kind: str) -> None:
    peft = pytest.importorskip("peft")
    model = of_stock(kind, HEADS[name])
    batch = batch_of(get_objective(name).collator, 12, 9)
    torch.manual_seed(0)  # what the objective adds
    expected = get_objective(name)(model)(batch).loss
    layers = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if kind == "gpt2" else {"target_modules": ["query"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**layers)).eval()
    torch.manual_seed(0)
    wrapped = get_objective(name)(adapted)
    loss = wrapped(batch).loss
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in wrapped.model.parameters())


@pytest.mark.parametrize("name", ["regression", "reranking"])
def test_a_head_of_two_outputs_is_refused_where_one_is_asked_for(name: str) -> None:
    """Which is what stock classes make unasked; the second would have been left out without a word."""
    model = of_stock("bert", AutoModelForSequenceClassification)
    with pytest.raises(UserError, match="has 2 outputs, and one is asked for; load it with num_labels=1"):
        get_objective(name)(model)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("name", "kind"), [("masked_lm", "mpnet"), ("masked_lm", "rembert"), ("causal_lm", "mixtral"), ("causal_lm", "opt")]
)
def test_what_a_model_keeps_apart_is_taken_in_half_precision(name: str, kind: str, half: torch.dtype) -> None:
    """Eager attention adds its mask, which once was of another type than the weights."""
    fields = {"num_key_value_heads": 4, "num_local_experts": 4} if kind == "mixtral" else {}
    objective = get_objective(name)(of_stock(kind, HEADS[name], **fields))
    batch = batch_of(objective.collator, 12, 9)
    with torch.no_grad():
        expected = float(objective(batch).loss)
        assert float(objective.to(half)(batch).loss) == pytest.approx(expected, rel=0.02)


def test_a_model_that_does_not_run_says_why() -> None:
    model = of_stock("mixtral", AutoModelForCausalLM, num_key_value_heads=8)
    with pytest.raises(RuntimeError, match="size"):
        get_objective("causal_lm")(model)(batch_of("causal_lm", 12, 9))


def test_a_model_is_tried_once() -> None:
    model = of_stock("bert", AutoModelForMaskedLM)
    objective, batch, runs = get_objective("masked_lm")(model), batch_of("masked_lm", 12, 9), []
    model.base_model.register_forward_hook(lambda *_: runs.append(1))
    objective(batch)
    tried = len(runs)
    objective(batch)
    assert len(runs) == tried + 1
