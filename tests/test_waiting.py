"""Processes launched together wait for one that works alone, however long it does, and end when it ends."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate.state import PartialState

from sslnlp import distributed
from sslnlp.cli import _explain, run_command
from tests import ranks


def train_through() -> int:
    """Meet in a group that does not wait long, as for an update; this process's rank."""
    dist.init_process_group("gloo")
    dist.distributed_c10d._set_pg_timeout(timedelta(milliseconds=100))
    return dist.get_rank()


def test_waiting_for_one_process_outlasts_the_time_out_of_what_they_train_through(tmp_path: Path) -> None:
    def work() -> None:
        rank = train_through()
        with distributed.main_first():
            time.sleep(1)  # the main process, then the other
            (tmp_path / f"was-{rank}").touch()
            order = [(tmp_path / f"was-{other}").exists() for other in range(2)]
        if rank == 0:
            time.sleep(1)  # its measures
        distributed.wait()
        with distributed.alone():
            if rank == 0:
                distributed.wait()  # for nobody
        print(order, distributed.by_main(lambda: [time.sleep(1), rank, distributed.world_size()]))

    assert ranks.run(work, tmp_path) == ["[True, False] [None, 0, 1]\n", "[True, True] [None, 0, 1]\n"]


@pytest.mark.parametrize("ends", [0, 1])
def test_who_waits_for_a_process_that_has_ended_ends_too(ends: int, tmp_path: Path) -> None:
    def work() -> None:
        rank = train_through()
        try:
            with distributed.main_first():
                if rank == ends:
                    os._exit(0) if rank else os.kill(os.getpid(), signal.SIGKILL)
            print("went on")
        except RuntimeError as error:
            print(_explain(error, "train")[0].split(",")[0], flush=True)
            os._exit(0)

    said = ranks.run(work, tmp_path, ends={0: -signal.SIGKILL} if ends == 0 else {})
    assert said[1 - ends] == "error: another process of this run has ended\n"


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
