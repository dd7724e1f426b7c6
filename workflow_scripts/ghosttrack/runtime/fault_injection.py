"""Fault injection, for tests and for trials on a cluster, by the variable GHOSTTRACK_FAULTS.

    GHOSTTRACK_FAULTS='[{"job": "train_sae/layer_02", "kind": "out_of_memory", "after": 1024,
    "batch_above": 2048}]'

A job is named by its log below `logs/`; `*` and `?` match as in file names.
"""

import errno
import fnmatch
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ghosttrack.errors import UserError

VARIABLE = "GHOSTTRACK_FAULTS"
Kind = Literal["error", "out_of_memory", "no_space", "kill", "slow"]


class Fault(NamedTuple):
    """A fault at a job's first progress beyond `after` units, or at every progress (`slow`)."""

    job: str
    kind: Kind
    after: int = 0  # units of the job's progress line
    # Only for a job with a larger batch, such as an out-of-memory error that a smaller batch
    # avoids.
    batch_above: int = -1
    seconds: float = 0.1  # of `slow`, at every progress


def wanted(environment: Mapping[str, str]) -> list[Fault]:
    """The faults in the variable.

    Raises:
        UserError: the variable is not a JSON list of faults.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return []
    try:
        faults = [Fault(**fields) for fields in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{VARIABLE}: expected a JSON list of objects with {', '.join(Fault._fields)} ({error})"
        ) from None
    for fault in faults:
        if fault.kind not in get_args(Kind):
            raise UserError(
                f"{VARIABLE}: kind {fault.kind!r} is not one of {', '.join(get_args(Kind))}"
            )
    return faults


def observer(log: Path, batch: int) -> Callable[[int], None] | None:
    """Function that injects the faults of a job, called with its progress; None without a fault."""
    name = log.with_suffix("").as_posix().rpartition("logs/")[2]
    faults = [
        fault
        for fault in wanted(os.environ)
        if fnmatch.fnmatch(name, fault.job) and batch > fault.batch_above
    ]
    return (lambda done: inject(faults, done)) if faults else None


def inject(faults: list[Fault], done: int) -> None:
    """Inject the faults that are due after `done` units."""
    for fault in faults:
        if done > fault.after:
            _inject(fault)


def _inject(fault: Fault) -> None:
    match fault.kind:
        case "slow":
            time.sleep(fault.seconds)
        case "error":
            raise RuntimeError(f"a fault of {VARIABLE}")
        case "no_space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"a fault of {VARIABLE}")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "out_of_memory":
            import torch  # slow, and most jobs do not need it

            raise torch.OutOfMemoryError(f"a fault of {VARIABLE}")
