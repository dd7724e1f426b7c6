"""Damaged tables are named, with what to do."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ghosttrack import frames
from ghosttrack.errors import UserError


def test_whole_files_are_read(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1], "b": [2]}).to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", x=np.arange(3))
    assert frames.read_parquet(tmp_path / "t.parquet", ["b"]).columns.tolist() == ["b"]
    assert frames.read_npz(tmp_path / "t.npz")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"PAR1 half", b"PK half"])
@pytest.mark.parametrize("name", ["t.parquet", "t.npz"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    read = frames.read_parquet if name.endswith("parquet") else frames.read_npz
    with pytest.raises(UserError, match=f"{name} cannot be read .*delete it and run again"):
        read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.parquet cannot be read"):
        frames.read_parquet(tmp_path / "gone.parquet")
    with pytest.raises(UserError, match=r"gone\.npz cannot be read"):
        frames.read_npz(tmp_path / "gone.npz")
