"""The folder of a command's `--out`: one that can be written and holds no results of a run."""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ghosttrack.errors import UserError


def require_free(out: Path, runs: Sequence[Path]) -> None:
    """Check that `out` can be written and holds no results of `runs` or of another run.

    Raises:
        UserError: it is in a run but not below the run's folder `judged`, or cannot be written.
    """
    place, known = out.resolve(), [run.resolve() for run in runs]
    for inside in (*known, place, *place.parents):
        judged = inside / "judged"
        if inside not in known and not (inside / "records" / "model_check.json.json").exists():
            continue
        if place == judged or (place.is_relative_to(inside) and not place.is_relative_to(judged)):
            raise UserError(
                f"--out: {out} is a folder of the run {inside.name}, whose results would be "
                f"overwritten; expected a folder outside any run, or below {runs[0] / 'judged'}"
            )
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        # No folder is made before the input is read, so that a refused input leaves nothing.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise not_writable(out, error) from None


def not_writable(out: Path, error: OSError) -> UserError:
    """The error of a folder that cannot be written, with the remedy."""
    reason = error.strerror or str(error)
    return UserError(
        f"--out: {out} cannot be written ({reason}: {error.filename or out}); name a folder in "
        "which you may write"
    )
