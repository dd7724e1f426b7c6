"""What Slurm says of the jobs of one workflow folder. Only `squeue` and `scancel` are asked; neither waits for a job."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError

# Id, state, node, run time, work folder, comment; the comment comes last because it may hold anything.
_FORMAT = "%i|%T|%N|%M|%Z|%k"
# What squeue says where the programs are installed but no cluster is set up: then there are no jobs either.
_NO_CLUSTER = "Could not establish a configuration source"
# A busy controller may need long to answer; a dead one must not stop the caller for ever.
_SECONDS = 60


class SlurmJob(NamedTuple):
    """One job in the queue: `state` as squeue names it, `node` and `elapsed` ("1:05") once it runs."""

    id: str
    state: str
    node: str
    elapsed: str
    rule: str  # as Snakemake names it, `train_sae`
    wildcards: str  # their values joined by underscores, `gpt2-medium_05`


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def jobs_in(folder: Path, users: Collection[int] = ()) -> list[SlurmJob]:
    """Jobs that Snakemake submitted from `folder`, waiting ones too; none where no cluster is set up.

    Args:
        folder: with the Snakefile.
        users: ids of others whose jobs count beside this user's.

    Raises:
        UserError: squeue does not answer; then nothing can be said.
    """
    asked = ",".join(str(uid) for uid in sorted({os.getuid(), *filter(_is_known, users)}))
    try:
        text = _output("squeue", "-h", "-u", asked, "-o", _FORMAT)
    except UserError as error:
        if _NO_CLUSTER in str(error):
            return []
        raise
    found = []
    for line in text.splitlines():
        id_, state, node, elapsed, place, comment = (line.split("|", 5) + [""] * 5)[:6]
        if comment.startswith("rule_") and Path(place) == folder:
            rule, _, wildcards = comment.removeprefix("rule_").partition("_wildcards_")
            found.append(SlurmJob(id_, state, node, elapsed, rule, wildcards))
    return found


def _is_known(uid: int) -> bool:
    """Whether a user exists still: squeue refuses the whole question otherwise."""
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def cancel(ids: Sequence[str]) -> None:
    """Ask Slurm to end jobs: SIGTERM first, so that training saves a checkpoint, SIGKILL after Slurm's KillWait.

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
        f"{words[0]} failed ({reason}): whether jobs of an earlier run still work here is not known; try again"
    )
