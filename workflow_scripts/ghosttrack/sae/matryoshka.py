"""Matryoshka BatchTopK (Bussmann et al., arXiv 2503.17547): prefixes of the dictionary must
reconstruct alone.
"""

from collections.abc import Sequence

from ghosttrack.sae.batchtopk import BatchTopK


class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK over the whole dictionary; the loss is the mean over prefixes of the dictionary.

    The few features of the first prefix become general: they cannot rely on later, finer ones.
    """

    def __init__(self, k: int, prefix_sizes: Sequence[int]) -> None:
        super().__init__(prefix_sizes[-1], k)
        self.prefix_sizes = tuple(prefix_sizes)


def prefix_sizes(fractions: Sequence[float], d_sae: int) -> tuple[int, ...]:
    """Prefix sizes from ascending fractions of the dictionary, without duplicates."""
    return tuple(dict.fromkeys(max(1, round(fraction * d_sae)) for fraction in fractions))
