"""Prefix language models: uniform logits, what is seen from where, and the causal loss where nothing is a prefix."""

from __future__ import annotations

import math

import pytest
import torch

from sslnlp.objectives.causal_lm import CausalLM
from tests.contract import architectures, make_objective, one_batch

NAMES = ("prefix_lm", "ul2_decoder")


def logits(objective, batch):
    with torch.no_grad():
        return objective._logits(batch)


def changed(batch, place):
    """The same batch with another token at one place of its first row."""
    ids = batch["input_ids"].clone()
    ids[0, place] = 200 if ids[0, place] != 200 else 201
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize("name", NAMES)
def test_uniform_logits_give_ln_v(name):
    objective = make_objective(name).eval()
    with torch.no_grad():
        objective.model.get_output_embeddings().weight.zero_()
    output = objective(one_batch(name))
    assert output.loss.item() == pytest.approx(math.log(objective.model.config.vocab_size), rel=1e-5)
    assert not objective.likelihood


@pytest.mark.parametrize("architecture", architectures("prefix_lm"))
@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_is_seen_from_all_of_its_document_and_nothing_ahead_of_it_is(name, architecture):
    objective, batch = make_objective(name, architecture).eval(), one_batch(name, rows=4)
    before = logits(objective, batch)
    first = batch["document_ids"][0] == 0
    seen, own = batch["bidirectional"][0] & first, torch.nonzero(first)[:, 0]
    assert int(seen.sum()) >= 3
    last = int(torch.nonzero(seen)[-1])
    moved = (logits(objective, changed(batch, last)) - before).abs().amax(-1) > 0
    assert moved[0][own].all()  # the first token of the prefix too
    assert not moved[0][~first & (batch["document_ids"][0] >= 0)].any()
    assert not moved[1:].any()
    # A token that is written changes nothing before it: what is to be predicted is not seen.
    place = last + 2
    assert first[place]
    moved = (logits(objective, changed(batch, place)) - before).abs().amax(-1) > 0
    assert not moved[0, :place].any()
    assert moved[0][own[own >= place]].all()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_prefix_it_is_the_causal_model(name):
    objective, batch = make_objective(name).eval(), one_batch(name)
    batch["bidirectional"] = torch.zeros_like(batch["bidirectional"])
    causal = {key: value for key, value in batch.items() if key != "bidirectional"}
    assert torch.equal(objective(batch).loss, CausalLM(objective.model).eval()(causal).loss)
