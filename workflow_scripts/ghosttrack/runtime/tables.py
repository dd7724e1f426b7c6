"""Tables and arrays of earlier jobs; errors name a damaged file."""

import csv
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow

from ghosttrack.errors import UserError

_REMEDY = "delete it and run again to make it again"
_MISSING = "is missing: run the workflow again, which makes it, or check the folder of the run"
# Columns with names that users choose: they are text, even 2024, true or NA.
_NAME_COLUMNS = ("dataset", "trained_on", "model", "reference")
# A spreadsheet reads a cell that begins with one of these, also full-width, as a formula (OWASP,
# CSV injection).
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A parquet file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return pd.read_parquet(path, columns=columns)
    except FileNotFoundError:
        raise UserError(f"{path} {_MISSING}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): {_REMEDY}"
        ) from error


def read_npz(path: Path) -> dict[str, Any]:
    """All arrays of an npz file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"{path} {_MISSING}") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_REMEDY}") from error


def write_csv(table: pd.DataFrame, stream: IO[str]) -> None:
    """Write a table as csv without its index, with cells escaped by `plain_cell`."""
    texts = table.select_dtypes(exclude=["number", "bool", "datetime"])
    safe = table.assign(**{str(name): texts[name].map(plain_cell) for name in texts})
    # Python's csv module does not quote a single carriage return, which readers take as the end of
    # a row.
    broken = any(isinstance(cell, str) and "\r" in cell for name in texts for cell in texts[name])
    safe.to_csv(stream, index=False, quoting=csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL)


def read_csv(path: Path) -> pd.DataFrame:
    """A table written by `write_csv`; names such as NA, null, true and 2024 remain text.

    Raises:
        OSError, ValueError: from pandas, if the file is missing or not a table.
    """
    names = dict.fromkeys(_NAME_COLUMNS, str)
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=names)
    texts = table.select_dtypes(exclude=["number", "bool"])
    return table.assign(**{str(name): texts[name].map(_original_cell) for name in texts})


def plain_cell(value: Any) -> Any:
    """A cell with an apostrophe before text that a spreadsheet would read as a formula."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _original_cell(value: Any) -> Any:
    """The inverse of `plain_cell`."""
    return (
        value[1:]
        if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value)
        else value
    )
