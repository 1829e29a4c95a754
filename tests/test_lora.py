"""Adapters, layer-wise rates and new top layers: what learns, what stays, and what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, MambaConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.lora import merged
from sslnlp.models import ModelConfig, build_model, layer_of
from sslnlp.objectives.classification import Classification
from sslnlp.optim import parameter_groups
from sslnlp.train import TrainConfig, Trainer
from tests.contract import make_collator, make_stream, small_tokenizer

NAMES = {"num_labels": 3}
ARCHITECTURES = ["bert", "modernbert", "roberta", "llama", "gpt2"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A backbone of each architecture, without a head."""
    found = {}
    for name in ARCHITECTURES:
        found[name] = tmp_path_factory.mktemp("models") / name
        config = ModelConfig(architecture=name, size="nano")
        model = build_model(config, small_tokenizer(), AutoModelForSequenceClassification, max_length=32, **NAMES)
        model.base_model.save_pretrained(found[name])
        small_tokenizer().save_pretrained(found[name])
    return found


def built(path: Path, seed: int = 0, **options: int | bool) -> PreTrainedModel:
    config = ModelConfig(pretrained=str(path), **options)  # type: ignore[arg-type]
    return build_model(
        config, small_tokenizer(), AutoModelForSequenceClassification, max_length=32, seed=seed, pad_token_id=0, **NAMES
    )


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama"])
def test_adapters_learn_the_rest_stays_and_the_export_is_stock(
    name: str, pretrained: dict[str, Path], tmp_path: Path
) -> None:
    model = built(pretrained[name], lora_rank=4)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    plain = built(pretrained[name])
    assert sum(model.get_parameter(key).numel() for key in learning) < 0.3 * sum(p.numel() for p in plain.parameters())
    config = TrainConfig(steps=5, batch_size=8, lr=1e-2)
    trainer = Trainer(
        Classification(model), make_collator("classification"), make_stream("classification"), config, out=tmp_path
    )
    trained = trainer.fit().model
    moved = {key for key, tensor in trained.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == learning
    stock = merged(trained)
    assert type(stock) is type(plain)
    assert stock.state_dict().keys() == plain.state_dict().keys()
    ids = torch.arange(20, 40).view(2, 10)
    with torch.no_grad():
        ours, theirs = trained.eval()(ids).logits, stock.eval()(ids).logits
        untouched = plain.eval()(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, untouched, atol=1e-3)


def test_without_adapters_nothing_is_copied(pretrained: dict[str, Path]) -> None:
    model = built(pretrained["bert"])
    assert merged(model) is model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rates_fall_from_the_head_to_the_embeddings(name: str, pretrained: dict[str, Path]) -> None:
    objective = Classification(built(pretrained[name]))
    groups = parameter_groups(objective, 0.1, 0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert len(scale) == len(list(objective.parameters()))
    model, places = objective.model, layer_of(objective.model)
    depth = max(places.values()) + 1
    assert depth == model.config.num_hidden_layers > 1
    for key, parameter in model.named_parameters():
        if key in places:
            assert scale[id(parameter)] == 0.5 ** (depth - places[key]), key
    assert scale[id(model.get_input_embeddings().weight)] == 0.5 ** (depth + 1)
    head = [p for key, p in model.named_parameters() if key.startswith(("classifier", "score"))]
    assert head
    assert {scale[id(p)] for p in head} == {1.0}


def test_top_layers_start_anew(pretrained: dict[str, Path]) -> None:
    kept, fresh, again = (built(pretrained["bert"], seed=1, reinit_layers=n).state_dict() for n in (0, 1, 1))
    places = layer_of(built(pretrained["bert"]))
    top = max(places.values())
    changed = {key for key in places if not torch.equal(kept[key], fresh[key])}
    assert changed == {key for key, place in places.items() if place == top and kept[key].ndim > 1}
    assert all(torch.equal(fresh[key], again[key]) for key in fresh)


def test_fresh_takes_the_configuration_and_no_weights(pretrained: dict[str, Path]) -> None:
    kept, fresh = built(pretrained["bert"]), built(pretrained["bert"], seed=5, fresh=True)
    assert fresh.config.hidden_size == kept.config.hidden_size
    assert not torch.equal(fresh.get_input_embeddings().weight, kept.get_input_embeddings().weight)


@pytest.mark.parametrize("option", [{"lora_rank": 4}, {"reinit_layers": 1}, {"fresh": True}])
def test_without_weights_to_start_from_it_is_one_clear_line(option: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"model\.pretrained"):
        ModelConfig(**option)  # type: ignore[arg-type]


def test_more_layers_than_there_are(pretrained: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="reinit_layers=99 of a model of"):
        built(pretrained["bert"], reinit_layers=99)


def test_a_model_that_reads_past_adapters_is_refused_in_one_line(tmp_path: Path) -> None:
    fields = {"vocab_size": len(small_tokenizer()), "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    AutoModelForCausalLM.from_config(MambaConfig(**fields)).save_pretrained(tmp_path)
    config = ModelConfig(pretrained=str(tmp_path), lora_rank=4)
    with pytest.raises(UserError, match=r"leave out model\.lora_rank") as caught:
        build_model(config, small_tokenizer(), AutoModelForCausalLM, max_length=32)
    assert "\n" not in str(caught.value)
