"""Tables and arrays of earlier jobs, read with an error that names the file when it is damaged."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from ghosttrack.errors import UserError

_REMEDY = "delete it and run again, its job remakes it"


def read_parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A parquet file; UserError if it is missing or damaged."""
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): {_REMEDY}") from error


def read_npz(path: Path) -> dict[str, Any]:
    """All arrays of an npz file; UserError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_REMEDY}") from error
