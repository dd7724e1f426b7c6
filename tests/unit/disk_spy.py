"""File operations under observation: what a power loss would destroy, and simulated kills."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# Operations that change names on disk or make content durable.
OPERATIONS = ("fsync", "mkdir", "replace", "rmdir", "unlink")


class Disk:
    """Records each rename to a final name that comes before its content is durable.

    A file is durable if it was fsynced with its present size and time, a folder if it was fsynced
    with all its present names. A rename is durable if its folder was fsynced afterwards. Names
    inside a `.partial` folder are not final.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renamed: list[Path] = []
        self.unsafe: list[str] = []
        self._synced: dict[int, Any] = {}
        self._pending: list[Path] = []
        self._fsync, self._replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def fsync(self, handle: int) -> None:
        self._fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").resolve()
        self._synced[path.stat().st_ino] = content_state(path)
        self._pending = [name for name in self._pending if name.parent != path]

    def replace(self, source: Any, target: Any) -> None:
        start, end = Path(source), Path(target)
        if not any(folder.name.endswith(".partial") for folder in end.parents):
            self.unsafe += [f"{end} before the name of {name}" for name in self._pending]
            for path in (start, *start.rglob("*")):
                if not on_disk(content_state(path), self._synced.get(path.stat().st_ino)):
                    self.unsafe.append(f"{end} before {path}")
            self.renamed.append(end)
            self._pending.append(end)
        self._replace(source, target)

    @property
    def lost(self) -> list[str]:
        """What a power loss could destroy, now or at an earlier rename; empty if nothing."""
        return self.unsafe + [f"the name of {name}" for name in self._pending]


def content_state(path: Path) -> Any:
    if path.is_dir():
        return frozenset(child.name for child in path.iterdir())
    return path.stat().st_size, path.stat().st_mtime_ns


def on_disk(state: Any, synced: Any) -> bool:
    return (
        bool(synced is not None and state <= synced)
        if isinstance(state, frozenset)
        else bool(state == synced)
    )


class KilledError(BaseException):
    """Stands for a kill signal: no handler of the code under test may catch it."""


def run_until(operation: int | None, work: Callable[[], object]) -> int:
    """Run `work`, killed just before its file operation number `operation`; None: not killed.

    Neither that operation nor a later one happens, as if the process were gone, so clean-up code
    has no effect. Returns the number of operations. Only those of this thread count, because zarr's
    threads write inside a `.partial` folder.
    """
    done, thread = 0, threading.current_thread()

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal done
            if threading.current_thread() is thread:
                if operation is not None and done >= operation:
                    raise KilledError
                done += 1
            return original(*given, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, watched(getattr(os, name)))
        with suppress(KilledError):
            work()
    return done
