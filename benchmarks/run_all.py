"""Run the benchmarks, write their csv tables, and write the page that shows them.

    python benchmarks/run_all.py                  every part whose needs are met
    python benchmarks/run_all.py sae_step feeding these parts
    python benchmarks/run_all.py --minutes 3      the parts expected to take at most 3 CPU-minutes
    python benchmarks/run_all.py --list           the parts, what they need, and what is missing

The tables are benchmarks/results/NAME.csv, with machine, versions, commit, date and command in each
row. A part that fails keeps the table of its last success; the exit code is then 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

import measure
import page
from parts import OTHERS, PARTS, PEERS, RESULTS, Part, missing

# Other projects, installed with the versions of the workflow.
PEER_PACKAGES = ("eai-sparsify", "dictionary-learning", "lm-polygraph")


def install_peers() -> None:
    """Make benchmarks/.venv with the other projects, unless it is whole.

    It sees the packages of the environment that runs this script, which are not installed twice.
    """
    ready = PEERS / ".installed"
    if ready.exists():
        return
    shutil.rmtree(PEERS, ignore_errors=True)
    venv.create(PEERS, with_pip=True)
    (site,) = PEERS.glob("lib/python*/site-packages")
    own = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "workflow.pth").write_text(own + "\n", encoding="utf-8")
    envs = measure.ROOT / "envs"
    pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "-q", "--no-compile"]
    subprocess.run([*pip, "-r", str(envs / "saelens.txt")], check=True)
    for package in PEER_PACKAGES:
        found = subprocess.run([*pip, "-c", str(envs / "requirements.txt"), package], check=False)
        if found.returncode:
            sys.stderr.write(f"{package} does not install beside the workflow: left out\n")
    # Nothing here needs it, and it may be built for another torch.
    subprocess.run([*pip[:3], "uninstall", "-q", "-y", "torchvision"], check=True)
    ready.touch()


def run(part: Part) -> bool:
    """Run one part into a temporary folder; keep its tables if it succeeds."""
    script, *arguments = part.with_peers()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            measure.FOLDER: folder,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(
                str(measure.ROOT / name) for name in ("workflow_scripts", "tests/unit", "")
            ),
        }
        began = time.monotonic()
        command = [sys.executable, f"benchmarks/{script}", *arguments]
        code = subprocess.run(command, cwd=measure.ROOT, env=environment, check=False).returncode
        made = sorted(Path(folder).glob("*.csv"))
        sys.stdout.write(
            f"\n{part.name}: exit code {code}, {time.monotonic() - began:.0f} s, "
            f"{', '.join(path.name for path in made) or 'no table'}\n"
        )
        if code or not made:
            return False
        RESULTS.mkdir(exist_ok=True)
        for path in made:
            shutil.copy(path, RESULTS / path.name)
    return True


def chosen_parts(names: Sequence[str], minutes: float | None) -> list[Part]:
    """The parts of these names, or all of them; only those of at most `minutes`."""
    parts = [part for part in (*PARTS, *OTHERS) if part.name in names] if names else list(PARTS)
    return [part for part in parts if minutes is None or part.minutes <= minutes]


def main() -> None:
    """Run the parts, write the page, and exit with 1 if a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [part.name for part in (*PARTS, *OTHERS)]
    parser.add_argument("parts", nargs="*", choices=[*every, []], metavar="PART")
    parser.add_argument("--minutes", type=float, help="only parts of at most so many CPU-minutes")
    parser.add_argument("--list", action="store_true", help="only show the parts")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    given = parser.parse_args()
    parts = chosen_parts(given.parts, given.minutes)
    failed = []
    if not (given.list or given.page):
        if any("peers" in part.needs for part in parts):
            install_peers()
        for part in parts:
            if lacking := missing(part):
                sys.stdout.write(f"{part.name}: not run, it needs {'; '.join(lacking)}\n")
            elif not run(part):
                failed.append(part.name)
    if given.list:
        rows = [
            [part.name, part.minutes, " ".join(part.with_peers()), "; ".join(missing(part))]
            for part in parts
        ]
        measure.show("Parts", ["part", "CPU-minutes", "command", "missing"], rows, None)
        return
    page.write()
    if failed:
        sys.exit(f"these parts failed, their tables are as before: {', '.join(failed)}")


if __name__ == "__main__":
    main()
