"""Which documents are held out, and how large the two sides of a given corpus can be."""

from array import array
from collections.abc import Iterator

import numpy as np

from ghosttrack.settings import CorpusSettings

# Held-out documents are drawn at a higher rate than they are needed, so that they are complete before the training
# text is; and never at less than 1 in 50, so that a few long documents do not decide what the quality numbers say.
_HELDOUT_HASTE = 1.25
_HELDOUT_LEAST = 0.02
# Held-out tokens per training token that an error may propose where the ratio of the settings does not work.
_RATIOS = (0.1, 0.25, 1.0)
# Of the largest sizes, the shares that are tried: rounding may move a document to the other side.
_SHARES = (1.0, 0.95, 0.8, 0.5, 0.0)


def heldout_share(settings: CorpusSettings) -> float:
    """Share of all documents that is held out, from .02 to .5."""
    needed = settings.heldout_tokens / (settings.tokens + settings.heldout_tokens)
    return min(0.5, max(_HELDOUT_LEAST, _HELDOUT_HASTE * needed))


def is_held_out(digest: bytes, share: float) -> bool:
    """Whether a document is held out, from its digest (8 bytes or more) and the result of `heldout_share`."""
    return int.from_bytes(digest[:8], "big") < share * 2**64


class DocumentLengths:
    """Digest and length of every document of a corpus, 12 bytes each: enough to split it again with other settings."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._lengths = array("I")

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, digest: bytes, tokens: int) -> None:
        """Remember a document: its digest (8 bytes or more) and its length in tokens without the separator."""
        self._digests.append(int.from_bytes(digest[:8], "big"))
        self._lengths.append(tokens + 1)

    @property
    def total(self) -> int:
        """Tokens of all documents, one separator for each."""
        return sum(self._lengths)

    def sides(self, settings: CorpusSettings) -> tuple[int, int]:
        """Tokens of the training and of the held-out documents, one separator for each."""
        held = np.asarray(self._digests, dtype=np.uint64) < heldout_share(settings) * 2**64
        heldout = int(np.asarray(self._lengths, dtype=np.int64)[held].sum())
        return self.total - heldout, heldout

    def largest_sizes(self, settings: CorpusSettings) -> CorpusSettings | None:
        """The settings with `tokens` and `heldout_tokens` lowered until this corpus fills both sides; None: it cannot.

        The ratio of the two is kept where possible, for it decides which documents are held out.
        """
        return next((each for each in self._proposals(settings) if self._fills(each)), None)

    def _proposals(self, settings: CorpusSettings) -> Iterator[CorpusSettings]:
        context = settings.context
        for ratio in (settings.heldout_tokens / settings.tokens, *_RATIOS):
            example = settings.model_copy(
                update={"tokens": 10**9, "heldout_tokens": max(1, int(10**9 * ratio))}
            )
            train, heldout = (size // context * context for size in self.sides(example))
            largest = min(train, heldout / ratio, settings.tokens, settings.heldout_tokens / ratio)
            for share in _SHARES:
                tokens = max(1, int(largest * share))
                sizes = {"tokens": tokens, "heldout_tokens": max(1, int(tokens * ratio))}
                # Whole contexts first: fewer tokens fill as many.
                yield settings.model_copy(
                    update={
                        key: min(-(-size // context) * context, getattr(settings, key))
                        for key, size in sizes.items()
                    }
                )
                yield settings.model_copy(update=sizes)

    def _fills(self, settings: CorpusSettings) -> bool:
        wanted = (settings.tokens, settings.heldout_tokens)
        return all(
            found >= -(-size // settings.context) * settings.context
            for found, size in zip(self.sides(settings), wanted, strict=True)
        )
