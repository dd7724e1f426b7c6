"""Training checkpoints: whole or absent, two kept, and never another run's."""

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
_KEEP = 2  # if the newest turns out to be damaged there is another


class Checkpoint(NamedTuple):
    """Everything a run needs to go on after `step` steps."""

    step: int
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run in `folder`.

    A file is one line of JSON (step, fingerprint of data, settings and code, SHA-256 of the rest),
    then a safetensors payload. Files that are damaged or another run's are refused with the reason
    and left alone.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self._own: list[Path] = []  # ascending by step

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one file atomically, then drop all but the two newest of this run."""
        payload = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        )
        header = {
            "format": _FORMAT,
            "step": checkpoint.step,
            "fingerprint": self.fingerprint,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        path = self.folder / f"step_{checkpoint.step:09d}.checkpoint"
        with files.atomic_write(path, "wb") as stream:
            stream.write(json.dumps(header).encode() + b"\n")
            stream.write(payload)
        self._own = [*(kept for kept in self._own if kept != path), path]
        for old in self._own[:-_KEEP]:
            old.unlink(missing_ok=True)
        self._own = self._own[-_KEEP:]

    def latest(self) -> Checkpoint | None:
        """The newest sound checkpoint of this run, or None; says in the log why others are refused. Older ones are not read."""
        found: Checkpoint | None = None
        own: list[Path] = []
        for path in sorted(self.folder.glob("step_*.checkpoint"), reverse=True):
            try:
                with path.open("rb") as stream:
                    header = self._header(stream.readline())
                    if found is None:
                        found = self._content(header, stream.read())
                own.append(path)
            except _RefusedError as reason:
                log.warning("checkpoint %s is not used: %s", path.name, reason)
        self._own = own[::-1]
        return found

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
                f"its checksum is wrong ({len(payload)} bytes of payload): it is truncated or damaged"
            )
        return Checkpoint(header["step"], safetensors.torch.load(payload))


class _RefusedError(Exception):
    """Why a file cannot be used."""
