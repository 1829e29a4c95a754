"""The benchmark on a GPU, in miniature on a CPU: every contender runs, does the same work, and reaches the table."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import ContenderFailed, Contest
from tests.turns import Turns

ROUNDS = 2


@pytest.fixture
def gpu() -> Any:
    # Not at the head of the file, which the processes of `stub` import too: they do without models.
    from benchmarks import gpu

    return gpu


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the benchmark sets for its processes ends with the test; the compiler reads it once, when first imported."""
    importlib.import_module("torch._dynamo")
    for name, value in {"TORCH_COMPILE_DISABLE": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def contenders_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what they leave behind, because each counts on a process of its own."""
    import torch
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)  # compiling takes a minute here
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("contenders_in_this_process")
def test_every_contender_does_the_same_work(gpu: Any, tmp_path: Path) -> None:
    from benchmarks.contenders import save_work

    for kind in ("masked", "causal"):
        sizes = gpu.MINIATURE | {"batches": 8}
        work = save_work(tmp_path / f"{kind}.pt", kind, sizes)
        losses: dict[str, list[float]] = {}
        flops: dict[str, float] = {}
        made = gpu.contenders(kind, {"work": work, "warmup": 2, "steps": 3})
        made[gpu.OURS][1]["profile"] = str(tmp_path / f"{kind}.txt")
        for name, (function, options) in made.items():
            turns = Turns(ROUNDS)
            with pytest.raises(SystemExit):
                function(turns, **options)
            losses[name] = [loss for facts in turns.said for loss in facts["losses"]]
            assert len(losses[name]) == 2 + 3 * ROUNDS, name
            assert [facts["units"] for facts in turns.said[1:]] == [3 * 4 * 16] * ROUNDS, name
            flops[name] = turns.said[1]["flops"]
        assert "aten::addmm" in (tmp_path / f"{kind}.txt").read_text()
        for name, curve in losses.items():
            loose = 0.5 if name == gpu.DEFAULT else 0.02
            assert curve == pytest.approx(losses[gpu.OURS], abs=loose), name
        theirs = flops["HF Trainer, tuned"]
        # Positions that are not scored are not counted; in a causal model all of them are.
        assert flops[gpu.OURS] < theirs if kind == "masked" else flops[gpu.OURS] == theirs


def stub(gate: Any, *, seconds: float, loss: float, **_: Any) -> None:
    import time

    if loss < 0:
        raise ValueError("does not start")
    gate(losses=[loss])
    while True:
        time.sleep(seconds)
        gate(units=64, flops=64e6, losses=[loss])


def test_a_row_survives_a_contender_that_fails_and_gives_no_ratio_to_other_work(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {
        gpu.OURS: (stub, {"seconds": 0.02, "loss": 5.0, "compiled": True}),
        "same": (stub, {"seconds": 0.4, "loss": 5.001}),
        "other": (stub, {"seconds": 0.01, "loss": 6.0}),
        "broken": (stub, {"seconds": 0.01, "loss": -1.0}),
    }
    monkeypatch.setattr(gpu, "contenders", lambda kind, turns: made)
    gpu.run(
        gpu.parse(
            [
                "--device",
                "cpu",
                "--miniature",
                "--rows",
                "mini",
                "--rounds",
                "3",
                "--no-kernels",
                "--out",
                str(tmp_path),
            ]
        )
    )
    story = json.loads((tmp_path / "mini.json").read_text())
    assert set(story["summary"]) == {gpu.OURS, "same"}
    assert story["summary"]["same"]["reference_is_faster"][0] > 1.5
    assert "6.0" in story["setup"]["not_the_same_work"]["other"]["why"]
    assert "does not start" in story["setup"]["failed"]["broken"]
    assert (tmp_path / "mini.svg").exists()
    said = capsys.readouterr().out
    assert "other losses" in said
    assert "mini is ready" in said


def test_after_the_limit_no_row_is_begun(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "contenders", lambda kind, turns: {})
    gpu.run(gpu.parse(["--device", "cpu", "--miniature", "--rows", "mini", "--no-kernels", "--seconds", "0"]))
    assert "mini is left out" in capsys.readouterr().out


def test_a_contender_that_is_not_ready_in_time_fails() -> None:
    with Contest(1) as contest:
        contest.start("slow", stub, {"seconds": 0.0, "loss": 1.0})
        with pytest.raises(ContenderFailed, match="not ready"):
            contest.ready("slow", 0.0)


def test_each_attention_kernel_gives_a_time_or_a_reason(gpu: Any) -> None:
    found = gpu.kernels("cpu", 2, 16)
    assert found["flash, documents"].endswith(" ms")
    assert all(value.endswith(" ms") or value.startswith("not here") for value in found.values())
