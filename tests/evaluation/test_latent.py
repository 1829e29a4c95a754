"""Measures of a latent space on posteriors whose figures are known."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from sslnlp.evaluation.latent import COMPARED, latent_measures, mutual_information


def test_equal_posteriors_are_a_collapse_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        figures = latent_measures({"mean": torch.full((50, 4), 0.3), "log_variance": torch.zeros(50, 4)})
    assert figures["active_units"] == 0
    assert figures["collapsed"] == 1
    assert figures["mutual_information"] == pytest.approx(0.0, abs=1e-9)
    assert [record.message.count("the posterior has collapsed") for record in caplog.records] == [1]


def test_posteriors_far_apart_tell_the_document(caplog: pytest.LogCaptureFixture) -> None:
    """Narrow posteriors at distinct points: z gives the document away, ln N nats."""
    mean = torch.stack([torch.arange(64.0), torch.zeros(64)], dim=1)
    figures = latent_measures({"mean": mean, "log_variance": torch.full((64, 2), -9.0)})
    assert figures["mutual_information"] == pytest.approx(math.log(64), abs=1e-6)
    assert figures["active_units"] == 1
    assert figures["collapsed"] == 0
    assert not caplog.records


def test_two_groups_give_one_bit() -> None:
    mean = torch.tensor([[0.0], [100.0]]).repeat(200, 1)
    assert mutual_information(mean, torch.zeros(400, 1)) == pytest.approx(math.log(2), abs=1e-6)


def test_a_gaussian_channel() -> None:
    """Means N(0, s²), noise 1: ln(1 + s²) / 2 a dimension, within what so many documents tell."""
    mean = 2 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    expected = 2 * math.log(1 + 4) / 2
    assert mutual_information(mean, torch.zeros(2000, 2)) == pytest.approx(expected, abs=0.1)


def test_variances_enter_the_densities() -> None:
    """Equal means, two variances a thousandfold apart in many dimensions: told apart again, ln 2."""
    log_variance = torch.tensor([[0.0], [math.log(1000.0)]]).repeat(100, 16)
    assert mutual_information(torch.zeros(200, 16), log_variance) == pytest.approx(math.log(2), abs=0.02)


def test_the_threshold_of_an_active_unit() -> None:
    """Variance 0.01 is where a unit begins to count."""
    swing = torch.tensor([1.0, -1.0]).repeat(50)
    mean = torch.stack([0.09 * swing, 0.11 * swing], dim=1)
    assert latent_measures({"mean": mean, "log_variance": torch.zeros(100, 2)})["active_units"] == 1


def test_many_documents_are_thinned_out_evenly() -> None:
    """Sorted documents: the first half alone would show one group, an even sample shows both."""
    mean = torch.zeros(4 * COMPARED, 1)
    mean[2 * COMPARED :] = 100.0
    assert mutual_information(mean, torch.zeros_like(mean)) == pytest.approx(math.log(2), abs=1e-3)
