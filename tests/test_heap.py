"""Freed memory stays with the process: counted in pages that the kernel has to hand out again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sslnlp import train
from sslnlp.heap import keep_freed_memory
from tests.contract import make_trainer

GLIBC = platform.libc_ver()[0] == "glibc"
SAID = "from sslnlp.heap import keep_freed_memory; print(keep_freed_memory())"
PAGES = """
import ctypes, os, resource
from sslnlp.heap import keep_freed_memory
c = ctypes.CDLL(None)
c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def block(size):  # as torch asks for it
    c.posix_memalign(ctypes.byref(place := ctypes.c_void_p()), ctypes.c_size_t(64), ctypes.c_size_t(size))
    c.memset(place, 1, size)
    return place
if child := os.fork():  # as it comes, then kept
    os.waitpid(child, 0)
    print(keep_freed_memory())
for turn in range(10):  # the heap has grown to what it needs after five or six
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for place in [block(40 << 20) for _ in range(3)]:
        c.free(place)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


def told(program: str, **environment: str) -> list[str]:
    """What a fresh process says."""
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="malloc is not glibc's")
def test_the_same_blocks_are_not_asked_for_again() -> None:
    as_it_comes, said, kept = told(PAGES)
    assert said == "True"
    # Pages asked for in the last turn; a kernel that gives large ones unasked has few to count.
    assert int(kept) * 4 < int(as_it_comes)


@pytest.mark.skipif(not GLIBC, reason="malloc is not glibc's")
@pytest.mark.parametrize(
    "by_hand", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}]
)
def test_who_says_what_malloc_should_do_is_left_alone(by_hand: dict[str, str]) -> None:
    assert told(SAID, **by_hand) == ["False"]


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


def test_training_on_a_cpu_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(train, "keep_freed_memory", lambda: asked.append("kept"))
    make_trainer("causal_lm", tmp_path)
    assert asked == ["kept"]
