"""One writer at a time: a lock file with the writer's process id, let go by the kernel when that process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sslnlp.errors import UserError

NAME = "lock"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of the index at `folder`. Raises UserError, naming the process, when another one holds it.

    The file's existence means nothing, the kernel's lock on it does: a killed writer needs no cleaning up after.
    """
    descriptor = _acquire(folder / NAME)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)  # while it is still ours
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"Another process ({pid}) is writing to the index at {path.parent}: wait for it."
            ) from error
        # The former holder may have removed the file between our open and our lock; then ours locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
