"""Which digests came before: a set for millions of them in few bytes each."""

import numpy as np
from numpy.typing import NDArray

# Digests in a Python set, at about 100 bytes each, before they move to the sorted array, at 8 bytes each.
_LEAST_RECENT = 2**16
_RECENT_SHARE = 1 / 16


class Digests:
    """Digests that were added, told apart by their first 8 bytes.

    Two of n different texts share them with a probability of n^2 / 2^65: 3 in a million for 10 million texts.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._recent) + len(self._sorted)

    def add(self, digest: bytes) -> bool:
        """Add a digest of 8 bytes or more; False if it was there."""
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
        place = int(self._sorted.searchsorted(wanted))
        return place < len(self._sorted) and bool(self._sorted[place] == wanted)
