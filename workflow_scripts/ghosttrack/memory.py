"""Keep freed memory in the process. Changes no result."""

import contextlib
import ctypes

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
