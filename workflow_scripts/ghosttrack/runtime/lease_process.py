"""Whether the process that holds a lease is alive, as far as this machine can tell.

A process id has a meaning within one boot of a host and one pid namespace, and the start time of a
process tells a reused id from the original one. Host names are not compared: two machines may have
the same one.
"""

import os
from pathlib import Path

from ghosttrack.runtime.lease_file import Lease


def boot_id() -> str:
    """Id of the host's current boot, or ""."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def namespaces() -> str:
    """Inodes of the pid namespace (process ids) and the time namespace (start times), or ""."""
    try:
        return " ".join(str(Path("/proc/self/ns", kind).stat().st_ino) for kind in ("pid", "time"))
    except OSError:
        return ""


def is_visible(lease: Lease) -> bool:
    """Whether the lease's process id has the same meaning in this process."""
    return bool(lease.boot and lease.namespaces) and (lease.boot, lease.namespaces) == (
        boot_id(),
        namespaces(),
    )


def is_alive(lease: Lease) -> bool | None:
    """Whether the lease's process exists; None if this machine cannot tell, as for another host."""
    if not is_visible(lease):
        return None
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process: it exists
    state, ticks = _stat(lease.pid)
    if state in ("Z", "X"):  # it has ended, and its parent has not collected its exit code
        return False
    return ticks == lease.ticks if ticks and lease.ticks else None


def start_ticks(pid: int) -> int:
    """Start of a process in clock ticks since boot; 0 if /proc does not show it."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start (ticks since boot) of a process; ("", 0) if /proc does not show it."""
    try:
        if str(Path("/proc/self").readlink()) != str(os.getpid()):
            return "", 0  # /proc shows the processes of another namespace
        # The name is in parentheses and may contain any character. The state follows it; the start
        # is field 22 of the line.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
