"""Processes launched together as forks of the tests' own: they need not import again what takes ten seconds of CPU.

They meet as those of `torchrun` do, at a store that is the launcher's. That a real launcher's processes meet and end
well is for one test to say, in `test_distributed`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from torch.distributed import TCPStore

from sslnlp import distributed

PATIENCE = 300.0
"""Seconds for all of them to end."""


def run(
    work: Callable[[], None], folder: Path, *, ends: Mapping[int, int] | None = None, **environment: str
) -> list[str]:
    """`work()` in two of them, which find their rank as below a launcher; what each wrote, from the file `rank-N.txt`.

    Fails when one ends otherwise than with 0, or what `ends` says of its rank, and ends the other.
    """
    processes, ends = 2, ends or {}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    written = [folder / f"rank-{rank}.txt" for rank in range(processes)]
    running = {
        _fork(work, path, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}): rank
        for rank, path in enumerate(written)
    }
    last = time.monotonic() + PATIENCE
    try:
        while running:
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    rank, code = running.pop(pid), os.waitstatus_to_exitcode(status)
                    assert code == ends.get(rank, 0), f"rank {rank}, {code}:\n{written[rank].read_text()[-3000:]}"
            assert time.monotonic() < last, "".join(path.read_text()[-1500:] for path in written)
            time.sleep(0.02)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return [path.read_text() for path in written]


def _fork(work: Callable[[], None], path: Path, environment: dict[str, str]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        with path.open("w") as file:
            sys.stdout = sys.stderr = file
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.environ |= environment
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            try:
                work()
                distributed.leave()
                code = 0
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)
