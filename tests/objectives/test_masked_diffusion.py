"""Closed forms of the diffusion bound, and which tokens it counts."""

import itertools
import math

import numpy as np
import pytest
import torch

from sslnlp.data.packing import PackedRows
from sslnlp.data.stream import Stream
from sslnlp.data.tokens import build_store
from sslnlp.evaluation import evaluate_held_out
from sslnlp.tokenizer import framing
from tests.contract import corpus, make_collator, make_objective, make_stream, one_batch, small_tokenizer


@pytest.fixture
def uniform():
    """An objective whose model gives every token the same probability."""
    objective = make_objective("masked_diffusion", "bert").eval()
    for parameter in objective.parameters():
        parameter.data.zero_()
    return objective


def test_uniform_logits_give_ln_v_in_every_batch(uniform):
    """Not only in the mean over rates: a row's l targets weigh n / l each."""
    size = uniform.model.config.vocab_size
    for start in range(0, 40, 4):
        batch = one_batch("masked_diffusion", rows=4, start=start)
        output = uniform(batch)
        assert output.loss.item() == pytest.approx(math.log(size), rel=1e-5)
        total, count = output.metrics["masked_loss"].tolist()
        assert total / count == pytest.approx(math.log(size), rel=1e-5)
        assert count == len(batch["target_index"])
        assert uniform.num_targets(batch) == batch["text_tokens"].sum()


def test_uniform_bits_per_byte(uniform):
    """log2 V bits for each token of the text, over its bytes."""
    stream = Stream.fixed(make_stream("masked_diffusion").source)
    tokens = sum(len(small_tokenizer()(text, add_special_tokens=False)["input_ids"]) for text in corpus())
    size = sum(len(text.encode()) for text in corpus())
    figures = evaluate_held_out(uniform, make_collator("masked_diffusion"), stream, batch_size=8, num_bytes=size)
    assert figures["bits_per_byte"] == pytest.approx(
        math.log2(uniform.model.config.vocab_size) * tokens / size, rel=1e-5
    )


def test_the_same_text_tokens_as_causal_but_for_the_ends(tmp_path):
    """Both count every token of the text once; the causal code length has one end of text a document on top."""
    store = build_store(corpus(), small_tokenizer(), tmp_path / "store", fingerprint="tests")
    counts = {}
    for name in ("masked_diffusion", "causal_lm"):
        objective = make_objective(name)
        frame = framing(small_tokenizer(), objective.framing)
        rows = PackedRows(store, 32, frame.prefix, frame.suffix, suffix_every_piece=objective.framing != "decoder")
        batch = make_collator(name)(Stream.fixed(rows).rows(range(len(rows))))
        counts[name] = int(objective.num_targets(batch))
    assert counts["causal_lm"] - counts["masked_diffusion"] == len(corpus())


def test_the_mean_loss_is_the_bound_of_the_papers():
    """A row of 4 tokens under a model with random weights, all 15 sets of masks counted out.

    With each token hidden by probability t, a set of k has density t^k (1 - t)^(4 - k) and its loss weight 1 / t; over
    t from 0 to 1 that is the beta integral (k - 1)! (4 - k)! / 4!.
    """
    objective = make_objective("masked_diffusion", "bert").eval()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.mul_(8.0)  # far from uniform, so that which tokens are hidden matters
    collator = make_collator("masked_diffusion")
    tokenizer = collator.tokenizer
    text = [300, 301, 302, 303]
    ids = np.array([tokenizer.cls_token_id, *text, tokenizer.sep_token_id])
    bound = 0.0
    for k in range(1, 5):
        for places in itertools.combinations(range(1, 5), k):
            hidden = torch.tensor(ids).index_fill(0, torch.tensor(places), tokenizer.mask_token_id)
            with torch.no_grad():
                logits = objective.model(input_ids=hidden[None]).logits[0].log_softmax(-1)
            losses = [-logits[place, ids[place]].item() for place in places]
            bound += math.factorial(k - 1) * math.factorial(4 - k) / math.factorial(4) * sum(losses)
    row = {"input_ids": ids, "document_ids": np.zeros(6, np.int32)}
    with torch.no_grad():
        found = [objective(collator([{**row, "position": p}])).loss.item() for p in range(300)]
    error = np.std(found) / math.sqrt(len(found))
    assert np.std(found) > 0.05
    assert abs(np.mean(found) - bound / 4) < 4 * error
    together = objective(collator([{**row, "position": p} for p in range(300)])).loss.item()
    assert together == pytest.approx(np.mean(found), rel=1e-4)


def test_a_batch_without_text_has_loss_0_and_a_gradient():
    objective = make_objective("masked_diffusion", "bert")
    tokenizer = small_tokenizer()
    row = {"input_ids": np.array([tokenizer.cls_token_id, tokenizer.sep_token_id]), "document_ids": np.zeros(2, int)}
    batch = make_collator("masked_diffusion")([{**row, "position": 0}])
    loss = objective(batch).loss
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_samples_are_texts_within_the_model_s_length():
    objective = make_objective("masked_diffusion")
    [(title, texts)] = objective.samples(small_tokenizer(), seed=1).items()
    assert title
    assert len(texts) == 3
    assert len(set(texts)) == 3
    assert objective.samples(small_tokenizer(), seed=1)[title] == texts
