"""Tokenise documents and pack them into contexts on disk, split into training and held-out text.

A store is a zarr v3 group with the arrays `tokens` and `document`, both int32 (contexts, context).
Every context starts with the separator token; a document that does not fit continues in the next
one.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from ghosttrack.errors import UserError
from ghosttrack.inputs.corpus_split import DocumentLengths, heldout_share, is_held_out
from ghosttrack.inputs.models import separator
from ghosttrack.inputs.repeats import Digests
from ghosttrack.runtime.files import atomic_directory, read_object, sha256_file, write_json
from ghosttrack.runtime.progress import Progress
from ghosttrack.settings import CorpusSettings

log = logging.getLogger("ghosttrack")

Ints = NDArray[np.int32]

SCHEMA = "ghosttrack-corpus/1"
# Tokens per chunk of the arrays: 4 MB, so that 100 M tokens are 100 files.
_CHUNK_TOKENS = 2**20
# Maximum number of documents and characters per call of the tokenizer: enough to keep its threads
# busy, and few enough to limit memory (155 bytes per character) and work after the last document.
_BATCH, _BATCH_CHARACTERS = 256, 2**19


class Stream(NamedTuple):
    """A source of documents and its fraction of all tokens."""

    name: str
    documents: Iterator[str]
    share: float


class TokenOrigin(NamedTuple):
    """The token from which one row of an activation store was computed."""

    document: int  # index of the document, in the order of reading
    context: int
    position: int  # within the context
    token: int


class PackedTokens(NamedTuple):
    """Packed tokens, the index of each token's document, and the manifest."""

    tokens: Ints  # (contexts, context)
    documents: Ints  # (contexts, context)
    manifest: dict[str, Any]

    def origin(self, row: int) -> TokenOrigin:
        """The token of row `row` of a layer's activations; rows are ordered context by context."""
        context, position = divmod(row, self.tokens.shape[1])
        return TokenOrigin(
            int(self.documents[context, position]),
            context,
            position,
            int(self.tokens[context, position]),
        )


class SplitPaths(NamedTuple):
    """Output paths of the training or of the held-out part."""

    store: Path
    manifest: Path


# Arguments: index of the first context, then tokens and documents, (contexts, context) each.
Write = Callable[[int, Ints, Ints], None]


class Packer:
    """Packs documents into contexts without gaps: [separator, text..., separator, text...].

    Args:
        contexts: number of contexts to fill.
        context: tokens per context.
        separator: token before every document and at the start of every context.
        write: receives filled contexts, `block` at a time. It must copy the arrays.
        block: number of contexts per call of `write`.
    """

    def __init__(
        self, contexts: int, context: int, separator: int, write: Write, block: int
    ) -> None:
        self.size = contexts * context
        self.used = 0  # documents
        self._tokens = np.full((min(block, contexts), context), -1, dtype=np.int32)
        self._documents = np.full_like(self._tokens, -1)
        self._write = write
        self.contexts, self._context, self._separator = contexts, context, separator
        self._row = self._column = self._written = 0

    @property
    def full(self) -> bool:
        """Whether all contexts are filled."""
        return self._row == self.contexts

    @property
    def placed(self) -> int:
        """Number of packed tokens, including separators."""
        return self._row * self._context + self._column

    def add(self, document: int, tokens: Sequence[int] | Ints) -> None:
        """Pack one document; tokens beyond the last context are dropped."""
        context = self._context
        start = 0
        if not self.full:
            self.used += 1
            self._put(document, [self._separator])
        while start < len(tokens) and not self.full:
            if self._column == 0:
                self._put(document, [self._separator])
            piece = tokens[start : start + context - self._column]
            self._put(document, piece)
            start += len(piece)

    def _put(self, document: int, piece: Sequence[int] | Ints) -> None:
        end, row = self._column + len(piece), self._row - self._written
        self._tokens[row, self._column : end] = piece
        self._documents[row, self._column : end] = document
        self._row, self._column = (self._row + 1, 0) if end == self._context else (self._row, end)
        filled = self._row - self._written
        if filled and (filled == len(self._tokens) or self.full):
            self._write(self._written, self._tokens[:filled], self._documents[:filled])
            self._written = self._row


def build(
    streams: Sequence[Stream],
    tokenizer: Any,
    train: SplitPaths,
    heldout: SplitPaths,
    settings: CorpusSettings,
    about: dict[str, Any],
) -> None:
    """Tokenise, split, pack and write both parts; stop reading when both are full.

    The hash of a document's text decides whether it is held out, so no text is in both parts.
    Repeated documents are dropped. A document is never divided between the parts: its pieces share
    names, topics and phrases, so SAEs would look better on the held-out piece than on new text. A
    corpus of one document is therefore refused.

    Args:
        streams: sources of documents with their fractions of the tokens.
        tokenizer: fast tokenizer of the model.
        train, heldout: output paths; the manifests are written last.
        settings: number of tokens and context length.
        about: entries of the manifests about the source (`source`, `revision`, `tokenizer_sha256`).
    Raises:
        UserError: the text ends before both parts are full.
    """
    with ExitStack() as stores:
        sides = []
        for paths, count in ((train, settings.tokens), (heldout, settings.heldout_tokens)):
            contexts = -(-count // settings.context)
            block = min(contexts, max(1, _CHUNK_TOKENS // settings.context))
            write = _writer(
                stores.enter_context(atomic_directory(paths.store)),
                contexts,
                settings.context,
                block,
            )
            sides.append(Packer(contexts, settings.context, separator(tokenizer), write, block))
        shares = _pack(streams, tokenizer, sides, settings, str(about["source"]))
    for side, paths in zip(sides, (train, heldout), strict=True):
        manifest = {
            **about,
            "tokens_by_source": shares,
            "schema": SCHEMA,
            "contexts": side.size // settings.context,
            "context": settings.context,
            "tokens": side.size,
            "documents": side.used,
            "files_sha256": _digests(paths.store),
        }
        write_json(paths.manifest, manifest)


def _pack(
    streams: Sequence[Stream],
    tokenizer: Any,
    sides: Sequence[Packer],
    settings: CorpusSettings,
    source: str,
) -> dict[str, int]:
    """Fill both parts, training and held-out.

    Returns:
        Number of packed tokens per stream.
    Raises:
        UserError: `source` ends before both parts are full.
    """
    seen = Digests()
    share, read = heldout_share(settings), DocumentLengths()
    shares = {stream.name: 0 for stream in streams}
    progress = Progress("corpus", sum(side.size for side in sides), "tokens")
    repeated = 0
    for name, text, tokens in _mixed(streams, tokenizer):
        digest = _digest(text)
        if not seen.add(digest):
            repeated += 1
            continue
        read.add(digest, len(tokens))
        side = sides[is_held_out(digest, share)]
        before = side.placed
        side.add(len(seen) - 1, tokens)
        shares[name] += side.placed - before
        progress.advance(side.placed - before)
        if all(side.full for side in sides):
            break
    if not all(side.full for side in sides):
        raise UserError(_too_little(sides, read, source, settings))
    log.info("%d documents, %d repeats dropped; tokens by source: %s", len(seen), repeated, shares)
    return shares


def _too_little(
    sides: Sequence[Packer], read: DocumentLengths, source: str, settings: CorpusSettings
) -> str:
    """The error message for a corpus that ended before both parts were full, with a remedy."""
    if not len(read):
        return f"corpus.source: {source} holds no text; fill it, or name another corpus.source"
    counts = [
        f"{side.placed:,} of {side.size:,} tokens for {name}"
        for side, name in zip(sides, ("corpus.tokens", "corpus.heldout_tokens"), strict=True)
    ]
    documents = "1 document" if len(read) == 1 else f"{len(read):,} different documents"
    problem = f"corpus.source: {source}, read to the end, gives {documents}: {' and '.join(counts)}"
    if fitting := read.largest_sizes(settings):
        return (
            f"{problem}. Set corpus.tokens to {fitting.tokens} and corpus.heldout_tokens to "
            f"{fitting.heldout_tokens}, or name a larger corpus.source"
        )
    if len(read) > 1 and read.total < 2 * settings.context:
        return (
            f"{problem}. {read.total:,} tokens do not fill two contexts of {settings.context}, one "
            "for training and one held out: name a larger corpus.source, or lower corpus.context "
            "(8 or more)"
        )
    return (
        f"{problem}. A document is never divided between training and held-out text, and its hash "
        "decides where it goes: divide the text into more documents (.txt: separated by blank "
        "lines; .jsonl and .parquet: one per row), or name a corpus.source with more documents"
    )


def _digest(text: str) -> bytes:
    """16 bytes that identify a text, whatever its white space."""
    digest = hashlib.sha256()
    begun = space = False
    for piece in _pieces(text):
        words = " ".join(piece.split())
        if words:
            if begun and (space or piece[0].isspace()):
                digest.update(b" ")
            digest.update(words.encode())
        begun, space = begun or bool(words), piece[-1].isspace()
    return digest.digest()[:16]


def _mixed(
    streams: Sequence[Stream], tokenizer: Any
) -> Iterator[tuple[str, str, Sequence[int] | Ints]]:
    """(stream, text, tokens), always from the stream furthest below its fraction of the tokens.

    When a stream ends, the others continue and the fractions are no longer kept.
    """
    sources = {stream.name: _tokenised(stream.documents, tokenizer) for stream in streams}
    shares = {stream.name: stream.share for stream in streams}
    taken = dict.fromkeys(shares, 0)
    while sources:
        behind = min(sources, key=lambda name: taken[name] / shares[name])
        try:
            text, tokens = next(sources[behind])
        except StopIteration:
            del sources[behind]
            if sources:
                log.warning(
                    "the source %r ends after %d tokens; continuing without it",
                    behind,
                    taken[behind],
                )
            continue
        taken[behind] += len(tokens) + 1
        yield behind, text, tokens


def _tokenised(
    documents: Iterable[str], tokenizer: Any
) -> Iterator[tuple[str, Sequence[int] | Ints]]:
    for batch in _batches(text for text in documents if text.strip()):
        if len(batch[0]) > _BATCH_CHARACTERS:
            ids = [
                np.array(_encode([piece], tokenizer)[0], dtype=np.int32)
                for piece in _pieces(batch[0])
            ]
            yield batch[0], np.concatenate(ids)
        else:
            yield from zip(batch, _encode(batch, tokenizer), strict=True)


def _encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    # split_special_tokens: the name of a special token in a document is ordinary text.
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
        split_special_tokens=True,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Batches of at most _BATCH texts and _BATCH_CHARACTERS characters, or of one longer text."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == _BATCH or size + len(text) > _BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """Pieces of at most _BATCH_CHARACTERS characters, divided before a space if possible.

    Tokenizers start a token at a space, so the tokens are those of the whole text. Without spaces a
    division may add a token.
    """
    start = 0
    while start < len(text):
        end = start + _BATCH_CHARACTERS
        if end < len(text):
            space = text.rfind(" ", start + 1, end + 1)
            end = space if space > 0 else end
        yield text[start:end]
        start = end


def _writer(folder: Path, contexts: int, context: int, block: int) -> Write:
    """A function that writes packed contexts to a new store, in chunks of `block` contexts."""
    group = zarr.create_group(folder, zarr_format=3, attributes={"schema": SCHEMA})
    arrays = [
        group.create_array(
            name,
            shape=(contexts, context),
            chunks=(block, context),
            dtype="int32",
            compressors=zarr.codecs.ZstdCodec(level=3, checksum=True),
            fill_value=-1,  # not a token: a lost chunk cannot be mistaken for text
            dimension_names=("context", "position"),
            config={"write_empty_chunks": True},
        )
        for name in ("tokens", "document")
    ]

    def write(start: int, tokens: Ints, documents: Ints) -> None:
        for array, values in zip(arrays, (tokens, documents), strict=True):
            array[start : start + len(values)] = values

    return write


def _digests(store: Path) -> dict[str, str]:
    # Skip hidden files: Snakemake puts a time stamp into directories that are outputs of a rule.
    paths = [
        path
        for path in sorted(store.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    return {path.relative_to(store).as_posix(): sha256_file(path) for path in paths}


def read_tokens(store: Path, manifest: Path) -> PackedTokens:
    """Read all packed tokens, after comparing every file with the manifest.

    Raises:
        UserError: a file is missing or damaged, or an array has another shape than in the manifest.
    """
    about = read_object(manifest)
    remedy = f"delete {store} and {manifest} and run again to rebuild them"
    if about.get("schema") != SCHEMA:
        raise UserError(
            f"{manifest} has schema {about.get('schema')!r}, expected {SCHEMA!r}: {remedy}"
        )
    digests = _digests(store)
    expected: dict[str, str] = about["files_sha256"]
    for name in sorted({*expected, *digests}):
        if name not in digests:
            raise UserError(f"{store / name} is missing: {remedy}")
        if name not in expected:
            raise UserError(f"{store / name} is not in {manifest}: {remedy}")
        if digests[name] != expected[name]:
            raise UserError(
                f"{store / name} is damaged (SHA-256 differs from {manifest}): {remedy}"
            )
    group = zarr.open_group(store, mode="r")
    arrays = [np.asarray(group[name]) for name in ("tokens", "document")]
    for values in arrays:
        if values.shape != (about["contexts"], about["context"]):
            raise UserError(
                f"{store} has shape {values.shape}, expected "
                f"{(about['contexts'], about['context'])} ({manifest}): {remedy}"
            )
    return PackedTokens(arrays[0], arrays[1], about)
