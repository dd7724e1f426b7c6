"""Which documents are held out, and the largest sizes that a given corpus allows."""

from array import array
from collections.abc import Iterator

import numpy as np

from ghosttrack.settings import CorpusSettings

# Documents are held out at a higher rate than needed, so that the held-out text is complete before
# the training text. The rate is at least 1 in 50, so that a few long documents do not dominate the
# quality measures.
_HELDOUT_OVERSAMPLING = 1.25
_HELDOUT_MINIMUM = 0.02
# Ratios of held-out to training tokens that an error message proposes if that of the settings
# fails.
_RATIOS = (0.1, 0.25, 1.0)
# Fractions of the largest sizes to try, because rounding may move a document to the other part.
_SHARES = (1.0, 0.95, 0.8, 0.5, 0.0)


def heldout_share(settings: CorpusSettings) -> float:
    """Fraction of the documents that is held out, between .02 and .5."""
    needed = settings.heldout_tokens / (settings.tokens + settings.heldout_tokens)
    return min(0.5, max(_HELDOUT_MINIMUM, _HELDOUT_OVERSAMPLING * needed))


def is_held_out(digest: bytes, share: float) -> bool:
    """Whether a document is held out.

    Args:
        digest: of the document, at least 8 bytes. share: the result of `heldout_share`.
    """
    return int.from_bytes(digest[:8], "big") < share * 2**64


class DocumentLengths:
    """Digests and lengths of all documents, to split a corpus again with other settings."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._lengths = array("I")

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, digest: bytes, tokens: int) -> None:
        """Add a document: digest (at least 8 bytes) and number of tokens without separator."""
        self._digests.append(int.from_bytes(digest[:8], "big"))
        self._lengths.append(tokens + 1)

    @property
    def total(self) -> int:
        """Number of tokens of all documents, with one separator per document."""
        return sum(self._lengths)

    def sides(self, settings: CorpusSettings) -> tuple[int, int]:
        """Numbers of training and of held-out tokens, with one separator per document."""
        held = np.asarray(self._digests, dtype=np.uint64) < heldout_share(settings) * 2**64
        heldout = int(np.asarray(self._lengths, dtype=np.int64)[held].sum())
        return self.total - heldout, heldout

    def largest_sizes(self, settings: CorpusSettings) -> CorpusSettings | None:
        """The settings with both token numbers lowered until this corpus fills both parts.

        Their ratio decides which documents are held out, so it is kept if possible.

        Returns:
            None if the corpus cannot fill both parts.
        """
        return next(filter(self._fills, self._proposals(settings)), None)

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
                # Whole contexts first.
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
            available >= -(-size // settings.context) * settings.context
            for available, size in zip(self.sides(settings), wanted, strict=True)
        )
