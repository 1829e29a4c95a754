"""Names in the registries, and which collator, objective and model go together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from transformers import AutoConfig

from sslnlp.architectures import ARCHITECTURES
from sslnlp.collators import COLLATORS, Collator, get_collator
from sslnlp.errors import UserError
from sslnlp.models import ModelConfig
from sslnlp.objectives import OBJECTIVES, Objective, get_objective
from sslnlp.recipe import Options, Recipe, check, load_recipe, override
from sslnlp.recipe.build import resolve
from sslnlp.recipe.checks import check_compared, check_config, check_model


class Elsewhere(get_collator("causal_lm")):  # type: ignore[misc]
    """A collator of somebody else's package."""

    makes: ClassVar[frozenset[str]] = frozenset({"input_ids"})


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_has_its_collator(name: str) -> None:
    objective = get_objective(name)
    assert issubclass(objective, Objective)
    assert objective.name == name
    check(get_collator(objective.collator), objective)


@pytest.mark.parametrize("name", sorted(COLLATORS))
def test_every_collator_is_found_by_its_name(name: str) -> None:
    assert issubclass(get_collator(name), Collator)
    assert get_collator(name).name == name


def test_a_dotted_path_stands_where_a_name_does() -> None:
    assert get_collator("tests.test_recipe_pairs:Elsewhere").makes == {"input_ids"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("masked_ml", "Did you mean 'masked_lm'"),
        ("no.such.module:Thing", "cannot import 'no.such.module' .*; put the folder it is in on PYTHONPATH"),
        ("tests.no_such:Thing", r"cannot import 'tests.no_such' \(.*\)$"),
        ("tests.test_recipe_pairs:Elsewere", "Did you mean 'Elsewhere'"),
        ("pathlib:Path", "not a subclass"),
    ],
)
def test_unknown_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_collator(name)


def test_a_pair_that_does_not_fit_names_one_that_does() -> None:
    with pytest.raises(UserError, match=r"needs target_index.*use collator.name=.*masked_lm"):
        check(get_collator("causal_lm"), get_objective("masked_lm"))


@pytest.mark.parametrize(
    ("objective", "architecture", "fits"),
    [
        ("causal_lm", "gpt2", True),
        ("causal_lm", "bert", False),  # it has a causal head, but reads in both directions
        ("causal_lm", "modernbert", False),
        ("masked_lm", "modernbert", True),
        ("masked_lm", "llama", False),
        ("classification", "gpt2", True),
        ("ranking", "bert", True),
    ],
)
def test_architectures_are_judged_by_what_they_can_do(objective: str, architecture: str, fits: bool) -> None:
    model = override(Recipe(objective=Options(objective)), {"model.architecture": architecture}).model
    if fits:
        check_model(model, get_objective(objective))
    else:
        with pytest.raises(UserError, match=r"choose model\.architecture from: "):
            check_model(model, get_objective(objective))


def test_a_decoder_config_makes_an_encoder_causal() -> None:
    pairs = {"model.architecture": "bert", "model.config.is_decoder": "true"}
    check_model(override(Recipe(objective=Options("causal_lm")), pairs).model, get_objective("causal_lm"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model.config.hidden_sise=64"], "unknown model.config.hidden_sise"),
        (["model.config.hidden_size=63"], "model.config is not valid for modernbert"),
        (["model.config.num_hidden_layers=many"], "model.config is not valid for modernbert"),
    ],
)
def test_a_wrong_field_of_the_model_is_refused_before_data_is_read(keys: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(load_recipe("pretrain_bert", ["data.train=never-read.txt", *keys]))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_takes_a_good_field_before_there_is_a_tokenizer(architecture: str) -> None:
    """Once for each stock class: of the objective no more is asked."""
    stock, wrapping = AutoConfig.for_model(architecture), {}
    for name in OBJECTIVES:
        objective = get_objective(name).bound({"weights": {"masked_lm": 1.0}} if name == "joint" else {})
        if objective.refuses(stock) is None:
            wrapping[objective.wraps] = objective
    fields = {"vocab_size": 99} if architecture != "vit" else {"image_size": 32}
    for objective in wrapping.values():
        check_config(ModelConfig(architecture=architecture, size="nano", config=fields), objective, 32)
    assert wrapping


def test_rows_that_are_compared_with_nothing() -> None:
    """A queue and mined negatives are something, and so are the other processes; accumulation is nothing."""
    for name, keys, world, refused in (
        ("ranking", [], 1, True),
        ("ranking", ["train.accumulate=8"], 1, True),
        ("ranking", [], 2, False),
        ("ranking", ["train.batch_size=2"], 1, False),
        ("ranking", ["train.steps=0"], 1, False),
        ("late_interaction", [], 1, True),
        ("moco", ["collator.name=pair_views"], 1, False),
        ("moco", ["collator.name=pair_views", "objective.queue=0"], 1, True),
        ("info_nce", ["collator.name=pair_views"], 1, True),
        ("byol", ["collator.name=pair_views"], 1, False),
        ("info_nce", [], 1, False),  # packed text has several documents in a row
        ("masked_lm", [], 1, False),
    ):
        recipe = override(
            Recipe(objective=Options(name)), dict(key.split("=") for key in ["train.batch_size=1", *keys])
        )
        for negatives in (False, True):
            batch = {"negative": 1} if negatives else {}
            parts: Any = SimpleNamespace(
                recipe=recipe, collator=lambda rows, batch=batch: batch, stream=SimpleNamespace(rows=list)
            )
            if refused and not negatives:
                with pytest.raises(UserError, match=r"train\.batch_size=1 gives it one"):
                    check_compared(parts, world)
            else:
                check_compared(parts, world)
