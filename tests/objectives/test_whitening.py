"""What all texts share is taken out of their vectors: the map, when it is fitted, and where it is kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from sslnlp.errors import UserError
from sslnlp.export.modules import save_embedder
from sslnlp.objectives import whitening
from sslnlp.objectives.info_nce import InfoNCE
from sslnlp.objectives.ranking import Ranking
from sslnlp.objectives.whitening import Pairs, Whitened, Whitening, better
from sslnlp.types import LinearMap
from sslnlp.vector_map import apply, is_encoder, map_of_model, pooling_of_model, save_dense, whitener
from tests.contract import make_objective, one_batch
from tests.objectives.test_ranking import batch, objective

WIDTH = 16


def drawn(number: int, noise: float, common: float, seed: int = 0) -> Pairs:
    """Pairs whose meaning lies in the quiet half of the directions, behind a loud half and what all texts share."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    meaning = torch.cat([torch.zeros(number, WIDTH // 2), normal(number, WIDTH // 2)], 1)
    loud = torch.tensor([noise] * (WIDTH // 2) + [0.2] * (WIDTH // 2))
    sides = [meaning + normal(number, WIDTH) * loud + common for _ in range(2)]
    return Pairs(*sides, torch.arange(number), torch.arange(number) + number)


def cosines(x: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    return unit @ unit.T


def test_it_is_the_whitening_of_a_reference_but_for_a_rotation() -> None:
    x = drawn(20_000, 3.0, 10.0).vectors  # so many that nothing is shrunk
    made = Whitening(WIDTH)
    made.set(whitener(x, 0.5))
    theirs = torch.from_numpy(PCA(whiten=True).fit_transform(x.double().numpy()))
    torch.testing.assert_close(cosines(made(x)[:300]), cosines(theirs[:300]), atol=2e-3, rtol=0)
    torch.testing.assert_close(made(x).mean(0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    assert made(x).norm(dim=1).mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(made.weight, made.weight.T, atol=1e-6), "the one that changes the vectors least"


def test_with_no_exponent_only_the_mean_goes() -> None:
    x = drawn(200, 3.0, 10.0).vectors
    found = whitener(x, 0.0)
    torch.testing.assert_close(cosines(x @ found.weight.T + found.bias), cosines(x - x.mean(0)), atol=1e-4, rtol=0)


def tried(pairs: Pairs, now: LinearMap | None) -> LinearMap | None:
    return better(pairs.part(0), pairs.part(1), pairs, now)


def test_of_few_texts_little_is_made() -> None:
    """In directions that ten texts do not show there is no telling how far others reach: they are not blown up."""
    seen = torch.randn(10, 64, generator=torch.Generator().manual_seed(0)) + 5
    spread_H = torch.linalg.svdvals(whitener(seen, 0.5).weight)
    assert spread_H.max() < 2 * spread_H.min()
    for nothing in (torch.ones(4, 8), torch.ones(1, 8), torch.full((4, 8), torch.nan)):
        assert torch.equal(whitener(nothing, 0.5).weight, torch.eye(8))


def test_it_is_taken_where_pairs_find_each_other_better_and_only_there() -> None:
    pairs = drawn(300, 3.0, 10.0)
    found = tried(pairs, None)
    assert found is not None
    torch.testing.assert_close(found.weight, whitener(pairs.vectors, 0.5).weight)
    assert tried(drawn(300, 0.2, 0.0), None) is None  # nothing to gain: meaning is all there is
    assert tried(drawn(20, 3.0, 10.0), None) is None  # from too few


def test_one_more_is_put_behind_what_there_is() -> None:
    pairs = drawn(300, 3.0, 10.0)
    loud = LinearMap(torch.eye(WIDTH) * 2, torch.ones(WIDTH))
    found = tried(pairs, loud)
    assert found is not None
    x = apply(loud, pairs.vectors)
    torch.testing.assert_close(apply(found, pairs.vectors), apply(whitener(x, 0.5), x), atol=1e-4, rtol=1e-4)
    assert tried(pairs, found) is found  # twice gains nothing


def test_another_text_that_is_relevant_too_is_not_in_the_way() -> None:
    """Every query stands twice, with two documents of its own: neither counts against the other."""
    queries = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))
    asked = torch.arange(40)
    twice = Pairs(queries.repeat(2, 1), queries.repeat(2, 1), asked.repeat(2), torch.arange(80) + 100)
    assert whitening._reciprocal_ranks(twice).mean() == 1
    twice = twice._replace(asked=torch.arange(80))
    assert whitening._reciprocal_ranks(twice).mean() < 0.8


def test_the_objective_fits_it_before_the_first_update() -> None:
    model, rows = objective(whitening=0.5), [batch(40)]
    assert model.begins
    assert model.vector_map is None
    before = model.embed(rows[0]["query"])
    torch.testing.assert_close(before, objective(whitening=0).embed(rows[0]["query"]))
    model.begin(rows)
    assert model.training, "as it was"
    after = torch.cat([model.embed(rows[0][side]) for side in ("query", "positive")])
    assert after.mean(0).norm() < 0.3 < before.mean(0).norm()
    assert model.vector_map is not None
    assert not any("whitening" in name for name, _ in model.named_parameters()), "it does not train"
    other = objective(whitening=0.5)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.embed(rows[0]["query"]), after[:40])


def test_none_is_asked_for_and_no_pair_is_too_few() -> None:
    assert not objective(whitening=0).begins
    model = objective()
    model.begin([batch(4)])
    assert model.vector_map is None
    with pytest.raises(UserError, match=r"whitening=0\.7 is an exponent from 0"):
        objective(whitening=0.7)


def test_a_start_keeps_what_it_does_to_its_vectors(tmp_path: Path) -> None:
    width = 16
    folder = objective().model
    folder.save_pretrained(tmp_path)
    steps = [("", "Transformer"), ("1", "Pooling"), ("2", "Dense"), ("3", "Dense"), ("4", "Normalize"), ("5", "Dense")]
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"s.{kind}", "path": path} for path, kind in steps]))
    first, second = (torch.from_numpy(np.random.default_rng(n).normal(size=(width, width))).float() for n in (0, 1))
    for place, weight, activation in (("2", first, "x.Identity"), ("3", second, "x.Identity"), ("5", first, "x.Tanh")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps({"activation_function": activation}))
        torch.save({"linear.weight": weight}, tmp_path / place / "pytorch_model.bin")
    model = Ranking(type(folder).from_pretrained(tmp_path, add_pooling_layer=False))
    assert model.vector_map is not None
    torch.testing.assert_close(model.vector_map.weight, second @ first)
    assert Ranking(type(folder).from_pretrained(tmp_path, add_pooling_layer=False), whitening=0.0).vector_map is None
    (tmp_path / "3" / "config.json").write_text(json.dumps({"activation_function": "x.Tanh"}))
    assert map_of_model(str(tmp_path)) is None


@pytest.mark.parametrize("kind", ["whitening", "another", "encoder", "plain"])
def test_views_are_whitened_unless_the_start_knows_how_to_make_vectors(kind: str, tmp_path: Path) -> None:
    model = objective().model
    model.save_pretrained(tmp_path)
    steps = [("", "Transformer"), ("1", "Pooling")]
    if kind in ("whitening", "another"):
        found = whitener(drawn(100, 3.0, 1.0).vectors, 0.5)
        save_dense(tmp_path, "2", found if kind == "whitening" else found._replace(weight=torch.rand(WIDTH, WIDTH)))
        steps.append(("2", "Dense"))
    if kind != "plain":
        described = [{"type": f"s.{step}", "path": path} for path, step in steps]
        (tmp_path / "modules.json").write_text(json.dumps(described))
    made = InfoNCE(type(model).from_pretrained(tmp_path, add_pooling_layer=False))
    fits = kind in ("whitening", "plain")
    assert (made.begins, made.refits, made.exponent) == (fits, fits, 0.5 if fits else 0.0)
    assert (made.vector_map is not None) == (kind == "another")
    assert InfoNCE(made.model, whitening=0.25).exponent == 0.25
    assert Ranking(made.model).tries == (kind != "encoder")
    assert Ranking(made.model, whitening=0.25).exponent == 0.25


@pytest.mark.parametrize("name", ["tsdae", "retromae", "vae"])
def test_what_writes_the_text_again_is_whitened_after_training(name: str) -> None:
    """The decoder reads the vectors as they are; the map of the export is fitted to those of whole texts."""
    model, rows = make_objective(name), [one_batch(name)]
    assert isinstance(model, Whitened)
    assert (model.begins, model.refits, model.exponent, model.vector_map) == (False, True, 0.5, None)
    model.eval()
    with torch.no_grad():
        before = model(rows[0]).loss
        model.refit(rows, [])
        assert torch.equal(model(rows[0]).loss, before)
        found, x = model.vector_map, model.pooled_texts(rows[0])
    assert found is not None
    assert len(x) == int(rows[0]["document_ids"].max(1).values.add(1).sum()), "every document once"
    torch.testing.assert_close(found.weight, whitener(x, 0.5).weight)
    if name == "retromae":  # whatever the encoder's masks hide
        text = torch.where(rows[0]["labels"] >= 0, rows[0]["labels"], rows[0]["input_ids"])
        bare = rows[0] | {"input_ids": text, "labels": torch.full_like(text, -100)}
        assert torch.equal(model.pooled_texts(bare), x)
    other = type(model)(model.model, whitening=0.0)
    assert (other.begins, other.refits, other.vector_map) == (False, False, None)
    with pytest.raises(UserError, match=r"whitening=0\.7 is an exponent from 0"):
        type(model)(model.model, whitening=0.7)


def test_a_start_that_is_not_linear_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "s.Dense", "path": "2"}]')
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Tanh"}')
    assert map_of_model(str(tmp_path)) is None
    assert "it ends in Tanh" in caplog.text


def test_a_name_that_leads_nowhere_says_nothing() -> None:
    for name in ("", "no/such-model", "nowhere"):
        assert map_of_model(name) is None
        assert not is_encoder(name, "mean")
        assert pooling_of_model(name) is None


def test_a_map_is_kept_for_the_pooling_that_it_was_fitted_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = objective().model
    model.save_pretrained(tmp_path)
    save_embedder(model, tmp_path, "cls", True, {}, 64, LinearMap(torch.rand(WIDTH, WIDTH), torch.zeros(WIDTH)))
    assert pooling_of_model(str(tmp_path)) == "cls"
    start = type(model).from_pretrained(tmp_path, add_pooling_layer=False)
    for kind in (Ranking, InfoNCE):
        assert kind(start, pooling="cls").vector_map is not None
        assert kind(start, pooling="mean").vector_map is None
        assert kind(start, pooling="mean").begins, "one of its own may be fitted"
    shutil.rmtree(tmp_path / "2_Dense")
    save_embedder(model, tmp_path, "cls", True, {}, 64, LinearMap(torch.rand(8, WIDTH), torch.zeros(8)))
    assert Ranking(start, pooling="cls").vector_map is not None
    assert not caplog.text
    assert InfoNCE(start, pooling="cls").vector_map is None
    assert (
        f"maps its vectors to 8 dimensions: objective info_nce leaves that out, its vectors have {WIDTH}" in caplog.text
    )
