"""A joint batch is the batches of its parts, each as it would be alone."""

import pytest
import torch

from sslnlp.collators import get_collator
from sslnlp.collators.joint import JointCollator
from sslnlp.errors import UserError
from tests.collators.test_masked_lm import features, packed
from tests.tiny_tokenizers import tiny

PARTS = {"masked_lm": {"rate": 0.2, "rate_end": 0.4}, "masked_diffusion": {}, "denoising": {"rate": 0.5}}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_each_part_makes_what_it_makes_alone():
    rows = packed(start=500)
    joint = JointCollator(tokenizer=tiny(), seed=3, parts=PARTS, horizon=1000)
    batch = joint(rows)
    assert set(batch) == {*PARTS, "position"} == JointCollator.bound({"parts": PARTS}).makes
    assert batch["position"].tolist() == [row["position"] for row in rows]
    for name, options in PARTS.items():
        alone = get_collator(name)(tokenizer=tiny(), seed=3, horizon=1000, **options)
        assert equal(batch[name], alone(rows))
        assert equal(joint.for_evaluation(9)(rows)[name], alone.for_evaluation(9)(rows))


def test_it_asks_for_what_its_parts_ask_for():
    joint = JointCollator(tokenizer=tiny(), parts=PARTS)
    alone = [get_collator(name)(tokenizer=tiny(), **options) for name, options in PARTS.items()]
    assert JointCollator.bound({"parts": PARTS}).requires == frozenset().union(*(part.requires for part in alone))
    assert joint.reserve == max(part.reserve for part in alone)
    assert joint.source_length(128) == min(part.source_length(128) for part in alone)


def test_without_positions_the_parts_make_stock_keys():
    batch = JointCollator(tokenizer=tiny(), parts={"masked_lm": {}, "causal_lm": {}})(features()[:3])
    assert set(batch) == {"masked_lm", "causal_lm"}
    assert all(set(part) == {"input_ids", "attention_mask", "labels"} for part in batch.values())


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"masked_llm": {}}, "'masked_lm'"),
        ({"masked_lm": {"rat": 0.2}}, "'rate'"),
        ({"masked_lm": {"seed": 2}}, "'seed' of masked_lm"),
        ({"masked_lm": {"rate": 2.0}}, "rate"),
        ({"ranking": {}}, "'ranking'"),
        ({"joint": {}}, "'joint'"),
    ],
)
def test_bad_parts(parts, words):
    with pytest.raises(UserError, match=words):
        JointCollator(tokenizer=tiny(), parts=parts)
