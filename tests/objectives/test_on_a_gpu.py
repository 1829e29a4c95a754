"""Updates on a GPU, pretended (`tests.pretend_gpu`): the same numbers, all on one device, and the CPU runs ahead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslnlp.objectives import OBJECTIVES
from sslnlp.train import Trainer
from tests.contract import VARIANTS, make_trainer, one_batch
from tests.pretend_gpu import GPU, OnGPU, one_device_a_run, pretended

LIKE_OTHERS = (
    "byol-pictures clip-beside siglip vicreg barlow_twins few_shot segment_order span_corruption ul2 fim hybrid"
)
LIKE_OTHERS += " regression multi_label tagging reranking prefix_lm ul2_decoder masked_diffusion joint late_interaction"
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS.split() else [])
    for name in sorted({*OBJECTIVES, *VARIANTS})
]
"""All objectives; those that compute as others here do are longer checks."""
WAITS = dict.fromkeys(["masked_patches", "retromae", "tsdae", "vae"], 1)
WAITS |= dict.fromkeys(["barlow_twins", "byol", "byol-pictures", "clip-beside", "info_nce", "moco", "vicreg"], 1)
"""Times that an update waits for the GPU: until it is known how many patches are hidden, or documents in a row, or that
the eigenvalues of a live measure were found."""


def updates(name: str, trainer: Trainer, waits: list[str]) -> tuple[list[float], list[str]]:
    """What two updates sum up, and what the second one waited for: at the first some things are tried out."""
    trainer.module.train()
    sums = [trainer.train_step([one_batch(name)], 0, 4)]
    waits.clear()
    sums.append(trainer.train_step([one_batch(name, start=6)], 1, 4))
    waited = list(waits)
    return [float(value.sum()) for found in sums for _, value in sorted(found.items())], waited


@pytest.mark.parametrize("name", NAMES)
def test_an_update_is_the_same_there_and_nothing_waits(name: str, tmp_path: Path) -> None:
    expected, _ = updates(name, make_trainer(name, tmp_path / "cpu", dropout=0.1), [])
    with one_device_a_run(), pretended() as waits:
        trainer = make_trainer(name, tmp_path / "gpu", dropout=0.1)
        assert trainer.device.type == "cuda"
        assert all(isinstance(parameter, OnGPU) for parameter in trainer.objective.parameters())
        got, waited = updates(name, trainer, waits)
    # The head's products are cut otherwise on a GPU (`linear_cross_entropy`).
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(waited) == WAITS.get(name, 0), waited


def test_what_is_pretended_is_refused_and_seen_as_on_a_gpu() -> None:
    with pretended() as waits:
        layer = nn.Linear(4, 2).to("cuda", non_blocking=True)
        x = torch.randn(3, 4, requires_grad=True)
        layer(x.to(GPU, non_blocking=True)).sum().backward()
        assert type(x.grad) is torch.Tensor
        assert isinstance(layer.weight.grad, OnGPU)
        assert layer.weight.grad.device == GPU
        assert not waits
        assert F.one_hot(torch.tensor([1, 0], device=GPU), 2).device == GPU
        with pytest.raises(RuntimeError, match="same device"):
            layer(x)
        waits.clear()
        y = torch.ones(3, device=GPU)
        assert (y + torch.tensor(2.0)).device == GPU
        with pytest.raises(TypeError, match="numpy"):
            y.numpy()
        y.cpu(), float(y[0]), y[y > 0], y.nonzero(), torch.linalg.eigvalsh(y[:, None] * y)
        x.to(GPU), torch.tensor(1.0, device=GPU), y[torch.tensor([0])], y.copy_(torch.ones(3))
    seen = ["to the CPU", "_local_scalar_dense", "index", "nonzero", "_linalg_eigh"]
    assert [wait.split(":")[0] for wait in waits] == [*seen, "to the GPU", "tensor", "index", "copy_"]
