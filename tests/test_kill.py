"""kill -9 at random moments, most of them near or inside a save: the run that is resumed is the straight one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sslnlp.metrics import read_metrics
from tests.contract import digest

STEPS = 60


def start(folder: Path, job: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "tests.contract", str(folder), job]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_killed_five_times_and_resumed(name: str, workers: int, tmp_path: Path) -> None:
    """Five kills for each of the four combinations, twenty in all; every other step saves a checkpoint."""
    job = f"{name}:steps={STEPS}:save_every=2:workers={workers}"
    assert start(tmp_path / "straight", job).wait() == 0
    moments = random.Random(f"{name}{workers}")
    metrics = tmp_path / "killed" / name / "metrics.jsonl"
    for kill in range(5):
        process = start(tmp_path / "killed", f"{job}:resume=1")
        goal = (kill + 1) * STEPS // 7
        while process.poll() is None:  # wait until it has come some way, then a random moment more
            lines = read_metrics(metrics)
            if lines and lines[-1]["step"] >= goal:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.wait()
    # The other number of workers ends it.
    last = start(tmp_path / "killed", f"{name}:steps={STEPS}:save_every=2:workers={2 - workers}:resume=1")
    assert last.wait() == 0
    straight, killed = (torch.load(tmp_path / run / f"{name}.pt") for run in ("straight", "killed"))
    assert digest(killed) == digest(straight)
    assert [line["step"] for line in read_metrics(metrics)] == list(range(1, STEPS + 1))
