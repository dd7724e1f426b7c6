"""Files as people have them: each is read exactly, or refused in one line that says what to do. No file gives a traceback."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ghosttrack.errors import UserError
from ghosttrack.inputs import datasets, documents
from ghosttrack.inputs.rows import read_rows
from ghosttrack.score import read_texts
from ghosttrack.settings import CorpusSettings, DatasetSettings

TABLE = [("Paris is in France", "0"), ("Rome, Italy; a | city", "1")]


def texts_of(path: Path) -> list[tuple[str, int]]:
    """Text and label of each row, read as a data set."""
    settings = DatasetSettings.model_validate({"source": "file", "path": str(path)})
    frame = datasets.load_examples(settings, seed=0)
    return list(zip(frame["text"], frame["label"], strict=True))


def documents_of(path: Path, **values: Any) -> list[str]:
    """The documents of a corpus file."""
    source = documents.open_source(CorpusSettings.model_validate({"source": str(path), **values}), seed=0)
    return [text for stream in source.streams for text in stream.documents]


def refused(path: Path, message: str, read: Any) -> None:
    """Check that a file is refused by a reader, in one line."""
    with pytest.raises(UserError, match=message) as caught:
        list(read(path))
    assert "\n" not in str(caught.value)


def write_parquet(path: Path, table: pa.Table) -> Path:
    parquet.write_table(table, path)
    return path


READERS = {"data set": read_rows, "score": read_texts, "corpus": documents_of}


@pytest.mark.parametrize("reader", READERS)
def test_a_repeated_column_of_parquet_is_named(tmp_path: Path, reader: str) -> None:
    column = pa.array(["a", "b"])
    path = write_parquet(tmp_path / "a.parquet", pa.table([column, column], names=["text", "text"]))
    refused(path, r"a\.parquet has two columns of one name: 'text'; rename or remove one", READERS[reader])


@pytest.mark.parametrize("reader", READERS)
def test_damaged_parquet_is_refused_in_one_line_with_a_remedy(tmp_path: Path, reader: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a b", "c d"]}))
    content = path.read_bytes()
    path.write_bytes(content[:10] + b"\xff" * 30 + content[40:])
    refused(path, r"a\.parquet is damaged.*; write it or download it again", READERS[reader])
    path.write_bytes(content[: len(content) // 2])
    refused(path, r"a\.parquet is damaged or is not a parquet file .*; write it or download it again", READERS[reader])
