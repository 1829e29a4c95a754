"""Processes launched together wait for one that works alone, however long it does, and end when it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import PartialState

from sslnlp.cli import run_command

TWO = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
from sslnlp import distributed
from sslnlp.cli import _explain

rank = 0 if os.fork() else 1
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
dist.distributed_c10d._set_pg_timeout(timedelta(milliseconds=100))  # of an update, say
BODY
"""


def of_two(body: str, tmp_path: Path) -> list[str]:
    """What two processes print, sorted."""
    command = [sys.executable, "-c", TWO.replace("BODY", body), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_waiting_for_one_process_outlasts_the_time_out_of_what_they_train_through(tmp_path: Path) -> None:
    body = """
order = []
with distributed.main_first():
    time.sleep(1)  # the main process, then the other
    open(f"{sys.argv[1]}-{rank}", "w").close()
    order = [os.path.exists(f"{sys.argv[1]}-{other}") for other in range(2)]
if rank == 0:
    time.sleep(1)  # its measures
distributed.wait()
with distributed.alone():
    if rank == 0:
        distributed.wait()  # for nobody
found = distributed.by_main(lambda: [time.sleep(1), rank, distributed.world_size()])
print(f"{rank} {order} {found}\\n", end="", flush=True)  # at once: they share a pipe
distributed.leave()
if rank == 0:
    os.wait()
"""
    assert of_two(body, tmp_path) == ["0 [True, False] [None, 0, 1]", "1 [True, True] [None, 0, 1]"]


@pytest.mark.parametrize("ends", [0, 1])
def test_who_waits_for_a_process_that_has_ended_ends_too(ends: int, tmp_path: Path) -> None:
    body = f"""
try:
    with distributed.main_first():
        if rank == {ends}:
            print("ended\\n", end="", flush=True)
            os._exit(0) if rank else os.kill(os.getpid(), 9)
    print("went on\\n", end="", flush=True)
except RuntimeError as error:
    print(_explain(error, "train")[0].split(",")[0] + "\\n", end="", flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", TWO.replace("BODY", body), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert sorted(done.stdout.splitlines()) == ["ended", "error: another process of this run has ended"], done.stderr


def test_nobody_waits_through_what_is_trained_through(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the tokenizer to the export: a corpus may take the main process an hour, and so may its last measures."""
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda _: pytest.fail("has the time-out of an update"))
    keys = [
        *("model.size=nano", "model.embedding_init=cooccurrence", "tokenizer.vocab_size=520", "data.seq_length=32"),
        *("data.valid_fraction=0.1", "train.budget=1s", "train.batch_size=2", f"data.train={text_file}"),
    ]
    assert run_command(["train", "pretrain_bert", *keys, f"out={tmp_path / 'run'}"]) == 0
