"""Memory that an update frees stays with the process, where malloc is glibc's.

As it comes, glibc asks the kernel for each block above some 32 MiB anew and hands back whatever lies free at the end
of the heap, which after an update is nearly all of it. The next update asks for the same memory again, and the kernel
clears every page of it before it is written once more. Only when and where memory is got changes, no number.
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Have malloc serve large blocks from the heap and keep what is freed, from here on; whether that was done.

    Not done where malloc is not glibc's, nor where the environment says what it should do (`MALLOC_MMAP_...`,
    `MALLOC_TRIM_...`, `GLIBC_TUNABLES`). The process holds what it once needed until it ends.
    """
    by_hand = any(name.startswith(("MALLOC_MMAP", "MALLOC_TRIM")) for name in os.environ)
    if by_hand or "malloc." in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
