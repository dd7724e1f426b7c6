"""Corpus sizes that an error proposes, compared with a slow reference implementation."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ghosttrack.inputs.corpus_split import DocumentLengths, heldout_share
from ghosttrack.settings import CorpusSettings

SIZES = st.integers(1, 20_000)
LENGTHS = st.lists(st.integers(1, 300), max_size=60)


def digest_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def lengths_of(documents: list[int]) -> DocumentLengths:
    found = DocumentLengths()
    for number, tokens in enumerate(documents):
        found.add(digest_of(number), tokens)
    return found


def filled_slowly(documents: list[int], settings: CorpusSettings) -> bool:
    """Whether documents of these lengths, with separators, fill the contexts of both parts."""
    sides = [0, 0]
    for number, tokens in enumerate(documents):
        held_out = int.from_bytes(digest_of(number)[:8], "big") / 2**64 < heldout_share(settings)
        sides[held_out] += tokens + 1
    wanted = [settings.tokens, settings.heldout_tokens]
    return all(
        side // settings.context >= -(-size // settings.context)
        for side, size in zip(sides, wanted, strict=True)
    )


@given(LENGTHS, SIZES, SIZES, st.sampled_from([8, 50, 512]))
def test_the_proposed_sizes_are_filled_and_no_larger_than_those_asked_for(
    documents: list[int], tokens: int, heldout: int, context: int
) -> None:
    settings = CorpusSettings(tokens=tokens, heldout_tokens=heldout, context=context)
    found = lengths_of(documents).largest_sizes(settings)
    if found is None:
        assert not filled_slowly(documents, settings)
        return
    assert filled_slowly(documents, found)
    assert found.tokens <= max(tokens, 1)
    assert found.heldout_tokens <= max(heldout, 1)


@given(st.lists(st.integers(50, 300), min_size=100, max_size=200), SIZES, SIZES)
def test_a_hundred_documents_of_a_context_each_always_have_sizes_that_they_fill(
    documents: list[int], tokens: int, heldout: int
) -> None:
    settings = CorpusSettings(tokens=tokens, heldout_tokens=heldout, context=50)
    assert lengths_of(documents).largest_sizes(settings) is not None


def test_the_ratio_of_the_settings_is_kept_where_the_corpus_allows_it() -> None:
    settings = CorpusSettings(tokens=10_000_000, heldout_tokens=1_000_000, context=50)
    found = lengths_of([100] * 1000).largest_sizes(settings)
    assert found is not None
    assert abs(found.heldout_tokens / found.tokens - 0.1) < 0.001
    assert found.tokens > 60_000  # of the 101,000 that there are


def test_one_document_never_fills_both_parts() -> None:
    assert (
        lengths_of([10**6]).largest_sizes(CorpusSettings(tokens=8, heldout_tokens=8, context=8))
        is None
    )
