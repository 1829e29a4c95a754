"""kill -9 at random moments, most of them near or inside a save: the run that is resumed is the straight one.
And of a launcher, whose processes then save and end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sslnlp.checkpoint import newest_valid
from sslnlp.metrics import read_metrics
from tests.contract import digest

STEPS = 60


def start(folder: Path, job: str, *launcher: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, "-m", "tests.contract", str(folder), job]
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


def runs(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # nothing where it ended and nobody waited for it
    except OSError:
        return False


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(tmp_path: Path) -> None:
    launcher = start(
        tmp_path, "masked_lm:steps=1000000:save_every=1000000:batch_size=2",
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
    )  # fmt: skip
    state = tmp_path / "masked_lm" / "state"
    while not read_metrics(tmp_path / "masked_lm" / "metrics.jsonl"):
        assert launcher.poll() is None
        time.sleep(0.1)
    ranks = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
    assert len(ranks) == 2
    launcher.kill()
    launcher.wait()
    ends = time.monotonic() + 60
    while (left := [pid for pid in ranks if runs(pid)]) and time.monotonic() < ends:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert newest_valid(state) is not None
