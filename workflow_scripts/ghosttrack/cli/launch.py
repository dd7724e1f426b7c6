"""`python -m ghosttrack.cli.launch ARGS`: run `snakemake ARGS` under the lease of this folder.

Snakemake's lock does not name its owner and outlives a killed run. The lease (`lease.py`) tells
whether a run of any host or user is alive; only its holder clears Snakemake's lock.
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

# Options that only read, which are allowed beside a run; `-np` and the like are dry runs.
_READ_ONLY = re.compile(
    r"-[npqF]*n[npqF]*|-[hvlSD]|--(dry-?run|help|version|lint|(detailed-)?summary|list.*|l[tuc]|dag|rulegraph|filegraph"
    r"|d3dag|report|print-compilation)(=.*)?"
)


def main(arguments: list[str]) -> int:
    """Run Snakemake in this directory and return its exit code.

    1: another run, or jobs of an earlier run, work in this directory. 2: wrong arguments.
    """
    if reason := traps.refused_arguments(arguments):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "snakemake", *arguments]
    if any(map(_READ_ONLY.fullmatch, arguments)):
        return subprocess.call(command)
    here, run = Path.cwd(), SnakemakeProcess(command)
    try:
        with lease.hold(here, lease.shortened(arguments), run.end) as held:
            prepare(here, held)
            code = run.wait(held)
            if code < 0 or lease.snakemake_locks(here):  # it was killed: tell the next run
                held.leave()
            return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def prepare(here: Path, held: lease.HeldLease) -> None:
    """Clear the lock of a killed run.

    Raises:
        UserError: a Snakemake without a lease, or jobs of an earlier run, may be working here.
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
                f".snakemake/locks was made {max(age, 0):.0f} s ago by a Snakemake without a "
                "lease. It may just be "
                "starting, on this host or another. "
                f"Run the same command again in {lease.EXPIRY_SECONDS - age:.0f} s. "
                "If no Snakemake is at work in this folder on any host, you need not wait: run "
                "snakemake --unlock first"
            )
        lease.clear_snakemake_locks(here)


class SnakemakeProcess:
    """The Snakemake that this command starts."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None

    def wait(self, held: lease.HeldLease) -> int:
        """Start it under the lease and return its exit code; it handles the signals itself."""
        environment = {**os.environ, lease.VARIABLE: f"{held.lease.token} {os.getpid()}"}
        with self._signals():
            # It inherits the open file and holds the flock of the lease even if this process ends.
            self.process = subprocess.Popen(self.command, env=environment, pass_fds=[held.handle])
            held.hand_over(self.process.pid)
            return self.process.wait()

    def end(self, message: str) -> None:
        """End Snakemake and its jobs, with `message` as the reason."""
        if self.process and self.process.poll() is None:
            lease.end_run(self.process.pid, message)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ignore Ctrl-C, which the terminal sends to Snakemake too, and forward SIGTERM."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if before[signal.SIGINT] is signal.default_int_handler:  # otherwise it is ignored already
            signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, self._forward)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self.process is None:
            sys.exit(128 + number)
        self.process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
