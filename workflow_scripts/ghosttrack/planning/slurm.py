"""Slurm jobs of one workflow folder, by `squeue` and `scancel`."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError

# Id, state, node, run time, work folder, comment. The comment is last because it may contain "|".
_FORMAT = "%i|%T|%N|%M|%Z|%k"
# Error of squeue where Slurm is installed but no cluster is configured, so there are no jobs.
_NO_CLUSTER = "Could not establish a configuration source"
# A busy controller may take long to answer, but a dead one must not block the caller.
_SECONDS = 60


class SlurmJob(NamedTuple):
    """One job in the queue."""

    id: str
    state: str  # as in squeue
    node: str  # "" until the job runs
    elapsed: str  # such as "1:05"
    rule: str  # rule name, such as `train_sae`
    wildcards: str  # values of the wildcards joined by underscores, such as `gpt2-medium_05`


def available() -> bool:
    """Whether Slurm's commands are installed on this machine."""
    return shutil.which("squeue") is not None


def jobs_in(folder: Path, users: Collection[int] = ()) -> list[SlurmJob]:
    """Jobs in the queue that Snakemake submitted from `folder`; [] without a cluster.

    Args:
        folder: the folder of the Snakefile.
        users: ids of other users whose jobs are included.
    Raises:
        UserError: squeue does not answer.
    """
    user_ids = ",".join(str(uid) for uid in sorted({os.getuid(), *filter(_is_known, users)}))
    try:
        text = _output("squeue", "-h", "-u", user_ids, "-o", _FORMAT)
    except UserError as error:
        if _NO_CLUSTER in str(error):
            return []
        raise
    jobs = []
    for line in text.splitlines():
        id_, state, node, elapsed, directory, comment = (line.split("|", 5) + [""] * 5)[:6]
        if comment.startswith("rule_") and Path(directory) == folder:
            rule, _, wildcards = comment.removeprefix("rule_").partition("_wildcards_")
            jobs.append(SlurmJob(id_, state, node, elapsed, rule, wildcards))
    return jobs


def _is_known(uid: int) -> bool:
    """Whether a user id still exists: squeue fails if one of its users does not."""
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs: SIGTERM, at which training saves a checkpoint, and SIGKILL after KillWait.

    Raises:
        UserError: scancel failed.
    """
    if ids:
        _output("scancel", "--full", *ids)


def _output(*words: str) -> str:
    try:
        return subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=_SECONDS
        ).stdout
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_SECONDS} s"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
    except OSError as error:
        reason = str(error)
    raise UserError(
        f"{words[0]} failed ({reason}), so it is not known whether jobs of an earlier run are "
        "still running here; try again"
    )
