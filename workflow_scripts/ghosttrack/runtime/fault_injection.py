"""Faults on demand, for tests and rehearsals of a cluster: the one place that reads GHOSTTRACK_FAULTS.

    GHOSTTRACK_FAULTS='[{"job": "train_sae/layer_02", "kind": "out_of_memory", "after": 1024, "batch_above": 2048}]'

A job is named by its log below `logs/`; `*` and `?` match as in file names. Unset, nothing is ever done.
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
    """What happens to a job at the first progress beyond `after` units, or at each one (`slow`)."""

    job: str
    kind: Kind
    after: int = 0  # units of the job's progress line
    batch_above: int = (
        -1
    )  # only while the job's batch is larger: an out-of-memory that smaller batches avoid
    seconds: float = 0.1  # of `slow`, at each progress


def wanted(environment: Mapping[str, str]) -> list[Fault]:
    """The faults that the variable asks for.

    Raises:
        UserError: it is not a JSON list of faults.
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return []
    try:
        faults = [Fault(**each) for each in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{VARIABLE}: expected a JSON list of objects with {', '.join(Fault._fields)} ({error})"
        ) from None
    for fault in faults:
        if fault.kind not in get_args(Kind):
            raise UserError(
                f"{VARIABLE}: kind {fault.kind!r} is none of {', '.join(get_args(Kind))}"
            )
    return faults


def observer(log: Path, batch: int) -> Callable[[int], None] | None:
    """What a job with this log and batch has to call with its progress; None where no fault is meant for it."""
    name = log.with_suffix("").as_posix().rpartition("logs/")[2]
    mine = [
        fault
        for fault in wanted(os.environ)
        if fnmatch.fnmatch(name, fault.job) and batch > fault.batch_above
    ]
    return (lambda done: strike(mine, done)) if mine else None


def strike(faults: list[Fault], done: int) -> None:
    """Do what is due after `done` units."""
    for fault in faults:
        if done > fault.after:
            _strike(fault)


def _strike(fault: Fault) -> None:
    match fault.kind:
        case "slow":
            time.sleep(fault.seconds)
        case "error":
            raise RuntimeError(f"a fault that {VARIABLE} asked for")
        case "no_space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a fault")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "out_of_memory":
            import torch  # only here: most jobs never need it

            raise torch.OutOfMemoryError(f"a fault that {VARIABLE} asked for")
