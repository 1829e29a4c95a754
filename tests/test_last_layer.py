"""The last layer where it is asked: the same states and gradients as of a whole layer, and less work."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sslnlp.adapt import adapt
from sslnlp.attention import attention
from sslnlp.last_layer import QUERIES, ask_last_layer, states_at
from sslnlp.objectives.masked_lm import MaskedLM
from sslnlp.packed import hidden_states, trust_rows

BERT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "bert": BERT | NO_DROPOUT,
    "roberta": BERT | NO_DROPOUT,
    "electra": BERT | NO_DROPOUT,
    "xlm-roberta": BERT | NO_DROPOUT,
    "camembert": BERT | NO_DROPOUT,
    "data2vec-text": BERT | NO_DROPOUT,
    # Its last layer has a window of 6.
    "modernbert": BERT | {"num_hidden_layers": 3, "local_attention": 6, "global_attn_every_n_layers": 3},
}
OTHERS: dict[str, dict[str, Any]] = {
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64, "dropout": 0.0, "attention_dropout": 0.0},
    "roberta-prelayernorm": BERT | NO_DROPOUT,
    "deberta-v2": BERT | NO_DROPOUT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}


def stock(kind: str, *, adapted: bool = True, **options: Any) -> PreTrainedModel:
    ids = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(kind, vocab_size=50, **{**KINDS, **OTHERS}[kind], **ids, **options)
    )
    if adapted:
        adapt(model)
    trust_rows(model)  # or the first packed rows are a trial
    return model


def packed() -> dict[str, Tensor]:
    """Two rows of a few documents; the second ends in padding. Targets are some of each, of some documents none."""
    document = torch.tensor([[0] * 10 + [1] * 6, [0] * 3 + [1] * 9 + [-1] * 4])
    place = torch.tensor([[*range(10), *range(6)], [*range(3), *range(9), *range(4)]])
    ids = torch.randint(5, 50, document.shape, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([0, 4, 9, 11, 20, 21, 27])
    labels = torch.full_like(ids, -100).flatten().index_copy(0, index, ids.flatten()[index]).view_as(ids)
    batch = {"input_ids": ids, "attention_mask": document >= 0, "document_ids": document, "position_ids": place}
    return batch | {"labels": labels, "target_index": index}


def one_document() -> dict[str, Tensor]:
    ids = packed()["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target_index": packed()["target_index"]}


def positions_of_feed_forward(model: PreTrainedModel, run: Callable[[], Any]) -> int:
    """How many positions pass the last but one linear layer of the backbone: that of the last feed-forward."""
    seen: list[int] = []
    linear = [part for part in model.base_model.modules() if isinstance(part, nn.Linear)][-2]
    hook = linear.register_forward_hook(lambda part, given, output: seen.append(output[..., 0].numel()))
    run()
    hook.remove()
    (count,) = seen
    return count


@pytest.mark.parametrize("adapted", [True, False], ids=["adapted", "stock"])
@pytest.mark.parametrize("batch", [packed(), one_document()], ids=["packed", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_whole_layer(kind: str, batch: dict[str, Tensor], adapted: bool) -> None:
    # In float64, or sums over all positions differ by their order.
    model, whole = stock(kind, adapted=adapted).double(), stock(kind, adapted=adapted).double()
    ask_last_layer(model)
    index = batch["target_index"][torch.tensor([3, 0, 6, 1, 5, 2, 4])]  # in no order
    found, wanted = states_at(model, batch, index), hidden_states(whole, batch).flatten(0, 1)[index]
    torch.testing.assert_close(found, wanted)
    draw = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)).double()
    (found * draw).sum().backward()
    (wanted * draw).sum().backward()
    other = dict(whole.base_model.named_parameters())
    for name, parameter in model.base_model.named_parameters():
        expected = other[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_gives_is_no_view_of_which_sharding_would_warn(kind: str) -> None:
    model, batch, seen = stock(kind), packed(), []
    ask_last_layer(model)
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    for layer in layers:
        layer.register_forward_hook(lambda part, given, output: seen.append(output))
    states_at(model, batch, batch["target_index"])
    assert [state.shape[1] for state in seen[-2:]] == [batch["input_ids"].shape[1], len(batch["target_index"])]
    assert all(state._base is None for state in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_passes_the_feed_forward(kind: str) -> None:
    batch, model = packed(), stock(kind)
    objective = MaskedLM(model)
    assert positions_of_feed_forward(model, lambda: objective(batch)) == len(batch["target_index"])
    # Whoever asks for all states gets them.
    assert positions_of_feed_forward(model, lambda: hidden_states(model, batch)) == batch["input_ids"].numel()
    assert model(input_ids=batch["input_ids"]).logits.shape == (*batch["input_ids"].shape, 50)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_attends(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = stock(kind), {name: torch.cat([value] * 3, 1) for name, value in packed().items() if value.ndim == 2}
    index = torch.tensor([0, 4, 40, 50, 51])
    queries: list[int] = []

    def watched(module: nn.Module, query: Tensor, *rest: Any, **options: Any) -> Any:
        queries.append(query.shape[2])
        return attention(module, query, *rest, **options)

    monkeypatch.setattr("sslnlp.last_layer.attention", watched)
    ask_last_layer(model)
    queries.clear()
    states_at(model, batch, index)
    assert queries == [QUERIES]
    assert batch["input_ids"].shape[1] > QUERIES


@pytest.mark.parametrize("kind", OTHERS)
def test_other_encoders_compute_their_layers_whole(kind: str) -> None:
    batch, model = one_document(), stock(kind).eval()
    ask_last_layer(model)
    index = batch["target_index"]
    assert torch.equal(states_at(model, batch, index), hidden_states(model, batch).flatten(0, 1)[index])
    assert positions_of_feed_forward(model, lambda: states_at(model, batch, index)) == batch["input_ids"].numel()


def test_a_model_that_drops_out_trains_all_of_its_layers() -> None:
    model = stock("modernbert", mlp_dropout=0.1)
    batch = packed()
    objective = MaskedLM(model)
    assert positions_of_feed_forward(model, lambda: objective(batch)) == batch["input_ids"].numel()
    objective.eval()
    assert positions_of_feed_forward(model, lambda: objective(batch)) == len(batch["target_index"])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_a_last_layer_of_its_own(kind: str, copied: Callable[[MaskedLM], MaskedLM]) -> None:
    batch = packed()
    objective = MaskedLM(stock(kind))
    before = objective(batch).loss
    twin = copied(objective)
    with torch.no_grad():
        for parameter in twin.model.base_model.parameters():
            parameter.mul_(1.5)
    changed = MaskedLM(stock(kind))
    changed.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin(batch).loss, changed(batch).loss)
    assert not torch.equal(twin(batch).loss, before)
    assert torch.equal(objective(batch).loss, before)


def test_no_targets_at_all_give_a_loss_and_gradients() -> None:
    batch, objective = packed(), MaskedLM(stock("bert"))
    batch["target_index"] = batch["target_index"][:0]
    loss = objective(batch).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())
