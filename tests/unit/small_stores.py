"""Small activation stores, and ways to damage a file."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter

WIDTH = 8
CONTEXT = 10
HEADER = Header("tiny", "weights", 3, "resid_post", CONTEXT, "tokens")
Damage = Callable[[Path], None]


def make_rows(rows: int, seed: int = 0, width: int = WIDTH) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def write(
    folder: Path,
    values: npt.NDArray[np.float32],
    header: Header = HEADER,
    start: int = 0,
    total: int | None = None,
    name: str = "a",
    step: int = 1000,
) -> tuple[Path, Path]:
    target, manifest = folder / f"{name}.zarr", folder / f"{name}.json"
    writer = StoreWriter(
        target,
        manifest,
        header,
        rows=len(values),
        d_model=values.shape[1],
        row_start=start,
        total_rows=total,
    )
    with writer:
        for at in range(0, len(values), step):
            writer.append(to_block(values[at : at + step], scale=header.scale))
    return target, manifest


def open_one(target: Path, manifest: Path) -> ActivationStore:
    return ActivationStore.open([target], [manifest])


def overwrite(path: Path, at: int, change: Callable[[bytes], bytes], size: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        old = stream.read(size)
        stream.seek(-len(old), os.SEEK_CUR)
        stream.write(change(old))


def flip(old: bytes) -> bytes:
    return bytes([old[0] ^ 16]) + old[1:]


def zero(old: bytes) -> bytes:
    return bytes(len(old))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
