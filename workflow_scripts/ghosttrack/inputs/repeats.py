"""A set for millions of digests that needs little memory."""

import numpy as np
from numpy.typing import NDArray

# New digests are kept in a Python set (about 100 bytes each). They move to the sorted array (8
# bytes each) when there are more than this number and this fraction of the array.
_LEAST_RECENT = 2**16
_RECENT_SHARE = 1 / 16


class Digests:
    """A set of digests, compared by their first 8 bytes.

    The probability that any two of n different texts collide is n^2 / 2^65: 3 in a million for 10
    million texts.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._recent) + len(self._sorted)

    def add(self, digest: bytes) -> bool:
        """Add a digest of at least 8 bytes; False if it was present."""
        number = int.from_bytes(digest[:8], "big")
        if number in self._recent or self._stored(number):
            return False
        self._recent.add(number)
        if len(self._recent) > max(_LEAST_RECENT, _RECENT_SHARE * len(self._sorted)):
            moved = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, moved]))
            self._recent.clear()
        return True

    def _stored(self, number: int) -> bool:
        wanted = np.uint64(number)
        index = int(self._sorted.searchsorted(wanted))
        return index < len(self._sorted) and bool(self._sorted[index] == wanted)
