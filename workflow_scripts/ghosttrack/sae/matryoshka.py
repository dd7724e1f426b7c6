"""Matryoshka BatchTopK (Bussmann et al., arXiv 2503.17547): nested parts of the dictionary that each reconstruct alone."""

from collections.abc import Sequence

from ghosttrack.sae.batchtopk import BatchTopK


class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK over the whole dictionary; the loss is a mean over its first `ends` features.

    The few features of the first part are pressed to be general: they cannot rely on later, finer ones.
    """

    def __init__(self, k: int, ends: Sequence[int]) -> None:
        super().__init__(ends[-1], k)
        self.ends = tuple(ends)


def nested_ends(shares: Sequence[float], d_sae: int) -> tuple[int, ...]:
    """Where the nested parts end, from ascending shares of the dictionary; parts that round to the same end are one."""
    return tuple(dict.fromkeys(max(1, round(share * d_sae)) for share in shares))
