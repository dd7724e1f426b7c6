"""Which result files each job of a run opens, as the kernel sees it: libraries in C++ and Rust open files unseen by Python."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

TRACER = shutil.which("strace")
_OPENED = re.compile(r'^openat\([^"]*"([^"]+)", ([A-Z_|]+)')
_SCRIPT = re.compile(r"\.snakemake/scripts/tmp[^/]*?\.(\w+)\.py$")


def command(folder: Path) -> list[str]:
    """What stands before a command to trace it and its children into `folder`; nothing where strace is absent."""
    if TRACER is None:
        return []
    folder.mkdir()
    return [
        TRACER,
        "-ff",
        "--seccomp-bpf",
        "-e",
        "trace=openat",
        "-e",
        "signal=none",
        "-qq",
        "-o",
        str(folder / "of"),
    ]


def opened_by_script(folder: Path, house: Path) -> dict[str, set[str]]:
    """Files below results that each script opened to read, relative to the house."""
    found: dict[str, set[str]] = defaultdict(set)
    for trace in folder.iterdir():
        script, reads = "", set()
        for line in trace.read_text(errors="replace").splitlines():
            if not (match := _OPENED.match(line)):
                continue
            path, flags = match.groups()
            if not script and (named := _SCRIPT.search(path)):
                script = named.group(1)
            if "O_WRONLY" in flags or "O_CREAT" in flags or "O_DIRECTORY" in flags:
                continue
            name = path.removeprefix(f"{house}/")
            if name.startswith("results/"):
                reads.add(name)
        if script:
            found[script] |= reads
    return found
