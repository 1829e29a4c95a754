"""One process at a time: a lock file with the process's id, let go by the kernel when that process dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sslnlp.errors import UserError

_ours: set[int] = set()
"""Descriptors of the locks that this process holds."""


class Held(UserError):
    """Another process holds the lock: `pid`, 0 where it did not say."""

    def __init__(self, pid: int, doing: str) -> None:
        super().__init__(f"another process{f' ({pid})' if pid else ''} is {doing}: wait for it, or stop it")
        self.pid = pid


@contextlib.contextmanager
def exclusive(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file at `path`. Raises `Held`, saying what its holder is `doing`, when another process has it.

    The file's existence means nothing, the kernel's lock on it does: a killed process needs no cleaning up after. On
    Windows, which has no such lock, nothing is held.
    """
    with locked(path, doing) as descriptor:
        if descriptor is None:
            yield
            return
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is still ours


@contextlib.contextmanager
def locked(path: Path, doing: str) -> Iterator[int | None]:
    """Hold the file at `path` itself, as `exclusive` does, and leave what is in it and what becomes of it to the body;
    its descriptor, None on Windows."""
    descriptor = _acquire(path, doing)
    if descriptor is None:
        yield None
        return
    _ours.add(descriptor)
    try:
        yield descriptor
    finally:
        _ours.discard(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def in_turn(root: Path, name: str) -> Iterator[None]:
    """One builder of `name` in the cache folder `root` at a time: others wait here, and then find what was built."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to the cache folder {root} ({error.strerror}); set data.cache") from None
    with file:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows: there, prepare in one process first
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _acquire(path: Path, doing: str) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less what the umask takes
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(descriptor, 20).strip()
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):  # a file system without locks
                raise
            raise Held(int(pid) if pid.isdigit() else 0, doing) from error
        # The former holder may have removed the file between our open and our lock; then ours locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def _let_go() -> None:
    """In a forked worker: it outlives a killed parent for some seconds, and would hold the lock as long."""
    while _ours:
        os.close(_ours.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
