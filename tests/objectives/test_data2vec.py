"""data2vec: the teacher's law, what its targets depend on, and the distance by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig

from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.errors import UserError
from sslnlp.keyed import row_keyed_dropout
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives.data2vec import Data2Vec
from sslnlp.packed import hidden_states
from tests.contract import LENGTH, make_collator, make_objective, make_stream, make_trainer, one_batch, small_tokenizer

ENCODERS = ("bert", "modernbert", "roberta", "electra")


def objective(architecture: str = "bert", *, dropout: float = 0.0, **options: Any) -> Data2Vec:
    config = ModelConfig(architecture=architecture, size="nano", dropout=dropout)
    return Data2Vec(build_model(config, small_tokenizer(), Data2Vec.wraps, max_length=LENGTH), **options)


def masked(**options: Any) -> Any:
    collator = make_collator("data2vec")
    assert isinstance(collator, MaskedLMCollator)
    return replace(collator, **options)(make_stream("data2vec").rows(range(6)))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_targets_do_not_depend_on_the_masks(architecture: str) -> None:
    """The teacher reads the text itself: with other masks, a token that is masked in both has the same target."""
    model = objective(architecture)
    one, other = masked(seed=1, replace="bert"), masked(seed=2, rate=0.5)
    assert not torch.equal(one["input_ids"], other["input_ids"])
    shared = set(one["target_index"].tolist()) & set(other["target_index"].tolist())
    assert shared

    def at(batch: Any, places: list[int]) -> Tensor:
        rows = {place: row for row, place in enumerate(batch["target_index"].tolist())}
        return model.targets(batch)[[rows[place] for place in places]]

    assert torch.allclose(at(one, sorted(shared)), at(other, sorted(shared)), atol=1e-5)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_gradients_reach_the_student_alone(architecture: str) -> None:
    model = objective(architecture)
    model(one_batch("data2vec")).loss.backward()
    assert all(p.grad is not None for p in (*model.model.parameters(), *model.head.parameters()))
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_targets_by_hand() -> None:
    """Bert gives its layers' outputs as hidden states: normalised each, averaged, normalised."""
    model = objective(layers=2)
    batch = one_batch("data2vec")
    original = batch["input_ids"].clone()
    original.view(-1)[batch["target_index"]] = batch["labels"].view(-1)[batch["target_index"]]
    documents = batch["document_ids"]
    with torch.no_grad():
        states = model.model.eval()(
            input_ids=original,
            position_ids=batch["position_ids"],
            attention_mask=((documents[:, :, None] == documents[:, None]) | (documents[:, :, None] < 0))[:, None],
            output_hidden_states=True,
        ).hidden_states
    assert len(states) == 3
    wide = [state.view(-1, state.shape[-1])[batch["target_index"]] for state in states[1:]]
    mean = sum((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() for x in wide) / 2
    expected = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    assert torch.allclose(model.targets(batch), expected, atol=1e-5)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    """Targets of the first document stay when the second one's text changes."""
    model = objective("modernbert")
    batch = one_batch("data2vec")
    documents = batch["document_ids"].flatten()[batch["target_index"]]
    assert set(documents.tolist()) > {0}
    changed = copy.deepcopy(batch)
    later = changed["document_ids"] > 0
    changed["input_ids"][later] = 20
    changed["labels"][later & (changed["labels"] != -100)] = 21
    before, after = model.targets(batch), model.targets(changed)
    assert torch.allclose(before[documents == 0], after[documents == 0], atol=1e-5)
    assert not torch.allclose(before[documents > 0], after[documents > 0], atol=1e-2)


def test_the_teacher_does_not_drop_out() -> None:
    model = objective(dropout=0.3).train()
    batch = one_batch("data2vec")
    targets, losses = [], []
    for seed in (0, 1):
        with row_keyed_dropout(seed, batch["position"]):
            targets.append(model.targets(batch))
            losses.append(model(batch).loss)
    assert torch.equal(targets[0], targets[1])
    assert not torch.equal(losses[0], losses[1])


def test_the_teacher_is_an_exponential_average_that_moves_after_steps_only() -> None:
    model = objective(momentum=0.9, momentum_end=0.5)
    teacher, student = model.teacher.module, model.model
    name = "encoder.layer.0.output.dense.weight"
    start = teacher.get_parameter(name).clone()
    assert torch.equal(start, student.get_parameter(name))
    with torch.no_grad():
        student.get_parameter(name).add_(1.0)
    model(one_batch("data2vec"))
    assert torch.equal(teacher.get_parameter(name), start)
    left, expected = 1.0, start
    for progress in (0.25, 0.5, 1.0):
        model.after_step(progress)
        left *= 0.9 + (0.5 - 0.9) * progress
        expected = start + (1 - left)
        assert torch.allclose(teacher.get_parameter(name), expected, atol=1e-5)


def test_the_optimiser_has_no_weight_of_the_teacher(tmp_path: Path) -> None:
    trainer = make_trainer("data2vec", tmp_path)
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    inside = trainer.objective
    assert isinstance(inside, Data2Vec)
    assert not trained & {id(p) for p in inside.teacher.parameters()}
    assert {id(p) for p in inside.model.parameters()} <= trained


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_distance_by_hand(beta: float) -> None:
    predicted = torch.tensor([[0.0, 0.0], [1.0, -3.0]])
    target = torch.tensor([[0.0, 0.0], [1.2, 2.0]])

    def one(difference: float) -> float:
        small = difference < beta
        return difference**2 / 2 / (beta if small else 1) if beta == 0 or small else difference - beta / 2

    expected = torch.tensor([0.0, (one(0.2) + one(5.0)) / 2])
    assert torch.allclose(objective(beta=beta).distance(predicted, target), expected, atol=1e-5)


class _Manhattan(Data2Vec):
    """What a new distance takes: a name and `distance`."""

    def distance(self, predicted_NH: Tensor, target_NH: Tensor) -> Tensor:
        return (predicted_NH - target_NH).abs().mean(-1)


def test_a_subclass_changes_the_distance() -> None:
    base = objective()
    other = _Manhattan(base.model)
    other.load_state_dict(base.state_dict())
    batch = one_batch("data2vec")
    index = batch["target_index"]
    with torch.no_grad():
        predicted = base.head(hidden_states(base.model, batch).flatten(0, 1)[index])
        expected = F.l1_loss(predicted, base.targets(batch))
        assert torch.allclose(other(batch).loss, expected, atol=1e-6)


def test_explained_variance_and_target_std() -> None:
    """The mean target explains nothing, the targets themselves all; equal targets have no spread."""
    model = objective()
    batch = one_batch("data2vec")
    target = model.targets(batch)

    def figures(predicted: Tensor, truth: Tensor) -> dict[str, float]:
        model.head = torch.nn.Module()  # type: ignore[assignment]
        model.head.forward = lambda hidden: predicted + 0 * hidden.sum()  # type: ignore[method-assign]
        model.targets = lambda batch: truth  # type: ignore[method-assign]
        return {name: float(v[0] / v[1]) for name, v in model(batch).metrics.items() if v[1] > 0}

    assert figures(target, target)["explained_variance"] == pytest.approx(1.0)
    nothing = figures(target.mean(0).expand_as(target), target)
    assert nothing["explained_variance"] == pytest.approx(0.0, abs=1e-5)
    assert nothing["target_std"] == pytest.approx(float(target.std(0, correction=0).mean()), rel=1e-4)
    assert 0 < nothing["target_std"] <= 1
    same = target[:1].expand_as(target)
    assert figures(same, same)["target_std"] == pytest.approx(0.0, abs=1e-5)


def test_a_batch_without_targets_has_loss_zero_and_gradients() -> None:
    model = objective()
    batch = one_batch("data2vec") | {"target_index": torch.zeros(0, dtype=torch.int64)}
    batch["labels"] = torch.full_like(batch["labels"], -100)
    output = model(batch)
    output.loss.backward()
    assert (output.loss.item(), int(model.num_targets(batch))) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_published_share_of_layers() -> None:
    assert objective().layers == 2
    assert objective(layers=1).layers == 1
    config = ModelConfig(size="nano", config={"num_hidden_layers": 12})
    model = build_model(config, small_tokenizer(), Data2Vec.wraps, max_length=LENGTH)
    assert Data2Vec(model).layers == 10


@pytest.mark.parametrize("options", [{"layers": 0}, {"layers": 3}, {"beta": -1.0}, {"momentum": 1.5}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"objective\."):
        objective(**options)


def test_models_that_do_not_suit_are_refused() -> None:
    for name in ("gpt2", "bart", "t5"):
        assert Data2Vec.refuses(AutoConfig.for_model(name)) is not None
    assert all(Data2Vec.refuses(AutoConfig.for_model(name)) is None for name in ENCODERS)


def test_the_export_is_the_student() -> None:
    model = make_objective("data2vec")
    assert model.exported is model.model
