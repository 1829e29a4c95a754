"""Which type a run computes in, and what is said where that is the slower one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslnlp import precision
from tests.contract import make_trainer


def test_emulated_half_precision_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu = torch.device("cpu")
    assert precision.warn_if_slower("no", cpu) is None
    assert precision.warn_if_slower("bf16", torch.device("cuda")) is None
    for slow in (False, True):
        caplog.clear()
        monkeypatch.setattr(precision, "_gain", lambda s=slow: 0.125 if s else 1.0)
        assert precision.warn_if_slower("bf16", cpu) == (8.0 if slow else 1.0)
        assert ("train.precision=no" in caplog.text) == slow


@pytest.mark.parametrize(("gain", "fitting"), [(8.0, "bf16"), (2.1, "bf16"), (1.1, "no"), (0.1, "no")])
def test_half_precision_fits_a_cpu_that_is_fast_in_it(
    gain: float, fitting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_gain", lambda: gain)
    assert precision.fitting_precision(torch.device("cpu")) == fitting
    assert precision.fitting_precision(torch.device("meta")) == "no"


def test_the_gain_of_half_precision_is_the_quotient_of_the_shortest_products(monkeypatch: pytest.MonkeyPatch) -> None:
    # In turn float32, bf16; the first pair builds the kernels, and one product of each was disturbed.
    took = [90.0, 90.0, 6.0, 2.0, 50.0, 2.5, 6.0, 70.0, 7.0, 3.0, 6.5, 2.0]
    clock = (reading for seconds in took for reading in (0.0, seconds))
    with monkeypatch.context() as patched:
        patched.setattr(precision, "perf_counter", lambda: next(clock))
        assert precision._gain.__wrapped__() == 3.0
    found = precision._gain()
    monkeypatch.setattr(precision, "perf_counter", lambda: pytest.fail("measured twice in one process"))
    assert precision._gain() == found


def test_one_process_trains_in_one_precision_after_another(tmp_path: Path) -> None:
    for n, dtype in enumerate(("no", "bf16", "no")):
        trainer = make_trainer("masked_lm", tmp_path / str(n), steps=1, precision=dtype)
        with trainer.accelerator.autocast():
            assert torch.is_autocast_enabled("cpu") == (dtype == "bf16")
        trainer.fit()
