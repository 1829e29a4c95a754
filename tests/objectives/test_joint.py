"""A joint objective is the weighted sum of its parts on one model, each over its own targets."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from sslnlp.errors import UserError
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives.data2vec import Data2Vec
from sslnlp.objectives.joint import Joint
from sslnlp.objectives.masked_diffusion import MaskedDiffusion
from sslnlp.objectives.masked_lm import MaskedLM
from sslnlp.recipe import Recipe
from sslnlp.recipe.checks import check_recipe
from sslnlp.recipe.schema import override
from tests.contract import LENGTH, make_collator, make_objective, make_stream, one_batch, small_tokenizer

WEIGHTS = {"masked_lm": 1.0, "masked_diffusion": 0.25}


def model(dropout=0.0):
    config = ModelConfig(architecture="bert", size="nano", dropout=dropout)
    return build_model(config, small_tokenizer(), AutoModelForMaskedLM, max_length=LENGTH, seed=0)


def joint_batch(cls, start=0):
    from sslnlp.collators.joint import JointCollator

    collator = JointCollator(tokenizer=make_collator("joint").tokenizer, **cls.collator_options({}))
    return collator(make_stream("joint").rows(range(start, start + 6)))


@pytest.mark.parametrize("name", ["masked_lm", "masked_diffusion", "data2vec"])
def test_of_one_part_it_is_that_part(name):
    cls = Joint.bound({"weights": {name: 1.0}})
    torch.manual_seed(0)
    joint = cls(model(), weights={name: 1.0}).eval()
    torch.manual_seed(0)
    alone = type(make_objective(name))(model() if name != "data2vec" else model().base_model).eval()
    batch = joint_batch(cls)
    inner = batch[alone.collator]
    assert torch.equal(joint(batch).loss, alone(inner).loss)
    assert torch.equal(joint.num_targets(batch), alone.num_targets(inner).reshape(-1))
    for objective, rows in ((joint, batch), (alone, inner)):
        objective(rows).loss.backward()
    theirs = alone.model.base_model.state_dict(keep_vars=True)
    for key, parameter in joint.model.base_model.state_dict(keep_vars=True).items():
        assert (parameter.grad is None) == (theirs[key].grad is None), key
        assert parameter.grad is None or torch.equal(parameter.grad, theirs[key].grad), key


def test_terms_are_the_weighted_losses_over_their_own_targets():
    cls = Joint.bound({"weights": WEIGHTS})
    shared = model()
    joint = cls(shared, weights=WEIGHTS).eval()
    batch = joint_batch(cls)
    masked, diffusion = MaskedLM(shared)(batch["masked_lm"]), MaskedDiffusion(shared)(batch["masked_diffusion"])
    output = joint(batch)
    assert torch.allclose(output.terms, torch.stack([masked.loss, 0.25 * diffusion.loss]))
    assert torch.allclose(output.loss, output.terms.sum())
    counts = [len(batch["masked_lm"]["target_index"]), int(batch["masked_diffusion"]["text_tokens"].sum())]
    assert joint.num_targets(batch).tolist() == counts
    sum_and_count = output.metrics["masked_lm/accuracy"]
    assert sum_and_count.tolist() == pytest.approx([masked.metrics["accuracy"].item() * counts[0], counts[0]])
    assert torch.equal(output.metrics["masked_diffusion/accuracy"], diffusion.metrics["accuracy"])
    total, number = output.metrics["masked_diffusion/loss"].tolist()
    assert total / number == pytest.approx(diffusion.loss.item())
    [title] = joint.samples(small_tokenizer())
    assert title.startswith("masked_diffusion, ")


def test_parts_know_their_options_and_move_after_a_step():
    weights, options = {"masked_lm": 1.0, "data2vec": 0.5}, {"data2vec": {"momentum": 0.0, "momentum_end": 0.0}}
    cls = Joint.bound({"weights": weights, "options": options})
    assert cls.wraps is AutoModelForMaskedLM  # data2vec alone would take a bare model
    assert cls.needs == {"masked_lm"}  # both read the same batch
    joint = cls(model(), weights=weights, options=options)
    part = joint.joined["data2vec"]
    assert isinstance(part, Data2Vec)
    with torch.no_grad():
        for parameter in joint.model.parameters():
            parameter.add_(1.0)
    teacher = next(p for name, p in joint.named_parameters() if "teacher" in name)
    before = teacher.clone()
    joint.after_step(0.5)
    assert torch.allclose(teacher, before + 1.0)  # with momentum 0 it is the model


def test_the_export_pools_as_the_part_that_makes_vectors_does():
    weights, options = {"masked_lm": 1.0, "info_nce": 1.0}, {"info_nce": {"pooling": "cls"}}
    cls = Joint.bound({"weights": weights, "options": options})
    assert cls(model(), weights=weights, options=options).pooling == "cls"
    assert cls(model(), weights=weights).pooling == "mean"
    assert Joint.bound({"weights": WEIGHTS})(model(), weights=WEIGHTS).pooling is None


def test_vectors_are_whitened_for_the_part_that_compares_them():
    joint = Joint(model(), weights={"masked_lm": 1.0, "info_nce": 0.5})
    assert joint.begins
    assert joint.refits
    assert joint.vector_map is None
    joint.begin([joint_batch(type(joint).bound({"weights": {"masked_lm": 1.0, "info_nce": 0.5}}))])
    assert joint.vector_map is not None
    first = joint.vector_map.weight.clone()
    with torch.no_grad():
        joint.model.get_input_embeddings().weight.mul_(torch.rand_like(joint.model.get_input_embeddings().weight))
    joint.refit([joint_batch(type(joint).bound({"weights": {"masked_lm": 1.0, "info_nce": 0.5}}))], [])
    assert not torch.equal(first, joint.vector_map.weight)


def test_nothing_is_dropped_out_where_its_map_is_fitted():
    joint = Joint(model(dropout=0.3), weights={"masked_lm": 1.0, "moco": 0.5})
    rows = [joint_batch(type(joint).bound({"weights": joint.weights}))]
    found = []
    for fit in (joint.begin, joint.begin, lambda rows: joint.refit(rows, [])):
        fit(rows)
        found.append(joint.vector_map.weight.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert joint.model.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": {"masked_lm": 1.0, "causal_lm": 1.0}}, "do not go together.*causal_lm .AutoModelForCausalLM"),
        ({"weights": {"data2vec": 1.0, "causal_lm": 1.0}}, "do not go together"),
        ({"weights": {"masked_lm": 1.0, "joint": 1.0}}, "do not go together"),
        ({"weights": {"masked_lm": 0.0}}, "above 0"),
        ({"weights": {"masked_lm": float("nan")}}, "above 0"),
        ({"weights": {"maskedlm": 1.0}}, "'masked_lm'"),
        ({"weights": WEIGHTS, "options": {"data2vec": {}}}, "not in objective.weights"),
        ({"weights": WEIGHTS, "options": {"masked_lm": {"smoothing": 0.1}}}, "'label_smoothing'"),
    ],
)
def test_bad_weights_and_options(options, words):
    with pytest.raises(UserError, match=words):
        Joint.bound(options)


def recipe(**pairs):
    from sslnlp.recipe.schema import Options

    pairs = {"data.train": "corpus.txt", "train.steps": 1, "model.architecture": "bert"} | pairs
    return override(Recipe(objective=Options("joint")), pairs)


def test_a_recipe_is_bound_and_refused_before_any_data_is_read():
    """There is no corpus.txt: what is refused here is refused without it."""
    good = recipe(**{"objective.weights": '{"masked_lm": 1, "data2vec": "0.5"}', "collator.parts": '{"masked_lm": {}}'})
    check_recipe(good)
    assert good.objective.options == {"weights": {"masked_lm": 1.0, "data2vec": 0.5}}
    weights = {"objective.weights": '{"masked_lm": 1.0, "masked_diffusion": 1.0}'}
    check_recipe(filled := recipe(**weights))
    assert filled.collator.options == {"parts": {"masked_lm": {}, "masked_diffusion": {}}}
    assert filled.collator_class.makes == {"masked_lm", "masked_diffusion", "position"}
    for pairs, words in (
        ({}, "objective.weights"),
        (weights | {"model.architecture": "gpt2"}, "masked_lm, transformers has no AutoModelForMaskedLM"),
        (weights | {"collator.parts": '{"denoising": {}}'}, "'denoising', which no part uses"),
        (weights | {"collator.parts": '{"masked_lm": {"rat": 0.3}}'}, "'rate'"),
        (weights | {"collator.name": "masked_lm"}, "does not make; use collator.name=joint"),
    ):
        with pytest.raises(UserError, match=words):
            check_recipe(recipe(**pairs))


def test_it_refuses_a_model_that_a_part_refuses():
    cls = Joint.bound({"weights": WEIGHTS})
    assert cls.refuses(AutoConfig.for_model("bert")) is None
    assert "for masked_lm, " in cls.refuses(AutoConfig.for_model("llama"))
    with pytest.raises(UserError, match="weights"):
        Joint.refuses(AutoConfig.for_model("bert"))


def test_the_batch_of_the_contract_tests_has_more_than_one_part():
    assert len(make_objective("joint").num_targets(one_batch("joint"))) == 3
