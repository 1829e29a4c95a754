"""The variational autoencoder: closed forms of its bound, its schedule, and what the decoder is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig

from sslnlp.errors import UserError
from sslnlp.keyed import row_keyed_dropout
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives.functional import cyclic, gaussian_kl
from sslnlp.objectives.vae import VAE
from tests.contract import LENGTH, one_batch, small_tokenizer

ENCODERS = ("bert", "modernbert", "roberta", "electra")


def objective(architecture: str = "bert", **options: Any) -> VAE:
    config = ModelConfig(architecture=architecture, size="nano")
    model = build_model(config, small_tokenizer(), VAE.wraps, max_length=LENGTH)
    torch.manual_seed(0)
    return VAE(model, **options)


def set_posterior(model: VAE, mean: float, log_variance: float) -> None:
    """Makes every document's posterior this one, whatever it says."""
    latent = model.widen.in_features
    nn.init.zeros_(model.posterior.weight)
    model.posterior.bias.data = torch.tensor([mean] * latent + [log_variance] * latent)


def documents(batch: Any) -> int:
    return sum(len(set(row.tolist()) - {-1}) for row in batch["document_ids"])


def tokens(batch: Any) -> int:
    return int((batch["labels"] != -100).sum())


# --- the maths -------------------------------------------------------------------------------------------------------


def test_kl_of_the_prior_is_zero() -> None:
    assert torch.equal(gaussian_kl(torch.zeros(3), torch.zeros(3)), torch.zeros(3))


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_kl_is_that_of_torch(mean: float, log_variance: float) -> None:
    posterior = torch.distributions.Normal(mean, math.exp(log_variance / 2))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    assert float(gaussian_kl(torch.tensor(mean), torch.tensor(log_variance))) == pytest.approx(
        float(expected), abs=1e-4
    )


def test_the_weight_rises_in_each_cycle_and_stays() -> None:
    weights = [cyclic(step / 16, cycles=2, ramp=0.5) for step in range(1, 17)]
    assert weights == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0] * 2
    assert [cyclic(step / 4, cycles=1, ramp=1.0) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert cyclic(0.01, cycles=3, ramp=0.0) == 1.0


@given(st.integers(1, 10), st.floats(0.01, 1), st.integers(1, 400))
def test_the_weight_is_a_share_and_full_at_the_end(cycles: int, ramp: float, steps: int) -> None:
    weights = [cyclic(step / steps, cycles=cycles, ramp=ramp) for step in range(1, steps + 1)]
    assert all(0 <= weight <= 1 for weight in weights)
    assert weights[-1] == pytest.approx(1.0)


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ENCODERS)
def test_held_out_loss_is_the_bound(architecture: str) -> None:
    """A posterior N(1, e): KL is e / 2 a dimension and document, whatever β and free bits the training has."""
    model = objective(architecture, latent=4, beta=0.1, free_bits=100.0).eval()
    set_posterior(model, 1.0, 1.0)
    batch = one_batch("vae")
    output = model(batch)
    kl = 4 * math.e / 2 - 4 * 0.5
    assert float(output.metrics["kl"][0]) == pytest.approx(kl * documents(batch), rel=1e-4)
    assert int(output.metrics["kl"][1]) == documents(batch)
    extra = float(output.loss.detach() - output.metrics["reconstruction"])
    assert extra == pytest.approx(kl * documents(batch) / tokens(batch), rel=1e-3)


def test_a_posterior_that_is_the_prior_costs_nothing() -> None:
    model = objective(free_bits=0.0).eval()
    set_posterior(model, 0.0, 0.0)
    output = model(one_batch("vae"))
    assert torch.equal(output.loss.detach(), output.metrics["reconstruction"])


@pytest.mark.parametrize(("log_variance", "nats"), [(0.0, 0.3), (1.0, math.e / 2 - 0.5 - 0.5)])
def test_training_pays_beta_times_what_exceeds_the_free_bits(log_variance: float, nats: float) -> None:
    """Below the free bits the cost is that of the free bits (and without a gradient); above them the KL itself."""
    model = objective(latent=3, beta=0.7, ramp=0.0, free_bits=0.3, word_dropout=0.0).train()
    set_posterior(model, 0.0, log_variance)
    kl = (math.exp(log_variance) - 1 - log_variance) / 2
    batch = one_batch("vae")
    output = model(batch)
    extra = float(output.loss.detach() - output.metrics["reconstruction"])
    assert extra == pytest.approx(0.7 * 3 * max(kl, 0.3) * documents(batch) / tokens(batch), rel=1e-3)


def test_beta_follows_the_cycles_and_is_in_the_state() -> None:
    model = objective(beta=0.5, cycles=2, ramp=0.5).train()
    assert float(model.state_dict()["beta_now"]) == 0.0
    seen = []
    for step in range(1, 9):
        model.after_step(step / 8)
        seen.append(float(model(one_batch("vae")).metrics["beta"]))
    assert seen == pytest.approx([0.25, 0.5, 0.5, 0.5] * 2)
    assert float(objective(beta=0.5, ramp=0.0).beta_now) == 0.5


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    model = objective()
    nn.init.zeros_(model.decoder.narrow.weight)
    nn.init.zeros_(model.decoder.narrow.bias)
    reconstruction = model(one_batch("vae")).metrics["reconstruction"]
    assert float(reconstruction) == pytest.approx(math.log(model.model.config.vocab_size), rel=1e-4)


def test_the_loss_without_the_vector_is_that_of_latents_at_zero() -> None:
    model = objective().eval()
    batch = one_batch("vae")
    metrics = model(batch).metrics
    zeros = torch.zeros(len(batch["position"]), int(batch["document_ids"].max()) + 1, 32)
    logits = model.decoder.logits(model.write(batch, zeros), model.model.get_input_embeddings().weight)
    expected = nn.functional.cross_entropy(logits, batch["labels"].flatten())
    assert float(metrics["loss_without_vector"][0]) == pytest.approx(expected.item() * tokens(batch), rel=1e-4)
    assert "loss_without_vector" not in model.train()(batch).metrics


# --- draws -----------------------------------------------------------------------------------------------------------


def test_z_is_normal_and_its_own_for_every_row_document_and_dimension() -> None:
    model = objective(latent=32)
    drawn: list[torch.Tensor] = []
    width = model.decoder.narrow.out_features
    model.write = lambda batch, z, told=None: drawn.append(z) or torch.zeros(batch["labels"].numel(), width)  # type: ignore
    set_posterior(model, 0.0, 0.0)
    batch = one_batch("vae", rows=60)
    model(batch)
    z = drawn[0].detach().flatten()
    assert torch.isfinite(z).all()
    assert len(z.unique()) > 0.99 * len(z)
    assert abs(float(z.mean())) < 5 / math.sqrt(len(z))
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / len(z))


def test_evaluation_draws_the_same_and_tells_everything() -> None:
    model = objective(word_dropout=0.9).eval()
    batch = one_batch("vae")
    with row_keyed_dropout(7, batch["position"]):
        told = model(batch).loss
    assert torch.equal(model(batch).loss, model(batch).loss)
    plain = objective(word_dropout=0.0).eval()
    plain.load_state_dict(model.state_dict())
    with row_keyed_dropout(7, batch["position"]):
        assert torch.equal(plain(batch).loss, told)


def test_word_dropout_hides_that_share_of_the_tokens() -> None:
    model = objective(word_dropout=0.3).train()
    seen: list[torch.Tensor] = []
    decoder = model.decoder.forward
    model.decoder.forward = lambda *a: (seen.append(a[-1]), decoder(*a))[1]  # type: ignore[method-assign]
    batch = one_batch("vae", rows=60)
    with row_keyed_dropout(3, batch["position"]):
        model(batch)
    n = seen[0].numel()
    assert abs(float((~seen[0]).float().mean()) - 0.3) < 5 * math.sqrt(0.21 / n)


def test_what_is_hidden_is_the_token_before() -> None:
    """With every token hidden, the logits of a place depend on no token of the text."""
    model = objective().eval()
    batch = one_batch("vae")
    z = torch.zeros(len(batch["position"]), 40, 32)
    other = dict(batch, labels=batch["labels"].clamp(min=0).flip(0))
    nothing = torch.zeros(batch["labels"].shape, dtype=torch.bool)
    assert torch.equal(model.write(batch, z, nothing), model.write(other, z, nothing))
    assert not torch.equal(model.write(batch, z), model.write(other, z))


# --- what comes out --------------------------------------------------------------------------------------------------


def test_predict_gives_a_posterior_for_each_document_whatever_stands_beside_it() -> None:
    model = objective().eval()
    with torch.no_grad():
        together = model.predict(one_batch("vae", rows=6))
        apart = [model.predict(one_batch("vae", rows=1, start=row)) for row in range(6)]
    assert together["mean"].shape == (documents(one_batch("vae", rows=6)), 32)
    for name in ("mean", "log_variance"):
        assert torch.allclose(together[name], torch.cat([part[name] for part in apart]), atol=1e-5)


def test_samples_are_texts_and_an_interpolation_between_the_first_two() -> None:
    model = objective().eval()
    nn.init.normal_(model.decoder.conditions[0].weight, std=0.5)
    nn.init.normal_(model.widen.weight)
    once, again, other = (model.samples(small_tokenizer(), seed=seed) for seed in (0, 0, 1))
    drawn, line = once.values()
    assert (len(drawn), len(line)) == (4, 5)
    assert (line[0], line[-1]) == (drawn[0], drawn[1])
    assert once == again
    assert once != other
    assert all("[" not in text for text in drawn)


BAD = ({"latent": 0}, {"beta": -1}, {"cycles": 0}, {"ramp": 1.5}, {"free_bits": -0.1}, {"word_dropout": 1.0})


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"objective\."):
        objective(**options)


def test_models_that_do_not_suit_are_refused() -> None:
    assert all(VAE.refuses(AutoConfig.for_model(name)) is not None for name in ("gpt2", "bart", "t5"))
    assert all(VAE.refuses(AutoConfig.for_model(name)) is None for name in ENCODERS)
