"""GPUs of one machine without a scheduler: each job claims as many as its rule requests.

A claim is a lock (`flock`) on a file per GPU in a folder of the user. The kernel releases it when
the process ends, however it ends. The job then sees only its GPUs (CUDA_VISIBLE_DEVICES). Under
Slurm the scheduler does this, and nothing is claimed.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ghosttrack.errors import UserError

log = logging.getLogger(__name__)
VARIABLE = "CUDA_VISIBLE_DEVICES"
# Seconds between two looks for a free GPU.
WAIT_SECONDS = 1.0


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: from CUDA_VISIBLE_DEVICES, else by number."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return [name for name in given.replace(" ", "").split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], check=True, capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line for line in answer.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def lock_folder() -> Path:
    """Folder with a lock file per GPU, of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"ghosttrack-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(
            f"{folder} is a link or belongs to another user, so GPUs cannot be claimed in it; remove "
            "it, or set TMPDIR to a folder of yours"
        )
    return folder


@contextmanager
def claimed(
    count: int, wait: Callable[[], None] = lambda: time.sleep(WAIT_SECONDS)
) -> Iterator[None]:
    """Claim `count` GPUs while the block runs; waits until so many are free.

    No effect under Slurm, with a single visible GPU, or without GPUs. Nothing may have used CUDA in
    this process before.

    Args:
        count: of GPUs that the rule requests. 0: the job sees all GPUs and uses none.
        wait: called between two looks for free GPUs.
    Raises:
        UserError: the machine has fewer GPUs.
    """
    if count == 0 or "SLURM_JOB_ID" in os.environ:
        yield
        return
    names = visible_gpus()
    if len(names) <= 1:
        yield  # jobs on a single GPU, or on a CPU, are limited by the resource `gpu` alone
        return
    if count > len(names):
        raise UserError(
            f"plan.gpus_per_model: {count} GPUs are requested, this machine has {len(names)}; set "
            f"it to {len(names)} or less"
        )
    before = os.environ.get(VARIABLE)
    with ExitStack() as locks:
        chosen = _lock(names, count, locks)
        if not chosen:
            log.info("waiting for %d free GPUs of %d", count, len(names))
        while not chosen:
            wait()
            chosen = _lock(names, count, locks)
        os.environ[VARIABLE] = ",".join(chosen)
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


def _lock(names: Sequence[str], count: int, locks: ExitStack) -> list[str]:
    """Lock `count` free GPUs and return their names; [] and no lock if fewer are free."""
    folder, chosen = lock_folder(), []
    with ExitStack() as attempt:
        for name in names:
            stream = attempt.enter_context((folder / f"{name.replace('/', '_')}.lock").open("a"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            chosen.append(name)
            if len(chosen) == count:
                locks.push(attempt.pop_all())
                return chosen
    return []
