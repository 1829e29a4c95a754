"""Closed forms of the order of sentences: uniform logits, the masked part alone, no targets, no masked LM."""

import math

import pytest
import torch

from sslnlp.errors import UserError
from sslnlp.objectives.masked_lm import MaskedLM
from sslnlp.objectives.sentence_order import SegmentOrder, SentenceOrder
from tests.contract import make_objective, one_batch

CLASSES = {"sentence_order": 2, "segment_order": 6}
ROWS = 48


def objective_of(name, architecture="bert", **options):
    """The objective with other options, on the same fresh weights."""
    made = make_objective(name, architecture)
    torch.manual_seed(1)
    return type(made)(made.model, **options)


@pytest.mark.parametrize("name", CLASSES)
def test_uniform_logits_give_ln_v_and_ln_of_the_orders(name):
    objective = objective_of(name, order_weight=3.0, masked_weight=0.5).eval()
    vocabulary = objective.model.config.vocab_size
    with torch.no_grad():
        for parameter in [*objective.order_head[-1].parameters(), *objective.model.cls.parameters()]:
            parameter.zero_()
        output = objective(one_batch(name, rows=ROWS))
    expected = torch.tensor([0.5 * math.log(vocabulary), 3.0 * math.log(CLASSES[name])])
    assert torch.allclose(output.terms, expected, atol=1e-4)
    loss, count = output.metrics["order_loss"]
    assert math.isclose(float(loss / count), math.log(CLASSES[name]), rel_tol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roberta"])
def test_the_masked_part_is_that_of_masked_lm(architecture):
    objective = make_objective("sentence_order", architecture).eval()
    batch = one_batch("sentence_order", rows=ROWS)
    plain = MaskedLM(objective.model).eval()
    with torch.no_grad():
        ours, theirs = objective(batch), plain(batch)
        objective.head = None  # as for a model whose head cannot be had alone
        whole = objective(batch)
    assert torch.allclose(ours.terms[0], theirs.loss, atol=1e-6)
    assert torch.allclose(ours.terms, whole.terms, atol=1e-5)
    correct, count = ours.metrics["accuracy"]
    assert torch.allclose(correct / count, theirs.metrics["accuracy"])
    assert objective.num_targets(batch).tolist() == [len(batch["target_index"]), len(batch["order_labels"])]


def test_the_order_is_read_from_the_first_token_of_the_document():
    objective = make_objective("sentence_order").eval()
    batch = one_batch("sentence_order", rows=ROWS)
    assert (batch["position_ids"].flatten()[batch["order_index"]] == 0).all()
    with torch.no_grad():
        hidden = objective.model.bert(
            batch["input_ids"], attention_mask=_isolated(batch), position_ids=batch["position_ids"]
        )
        logits = objective.order_head(hidden.last_hidden_state.flatten(0, 1)[batch["order_index"]])
        output = objective(batch)
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, batch["order_labels"]), output.terms[1], atol=1e-5)
    hits, count = output.metrics["order_accuracy"]
    assert (hits, count) == ((logits.argmax(1) == batch["order_labels"]).sum(), len(logits))


def _isolated(batch):
    documents = batch["document_ids"]
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same


@pytest.mark.parametrize("masked_weight", [0.0, 1.0])
def test_without_a_document_in_two_sentences_there_is_no_order_to_learn(masked_weight):
    objective = objective_of("sentence_order", masked_weight=masked_weight)
    batch = one_batch("sentence_order", rows=ROWS)
    none = batch | {"order_index": batch["order_index"][:0], "order_labels": batch["order_labels"][:0]}
    output = objective(none)
    assert output.terms[-1] == 0
    assert int(objective.num_targets(none)[-1]) == 0
    output.loss.backward()
    for parameter in objective.order_head.parameters():
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roberta"])
def test_the_order_alone_freezes_the_vocabulary_head(architecture):
    objective = objective_of("sentence_order", architecture, masked_weight=0.0)
    before = {name: p.clone() for name, p in objective.named_parameters() if not p.requires_grad}
    batch = one_batch("sentence_order", rows=ROWS)
    output = objective(batch)
    assert output.terms.shape == objective.num_targets(batch).shape == (1,)
    output.loss.backward()
    assert before
    assert not any(name.startswith("model." + objective.model.base_model_prefix) for name in before)
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
    assert set(output.metrics) == {"order_loss", "order_accuracy"}


def test_the_head_is_left_behind():
    objective = make_objective("segment_order")
    assert objective.order_head[-1].out_features == 6
    assert objective.exported is objective.model
    assert not any("order" in name for name in objective.exported.state_dict())


def test_the_collator_follows_the_number_of_segments():
    assert SegmentOrder.collator_options({"rate": 0.2}) == {"rate": 0.2, "segments": 3}
    four = SegmentOrder.bound({"segments": 4})
    assert four.collator_options({}) == {"segments": 4}
    assert four(make_objective("segment_order").model, segments=4).order_head[-1].out_features == 24
    with pytest.raises(UserError, match=r"objective.segments=4"):
        four.collator_options({"segments": 3})


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (SentenceOrder, {"order_weight": 0.0}, "order_weight"),
        (SentenceOrder, {"masked_weight": -1.0}, "masked_weight"),
        (SegmentOrder, {"segments": 6}, "segments"),
    ],
)
def test_bad_options(cls, options, words):
    with pytest.raises(UserError, match=words):
        cls(make_objective("sentence_order").model, **options)
