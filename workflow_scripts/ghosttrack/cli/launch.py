"""`python -m ghosttrack.cli.launch ARGS`: snakemake ARGS under this folder's lease, after clearing the lock of a killed run.

Snakemake's own lock does not say whose it is, and outlives its run. The lease (`lease.py`) tells a live run of any host
and user from a dead one; only its holder clears Snakemake's lock.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ghosttrack.errors import UserError
from ghosttrack.planning import orphans, traps
from ghosttrack.runtime import lease, lease_file

# What only reads may work beside a run. `-np` and the like are dry runs too.
_READ_ONLY = re.compile(
    r"-[npqF]*n[npqF]*|-[hvlSD]|--(dry-?run|help|version|lint|(detailed-)?summary|list.*|l[tuc]|dag|rulegraph|filegraph"
    r"|d3dag|report|print-compilation)(=.*)?"
)


def main(arguments: list[str]) -> int:
    """Run Snakemake here; return its exit code.

    1: another run, or what is left of one, works in this directory. 2: Snakemake could not read the arguments.
    """
    if reason := traps.refused_arguments(arguments):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "snakemake", *arguments]
    if any(map(_READ_ONLY.fullmatch, arguments)):
        return subprocess.call(command)
    here, run = Path.cwd(), Run(command)
    try:
        with lease.hold(here, lease.shortened(arguments), run.end) as held:
            prepare(here, held)
            code = run.wait(held)
            if code < 0 or lease.snakemake_locks(here):  # it was killed: the next run is to know
                held.leave()
            return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def prepare(here: Path, held: lease.HeldLease) -> None:
    """Clear the lock of a killed run.

    Raises:
        UserError: a Snakemake without a lease, or jobs without their Snakemake, may be at work here.
    """
    if alive := orphans.runs(here):
        listed = ", ".join(f"{process.pid}" for process in alive)
        raise UserError(
            f"another run is working in this directory (process {listed}). "
            f"Wait for it, or end it with: kill {listed.replace(',', '')}"
        )
    if held.after_killed:
        lease.clear_snakemake_locks(here)
    orphans.refuse(here, require_slurm=False)
    if locks := lease.snakemake_locks(here):
        now = lease_file.file_clock(locks[0].parent)
        age = now - max(path.stat().st_mtime for path in locks)
        if age <= lease.EXPIRY_SECONDS:
            raise UserError(
                f".snakemake/locks was made {max(age, 0):.0f} s ago by a Snakemake that holds no lease: one may just be "
                "starting here, on this host or another. "
                f"Run the same command again in {lease.EXPIRY_SECONDS - age:.0f} s; "
                "or, if you know that no Snakemake is at work in this folder on any host, at once after: snakemake --unlock"
            )
        lease.clear_snakemake_locks(here)


class Run:
    """The Snakemake of this launch."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None

    def wait(self, held: lease.HeldLease) -> int:
        """Run it under the lease and return its exit code. Ctrl-C and SIGTERM are its own to act on."""
        environment = {**os.environ, lease.VARIABLE: f"{held.lease.token} {os.getpid()}"}
        with self._signals():
            # It shares the open file, so the lease's flock is held for as long as it lives, without launch too.
            self.process = subprocess.Popen(self.command, env=environment, pass_fds=[held.handle])
            held.hand_over(self.process.pid)
            return self.process.wait()

    def end(self, message: str) -> None:
        """Say that the lease is lost, and end Snakemake and its jobs."""
        if self.process and self.process.poll() is None:
            lease.end_run(self.process.pid, message)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Wait on at Ctrl-C, which a terminal sends to Snakemake as well, and pass SIGTERM on."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if before[signal.SIGINT] is signal.default_int_handler:  # else it is ignored, and stays so
            signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, self._pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self.process is None:
            sys.exit(128 + number)
        self.process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
