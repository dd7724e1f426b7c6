"""Documents of the SAE training text: embedded, from the Hugging Face hub, or from a local file.

In a local .txt file, blank lines separate documents; without blank lines every line is a document.
.jsonl and .parquet files have one document per row. Files are read document by document, parquet
files page by page (usually 1 MB, or 1,024 rows if these are longer). On the hub, `openwebtext` and
`wikitext-103` are short names. Any other data set is OWNER/NAME or OWNER/NAME:CONFIG, optionally
followed by @COMMIT; its `train` split is read.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.facts import fact_text
from ghosttrack.inputs import corpus_sources, hub
from ghosttrack.inputs.cells import (
    available_names,
    cell,
    columns_of,
    flaw,
    no_text_reason,
    require_distinct,
    shown,
)
from ghosttrack.inputs.corpus import SplitPaths, Stream, build
from ghosttrack.inputs.json_tables import ONE_A_LINE, parsed
from ghosttrack.inputs.lines import LONGEST, in_one_line, read_lines
from ghosttrack.inputs.model_sizes import read_limit, require_context
from ghosttrack.inputs.models import load_tokenizer
from ghosttrack.runtime.files import sha256_file
from ghosttrack.settings import CorpusSettings

# A level-one heading of WikiText: " = Title = ".
_TITLE = re.compile(r"^\s*= [^=].* =\s*$")
_INSTEAD = "without the hub, use --config 'corpus={source: embedded}' or a local .txt, .jsonl or .parquet file"
# Rows and bytes to read from parquet at a time. A page of the file, usually 1 MB, is always read
# whole.
_ROWS, _BUFFER = 32, 2**20


class CorpusSource(NamedTuple):
    """Streams of documents, and the commit of a hub data set (None: not from the hub)."""

    streams: list[Stream]
    revision: str | None


def fetch(
    settings: CorpusSettings,
    seed: int,
    *,
    tokenizer: Path,
    model_config: Path,
    train: SplitPaths,
    heldout: SplitPaths,
) -> None:
    """Write packed training and held-out tokens of `settings.source`.

    Args:
        settings: of the corpus.
        seed: order of the embedded documents.
        tokenizer: tokenizer.json of a fetched model. model_config: its config.json.
        train, heldout: paths of the two stores and their manifests.
    Raises:
        UserError: the contexts are longer than the model allows; also as `open_source` and
            `corpus.build`.
    """
    require_context(settings.context, read_limit(model_config, "source.id"), "the model")
    source = open_source(settings, seed)
    about = {
        # Omit the local directory of a file.
        "source": Path(settings.source).name
        if corpus_sources.is_file(settings.source)
        else settings.source,
        "revision": source.revision,
        "tokenizer_sha256": sha256_file(tokenizer),
    }
    build(source.streams, load_tokenizer(tokenizer.parent), train, heldout, settings, about)


def open_source(settings: CorpusSettings, seed: int) -> CorpusSource:
    """The documents of `settings.source`. Of a file, only its header is read at once.

    Raises:
        UserError: unknown source, no network, missing file or column, empty file.
    """
    name = settings.source
    if reason := corpus_sources.refusal(name):
        raise UserError(reason)
    if name == corpus_sources.EMBEDDED:
        share = settings.statement_share
        streams = [Stream("text", fact_text.corpus_documents(seed), 1 - share)]
        if share > 0:
            streams.append(Stream("statements", fact_text.statement_documents(seed), share))
        return CorpusSource(streams, None)
    if corpus_sources.is_file(name):
        path = Path(name).expanduser()
        return CorpusSource(
            [Stream(path.name, _require_any(_local(path, settings.text_column), path), 1.0)], None
        )
    match = corpus_sources.HUB_ID.fullmatch(name)
    dataset, config = (match["id"], match["config"]) if match else corpus_sources.HUB[name]
    table = hub.rows(
        dataset,
        config,
        "train",
        match["revision"] if match else None,
        streaming=True,
        key="corpus.source",
        instead=_INSTEAD,
    )
    texts = _column(table.rows, settings.text_column, name)
    return CorpusSource(
        [Stream(name, _articles(texts) if dataset == "Salesforce/wikitext" else texts, 1.0)],
        table.revision,
    )


def _column(rows: Iterable[object], column: str, name: str) -> Iterator[str]:
    """The texts in a column.

    The column `page.text` is the key `text` of the objects in column `page`.
    """
    for number, row in enumerate(rows, start=1):
        text = cell(row, column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(
                f"corpus.text_column: row {number} of {name} has no text in {column!r}; "
                f"{_content(row, column, text)}"
            )
        if reason := flaw(text, LONGEST):
            raise UserError(f"corpus.source: row {number} of {name}, column {column!r}: {reason}")
        yield text


def _content(row: object, column: str, value: Any) -> str:
    """The content of a row without text in a column, for an error message, with a remedy."""
    if not isinstance(row, dict):
        return f"found {shown(row)}, expected an object with the columns as keys on each line; {ONE_A_LINE}"
    if column in row or value is not None:
        return no_text_reason(value)
    return (
        f"found {columns_of(available_names(row, column))}; set corpus.text_column to the column "
        "that holds the text"
    )


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """Whole WikiText articles from rows of one paragraph, because the split divides documents."""
    article: list[str] = []
    for line in lines:
        if _TITLE.match(line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


def _require_any(texts: Iterator[str], path: Path) -> Iterator[str]:
    """The same documents; a UserError if there are none."""
    first = next(texts, None)
    if first is None:
        raise UserError(
            f"corpus.source: {path} holds no text, only blanks; add text or name another file"
        )
    yield first
    yield from texts


def _local(path: Path, column: str) -> Iterator[str]:
    """Documents of a local file, read one by one."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path, column)
    return (
        _column(_json_rows(path), column, str(path))
        if path.suffix.lower() == ".jsonl"
        else _paragraphs(path)
    )


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Reads page by page, never a whole column.
        file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"corpus.source: {path} is damaged or is not a parquet file ({in_one_line(error)}); "
            "write it or download it again"
        ) from None
    names = file.schema_arrow.names
    require_distinct(names, f"corpus.source: {path}")
    stored = column if column in names else column.partition(".")[0]
    if stored not in names:
        raise UserError(
            f"corpus.text_column: {path} has no column {column!r}; found {columns_of(names)}. "
            "Set corpus.text_column to the column that holds the text"
        )
    if file.metadata.num_rows == 0:
        raise UserError(f"corpus.source: {path} holds no rows")
    return _column(_cells(file, stored, path), column, str(path))


def _cells(file: Any, column: str, path: Path) -> Iterator[dict[str, object]]:
    """Rows of a parquet file with one of its columns, read in small batches."""
    import pyarrow

    number = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
            for value in batch.column(batch.schema.get_field_index(column)):
                number += 1
                yield {column: value.as_py()}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"corpus.source: {path} is damaged after row {number} ({in_one_line(error)}); write it "
            "or download it again"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"corpus.source: row {number} of {path}, column {column!r}: not UTF-8 text ({error}); "
            "write the file again"
        ) from None


def _json_rows(path: Path) -> Iterator[object]:
    begun = False
    for number, line in enumerate(read_lines(path, "corpus.source"), start=1):
        if not line.strip():
            continue
        try:
            yield parsed(line, f"corpus.source: line {number} of {path}")
        except UserError as error:
            raise error if begun else UserError(f"{error}; {ONE_A_LINE}") from None
        begun = True


def _paragraphs(path: Path) -> Iterator[str]:
    """Documents separated by blank lines.

    Without blank lines between texts, every line is a document.
    """
    between = _has_gaps(read_lines(path, "corpus.source"))
    block: list[str] = []
    first = length = 0  # number of the document's first line; its number of characters
    for number, line in enumerate(chain(read_lines(path, "corpus.source"), [""]), start=1):
        if line.strip():
            first = first if length else number
            length += len(line)
            if length <= LONGEST:
                block.append(line)
        if length and not (between and line.strip()):
            if length > LONGEST:
                raise UserError(
                    f"corpus.source: the document that begins at line {first} of {path} has "
                    f"{length:,} characters, more than {LONGEST:,}; put blank lines between "
                    "documents"
                )
            yield "".join(block).strip()
            block, length = [], 0


def _has_gaps(lines: Iterable[str]) -> bool:
    """Whether a blank line separates two others; reads only up to the first such line."""
    text = gap = False
    for line in lines:
        if line.strip():
            if gap:
                return True
            text = True
        else:
            gap = text
    return False
