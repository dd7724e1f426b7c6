"""Where the autoencoders' training text comes from: embedded, from the hub, or a local file.

A local .txt file holds documents between blank lines (without any blank line, one a line); .jsonl
and .parquet hold one a row. On the hub, `openwebtext` and `wikitext-103` are short names; any other
data set is OWNER/NAME, OWNER/NAME:CONFIG or either with @COMMIT, read from its `train` split.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.facts import fact_text
from ghosttrack.files import sha256_file
from ghosttrack.inputs import corpus_sources, hub
from ghosttrack.inputs.corpus import Place, Stream, build
from ghosttrack.inputs.models import load_tokenizer, max_context
from ghosttrack.settings import CorpusSettings

# A level-one heading of WikiText: " = Title = ".
_TITLE = re.compile(r"^\s*= [^=].* =\s*$")
_INSTEAD = "without the hub use --config 'corpus={source: embedded}' or a local .txt, .jsonl or .parquet file"
# Rows that are read from parquet at a time.
_ROWS = 1024


class Source(NamedTuple):
    """Streams of documents, and the commit of a hub data set."""

    streams: list[Stream]
    revision: str | None


def fetch(
    settings: CorpusSettings, seed: int, *, tokenizer: Path, model_config: Path, train: Place, heldout: Place
) -> None:
    """Write packed training and held-out tokens of `settings.source`.

    Args:
        tokenizer: tokenizer.json of a fetched model. model_config: its config.json.
        train, heldout: the two stores with their manifests.
    Raises:
        UserError: contexts longer than the model takes, and all of `open_source` and `corpus.build`.
    """
    longest = max_context(model_config)
    if settings.context > longest:
        raise UserError(
            f"corpus.context: {settings.context} tokens are more than the model takes; set it to at most {longest}"
        )
    source = open_source(settings, seed)
    about = {
        # A file by its name alone: its folder is this machine's business.
        "source": Path(settings.source).name if corpus_sources.is_file(settings.source) else settings.source,
        "revision": source.revision,
        "tokenizer_sha256": sha256_file(tokenizer),
    }
    build(source.streams, load_tokenizer(tokenizer.parent), train, heldout, settings, about)


def open_source(settings: CorpusSettings, seed: int) -> Source:
    """The documents that `settings.source` names; nothing is read yet but a file's header.

    Raises:
        UserError: unknown source, no network, no such file or column, empty file.
    """
    name = settings.source
    if reason := corpus_sources.refusal(name):
        raise UserError(reason)
    if name == corpus_sources.EMBEDDED:
        share = settings.statement_share
        streams = [Stream("text", fact_text.corpus_documents(seed), 1 - share)]
        if share > 0:
            streams.append(Stream("statements", fact_text.statement_documents(seed), share))
        return Source(streams, None)
    if corpus_sources.is_file(name):
        path = Path(name).expanduser()
        return Source([Stream(path.name, _local(path, settings.text_column), 1.0)], None)
    match = corpus_sources.HUB_ID.fullmatch(name)
    dataset, config = (match["id"], match["config"]) if match else corpus_sources.HUB[name]
    found = hub.rows(
        dataset, config, "train", match["revision"] if match else None,
        streaming=True, key="corpus.source", instead=_INSTEAD,
    )  # fmt: skip
    texts = _column(found.rows, settings.text_column, name)
    return Source([Stream(name, _articles(texts) if dataset == "Salesforce/wikitext" else texts, 1.0)], found.revision)


def _column(rows: Iterable[object], column: str, name: str) -> Iterator[str]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"corpus.text_column: row {number} of {name} has no text in {column!r}; found {found}")
        yield row[column]


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """Whole WikiText articles: its rows are single paragraphs, and an article must stay on one side of the split."""
    article: list[str] = []
    for line in lines:
        if _TITLE.match(line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


def _local(path: Path, column: str) -> Iterator[str]:
    """Documents of a local file; reads it as it goes."""
    if path.suffix == ".parquet":
        return _parquet(path, column)
    texts = _decoded(path)
    return _column(_json_rows(texts, path), column, str(path)) if path.suffix == ".jsonl" else _paragraphs(path)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"corpus.source: {path} is not a parquet file ({error})") from None
    if column not in file.schema_arrow.names:
        raise UserError(
            f"corpus.text_column: {path} has no column {column!r}; found {', '.join(file.schema_arrow.names)}"
        )
    if file.metadata.num_rows == 0:
        raise UserError(f"corpus.source: {path} holds no rows")
    batches = file.iter_batches(batch_size=_ROWS, columns=[column])
    return _column((row for batch in batches for row in batch.to_pylist()), column, str(path))


def _json_rows(lines: Iterable[str], path: Path) -> Iterator[object]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"corpus.source: line {number} of {path} is not JSON: {error}") from None


def _paragraphs(path: Path) -> Iterator[str]:
    texts = (line.strip() for line in _decoded(path))
    # Blank lines separate documents if text follows one; the last line's newline does not count.
    between = "\n\n" in "\n".join(texts).strip()
    block: list[str] = []
    for line in _decoded(path):
        if line.strip():
            block.append(line)
        if block and not (between and line.strip()):
            yield "".join(block).strip()
            block = []
    if block:
        yield "".join(block).strip()


def _decoded(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise UserError(f"corpus.source: {path} is not UTF-8 text ({error}); convert it") from None
