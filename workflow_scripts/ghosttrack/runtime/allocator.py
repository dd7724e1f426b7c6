"""Memory allocation of a process: keep freed blocks, and use huge pages. Changes no result."""

import contextlib
import ctypes
import os

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Each arena keeps its freed blocks: with one per thread, 24 writers kept 0.7 GB.
_ARENAS = 2


def keep_freed_memory() -> None:
    """Stop glibc from returning large freed blocks to the system; no effect with another C library.

    Each training step frees and allocates the same tens of megabytes. If they are returned, the
    kernel clears new pages in every step, a tenth of its time on a CPU (measured at batch 256 and
    4,096).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _ARENAS)
        for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(name, 2**31 - 1)


def use_huge_pages() -> None:
    """Let torch allocate large tensors in pages of 2 MB, where the system has them.

    Call this before the first large tensor is allocated. A step reads all weights and moments of
    Adam, and some rows in random order. With pages of 4 kB this takes thousands of address
    translations, a tenth of a step on a CPU (measured in a virtual machine at batch 256).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
