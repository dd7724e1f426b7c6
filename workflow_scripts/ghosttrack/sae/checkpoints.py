"""Training checkpoints: atomic, verified, and bound to one run; the last two are kept."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from ghosttrack.runtime import files

log = logging.getLogger("ghosttrack")

_FORMAT = 1
_KEEP = 2  # an older one remains if the newest is damaged


class Checkpoint(NamedTuple):
    """The state of a run after `step` steps."""

    step: int
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run in `folder`.

    A file is one line of JSON (step, fingerprint of data, settings and code, SHA-256 of the rest)
    and a safetensors payload. Files that are damaged or from another run are logged with the
    reason, and neither used nor deleted.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self._paths: list[Path] = []  # of this run, ascending by step

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one file atomically, then delete all but the two newest of this run."""
        payload = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        )
        header = {
            "format": _FORMAT,
            "step": checkpoint.step,
            "fingerprint": self.fingerprint,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        path = self.folder / _name(checkpoint.step)
        with files.atomic_write(path, "wb") as stream:
            stream.write(json.dumps(header).encode() + b"\n")
            stream.write(payload)
        self._paths = [*(known for known in self._paths if known != path), path]
        for old in self._paths[:-_KEEP]:
            old.unlink(missing_ok=True)
        self._paths = self._paths[-_KEEP:]

    def latest(self) -> Checkpoint | None:
        """The newest valid checkpoint of this run, or None.

        The log names the files that are not used, with the reason. The content of older checkpoints
        is not read.
        """
        newest: Checkpoint | None = None
        valid: list[Path] = []
        for path in sorted(self.folder.glob("step_*.checkpoint"), reverse=True):
            try:
                with path.open("rb") as stream:
                    header = self._header(stream.readline())
                    if path.name != _name(header["step"]):
                        raise _RefusedError(f"its first line says step {header['step']}")
                    if newest is None:
                        newest = self._content(header, stream.read())
                valid.append(path)
            except _RefusedError as reason:
                log.warning("checkpoint %s is not used: %s", path.name, reason)
        self._paths = valid[::-1]
        return newest

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            header: Any = json.loads(line)
            form, fingerprint = header["format"], header["fingerprint"]
            content = {"step": int(header["step"]), "sha256": header["sha256"]}
        except (ValueError, TypeError, KeyError):
            raise _RefusedError("its first line is damaged") from None
        if form != _FORMAT:
            raise _RefusedError(f"its format is {form!r}, expected {_FORMAT}")
        if fingerprint != self.fingerprint:
            raise _RefusedError("it is from other activations, settings, seed or code")
        return content

    def _content(self, header: dict[str, Any], payload: bytes) -> Checkpoint:
        if hashlib.sha256(payload).hexdigest() != header["sha256"]:
            raise _RefusedError(
                f"its checksum is wrong ({len(payload)} bytes of payload): it is truncated or "
                "damaged"
            )
        return Checkpoint(header["step"], safetensors.torch.load(payload))


def _name(step: int) -> str:
    return f"step_{step:09d}.checkpoint"


class _RefusedError(Exception):
    """Why a file is not used."""
