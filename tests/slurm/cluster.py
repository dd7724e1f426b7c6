"""A real Slurm of one node on loopback, for tests: own keys and sockets, fake GPUs, no root, no systemd.

The GPU devices are links to /dev/null, so CUDA_VISIBLE_DEVICES is real while nothing computes on
them. CPUs and memory are claimed, not confined: there are no cgroups.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol")


def missing_tools() -> list[str]:
    """Programs of Slurm and munge that this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]


class Cluster:
    """Start with `with Cluster(folder) as cluster`; give `cluster.environment` to whatever talks to it."""

    def __init__(
        self, folder: Path, gpus: int = 4, cpus: int = 16, memory_mb: int = 64_000
    ) -> None:
        # A Unix socket path is limited to 107 bytes.
        if len(str(folder)) > 80:
            raise ValueError(f"{folder} is too long for a Unix socket below it")
        self.folder, self.gpus, self.cpus, self.memory_mb = folder, gpus, cpus, memory_mb
        self.port = _free_ports(2)
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{_path()}",
        }

    def __enter__(self) -> Self:
        for name in ("ctld", "spool", "log", "run", "dev", "bin", "munge"):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        (self.folder / "munge").chmod(0o700)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["scancel", "--full", "--user", str(os.getuid())],
            env=self._env(),
            check=False,
            timeout=30,
        )
        for name in ("slurmd", "slurmctld", "munged"):
            _stop(self.folder / "run" / f"{name}.pid")

    def command(self, *words: str) -> str:
        """Standard output of a Slurm command."""
        return subprocess.run(
            words, env=self._env(), check=True, capture_output=True, text=True, timeout=30
        ).stdout

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _start(self) -> None:
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        run, log = self.folder / "run", self.folder / "log"
        self.command(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={run}/munge.sock",
            f"--pid-file={run}/munged.pid",
            f"--log-file={log}/munged.log",
            f"--seed-file={self.folder}/munge/munge.seed",
        )
        for number in range(self.gpus):
            (self.folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        self._write_configuration()
        self.command("slurmctld", "-c")
        _wait(20, lambda: "UP" in self.command("scontrol", "ping"))
        self.command("slurmd", "-c")
        _wait(20, lambda: self.command("sinfo", "-h", "-o", "%T").split()[:1] == ["idle"])

    def _write_configuration(self) -> None:
        here, host = self.folder, socket.gethostname().split(".")[0]
        user = subprocess.run(
            ["id", "-un"], check=True, capture_output=True, text=True
        ).stdout.strip()
        (here / "cgroup.conf").write_text("ConstrainRAMSpace=no\n")
        devices = (
            f"{here}/dev/nvidia[0-{self.gpus - 1}]" if self.gpus > 1 else f"{here}/dev/nvidia0"
        )
        (here / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={host} Name=gpu Type=a100 File={devices}\n"
        )
        (here / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={self.port}
SlurmdPort={self.port + 1}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={here}/run/munge.sock
# loopback only
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={here}/ctld
SlurmdSpoolDir={here}/spool
SlurmctldPidFile={here}/run/slurmctld.pid
SlurmdPidFile={here}/run/slurmd.pid
SlurmctldLogFile={here}/log/slurmctld.log
SlurmdLogFile={here}/log/slurmd.log
# nothing that needs cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=60
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
# squeue must still know a job that ended: at least 3 x the first status check of the profile
MinJobAge=300
KillWait=3
InactiveLimit=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={self.memory_mb} Gres=gpu:a100:{self.gpus} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes={host} Default=YES MaxTime=7-00:00:00 State=UP PriorityTier=10
# the same node by another name
PartitionName=accelerated Nodes={host} Default=NO MaxTime=7-00:00:00 State=UP PriorityTier=10
# jobs here give way, and are queued again
PartitionName=preemptible Nodes={host} Default=NO MaxTime=7-00:00:00 State=UP PriorityTier=1
"""
        )
        # Snakemake's job step drops SLURM_CONF before it calls srun: a shim, first in PATH, puts it back.
        self._shim("srun", f'SLURM_CONF="{here}/slurm.conf"; export SLURM_CONF')
        # Another one writes down what is asked for.
        self._shim("sbatch", f"{{ printf '%s\\t' \"$@\"; echo; }} >> {here}/submitted")

    def _shim(self, name: str, first: str) -> None:
        real = shutil.which(name, path=_path())
        (self.folder / "bin" / name).write_text(f'#!/bin/sh\n{first}\nexec {real} "$@"\n')
        (self.folder / "bin" / name).chmod(0o755)

    def submissions(self) -> list[list[str]]:
        """The words of every sbatch call so far, in order."""
        path = self.folder / "submitted"
        return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring free TCP ports on loopback."""
    for start in range(26_800, 32_000, count):
        try:
            for port in range(start, start + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return start
    raise RuntimeError("no free ports for a test Slurm")


def _stop(pid_file: Path) -> None:
    """End the daemon that wrote `pid_file`, by force after five seconds."""
    if not pid_file.exists() or not (text := pid_file.read_text().strip()):
        return
    pid = int(text)
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            _wait(5, lambda: not Path(f"/proc/{pid}").exists())
        except ProcessLookupError:
            return
        except TimeoutError:
            continue
        return


def _wait(seconds: float, ready: Callable[[], bool]) -> None:
    """Return once `ready()`; a command that fails counts as not ready."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ready():
                return
        except subprocess.CalledProcessError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"not ready after {seconds:g} s")
