"""Random faults in complete runs of a tiny model: `python benchmarks/random_faults.py --faults 30`.

Each round starts from downloaded inputs. A few faults strike one after the other, at random
moments. Then the run is repeated until it is complete. An error that stops a run must name a
remedy, and the remedy must work when it is followed literally. At the end, every result must be
byte for byte that of a run without faults, and no folder may ever have had two writers. No Slurm is
needed.

Faults: a job is killed (SIGKILL), preempted (SIGTERM) or out of memory; Snakemake is killed and its
jobs continue; no file above some 10 kB can be written (a full quota); a result or a file of a store
is lost.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from measure import show

from ghosttrack.planning import orphans
from ghosttrack.runtime import lock_log

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "envs", "profiles", "config", "workflow_scripts")
MODEL = "tiny-gpt2"
# Two extraction jobs and five layers, slowed down so that faults strike during the work and not
# only during imports.
SETTINGS = [f"model={MODEL}", "dimensions={n_layers: 5}"]
SLOW = {"job": "*", "kind": "slow", "seconds": 0.03}
# Error texts whose remedy is to run the same command again. The last is Snakemake's, followed by
# the file.
AGAIN = ("run again", "run the same command again", "Missing files after")


class FinishedRun(NamedTuple):
    """Result of one command."""

    code: int  # exit code
    text: str  # stdout and stderr
    seconds: float


class Round:
    """The workflow folder of one round, its current run, and the random generator."""

    run: "subprocess.Popen[str]"

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.results, self.chance = folder, folder / "results" / MODEL, chance

    def start(self, faults: list[dict[str, object]], largest: int = 0) -> None:
        """Start a run like `make run`; with `largest`, no process can write a longer file."""

        def limit() -> None:
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "workflow_scripts"),
            "GHOSTTRACK_FAULTS": json.dumps([SLOW, *faults]),
        }
        screen = (self.folder / "screen").open("w")
        self.began = time.monotonic()
        self.run = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ghosttrack.cli.launch",
                "--profile",
                "profiles/local",
                "--resources",
                "gpu=2",
                "--cores",
                "2",
                "--set-resources",
                "train_sae:checkpoint_seconds=0",
                "--config",
                *SETTINGS,
                "--until",
                "train_sae",
                "--",
                "saes",
            ],
            cwd=self.folder,
            env=environment,
            stdout=screen,
            stderr=screen,
            text=True,
            preexec_fn=limit,
        )

    def end(self) -> FinishedRun:
        """Wait for the run."""
        code = self.run.wait(timeout=900)
        return FinishedRun(
            code, (self.folder / "screen").read_text(), time.monotonic() - self.began
        )

    def orphans(self, choice: str) -> int:
        """Exit code of `make orphans` with --wait or --cancel."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "workflow_scripts")}
        return subprocess.run(
            [sys.executable, "-m", orphans.__name__, choice],
            cwd=self.folder,
            env=environment,
            check=False,
            capture_output=True,
        ).returncode

    def contents(self) -> dict[str, bytes]:
        """The content of every result by name, without logs, timings and state."""
        return {
            str(path.relative_to(self.results)): path.read_bytes()
            for path in sorted(self.results.rglob("*"))
            if path.is_file()
            and path.relative_to(self.results).parts[0] not in ("logs", "benchmarks", "state")
            and not path.name.startswith(".snakemake")
        }

    def jobs(self) -> list[int]:
        """Process ids of the running jobs."""
        return [process.pid for process in orphans.job_processes(self.folder)]


# ---- faults. Each strikes a running workflow and returns what it did, or "" if it found no target.
def kill_a_job(round_: Round) -> str:
    """SIGKILL, as from the kernel when memory is exhausted."""
    return _signal(round_, signal.SIGKILL)


def preempt_a_job(round_: Round) -> str:
    """SIGTERM, as from a scheduler that preempts a job."""
    return _signal(round_, signal.SIGTERM)


def _signal(round_: Round, number: signal.Signals) -> str:
    if not (jobs := round_.jobs()):
        return ""
    os.kill(chosen := round_.chance.choice(jobs), number)
    return f"{number.name} to process {chosen}"


def kill_snakemake(round_: Round) -> str:
    """SIGKILL to Snakemake alone: its jobs continue."""
    # `launch` has one child, Snakemake. Both are killed, as when a terminal closes.
    children = subprocess.run(
        ["pgrep", "-P", str(round_.run.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in [int(child) for child in children] + [round_.run.pid]:
        os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to Snakemake, {len(round_.jobs())} jobs continued"


def lose_a_file(round_: Round) -> str:
    """Delete a random file of the results or of an unfinished store."""
    files = [
        path
        for path in sorted(round_.results.rglob("*"))
        if path.is_file()
        and path.relative_to(round_.results).parts[0]
        in ("activations", "saes", "state", "corpus", "model")
    ]
    if not files:
        return ""
    path = round_.chance.choice(files)
    path.unlink(missing_ok=True)
    return f"lost {path.relative_to(round_.results)}"


DURING: list[Callable[[Round], str]] = [kill_a_job, preempt_a_job, kill_snakemake, lose_a_file]


def follow_remedy(round_: Round, said: str) -> str:
    """Do what the error of a stopped run asks for; return what was done, or "" without a remedy."""
    if "make orphans ARGS=--cancel" in said:
        return "orphans cancelled" if round_.orphans("--cancel") == 0 else ""
    done = []
    for line in said.splitlines():
        before, word, after = line.partition("delete ")
        if " ERROR " not in line or not word:
            continue
        named = (
            re.findall(r"results/[\w./-]*\w", after.split("then:")[0])
            or re.findall(r"results/[\w./-]*\w", before)[:1]
        )
        for path in (round_.folder / name for name in named):
            whole = path.parent if after.startswith("its directory") else path
            if whole.is_dir():
                shutil.rmtree(whole)
            else:
                whole.unlink(missing_ok=True)
            done.append(f"deleted {whole.relative_to(round_.results)}")
    if done:
        return ", ".join(dict.fromkeys(done))
    return "run again" if any(words in said for words in AGAIN) else ""


def strike(round_: Round, faults: int, seconds: float) -> list[list[str]]:
    """Runs with one fault each, at a moment within `seconds`.

    Returns a row per fault: the fault, its effect, how the run ended, and the remedy.
    """
    rows, chance = [], round_.chance
    for _ in range(faults):
        at = chance.randrange(len(DURING) + 2)
        if at == len(DURING):
            largest = chance.choice(
                [40_000, 80_000, 150_000]
            )  # Snakemake copies the rule files, of up to 25 kB
            name, did = "quota", f"no file above {largest // 1000} kB"
            round_.start([], largest)
        elif at > len(DURING):
            layer = chance.randrange(5)
            name, did = "memory", f"training of layer {layer}"
            round_.start(
                [
                    {
                        "job": f"*/layer_{layer:02d}",
                        "kind": "out_of_memory",
                        "after": chance.randrange(16_000),
                    }
                ]
            )
        else:
            fault = DURING[at]
            name, did = fault.__name__, ""
            round_.start([])
            moment = time.monotonic() + chance.uniform(2.0, seconds)
            while round_.run.poll() is None and time.monotonic() < moment:
                time.sleep(0.2)
            while round_.run.poll() is None and not (did := fault(round_)):
                time.sleep(0.2)
        finished = round_.end()
        if (
            finished.code < 0
        ):  # killed; one time in three the next run starts at once and has to refuse
            choice = chance.choice(["--wait", "--cancel", ""])
            remedy = f"orphans {choice}" if choice and round_.orphans(choice) == 0 else "left alone"
        else:
            remedy = follow_remedy(round_, finished.text) if finished.code else ""
            if finished.code and not remedy:
                raise SystemExit(
                    f"{round_.folder}: {name} ({did}): stopped without a remedy\n{finished.text[-5000:]}"
                )
        rows.append(
            [
                name if did else f"({name})",
                did or "too late or refused",
                f"exit {finished.code}",
                remedy,
            ]
        )
    return rows


def complete(round_: Round) -> list[list[str]]:
    """Repeat runs without faults until one succeeds; return a row for each that did not."""
    rows: list[list[str]] = []
    for _ in range(6):
        round_.start([])
        finished = round_.end()
        if finished.code == 0:
            return rows
        rows.append(["(again)", "", f"exit {finished.code}", follow_remedy(round_, finished.text)])
        if not rows[-1][-1]:
            break
    raise SystemExit(
        f"{round_.folder}: stopped without a remedy, or not complete after {len(rows)} runs\n{finished.text[-5000:]}"
    )


def judge(round_: Round, reference: dict[str, bytes]) -> list[list[str]]:
    """Compare every result with the undisturbed run, and check the lock journal for two writers."""
    results, rows = round_.contents(), []
    wrong = {
        name
        for name in reference.keys() | results.keys()
        if reference.get(name) != results.get(name)
    }
    # A file of a store that was lost after its last use: no run reads it, verify_activations
    # reports it.
    if lost := {name for name in wrong if name not in results and ".zarr/" in name}:
        rows.append(
            ["(unread)", ", ".join(sorted(lost)), "complete", "verify_activations reports it"]
        )
    if wrong - lost:
        raise SystemExit(
            f"{round_.folder}: these results differ from an undisturbed run: {', '.join(sorted(wrong - lost))}"
        )
    if doubled := list(lock_log.overlaps(lock_log.read(round_.results / "logs" / lock_log.NAME))):
        raise SystemExit(f"{round_.folder}: two writers at once: {doubled}")
    return rows


def main() -> None:
    """Make the reference run, then rounds until the number of faults is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=30, help="total number of faults")
    parser.add_argument("--each", type=int, default=5, help="faults per round")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    folder = Path(tempfile.mkdtemp(prefix="random-faults-"))
    whole = Round(folder / "whole", chance)
    whole.folder.mkdir()
    for name in PARTS:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            source, whole.folder / name, ignore=ignore
        ) if source.is_dir() else shutil.copy2(source, whole.folder / name)
    whole.start([])
    finished = whole.end()
    if finished.code:
        raise SystemExit(finished.text[-5000:])
    reference = whole.contents()
    template = folder / "fetched"
    shutil.copytree(whole.folder, template, symlinks=True)
    for name in ("activations", "saes", "state", "logs"):
        shutil.rmtree(template / "results" / MODEL / name, ignore_errors=True)
    rows: list[list[str]] = []
    number = 0
    while sum(not row[0].startswith("(") for row in rows) < chosen.faults:
        number += 1
        round_ = Round(
            Path(shutil.copytree(template, folder / f"round_{number:02d}", symlinks=True)), chance
        )
        made = [
            *strike(round_, chosen.each, 0.8 * finished.seconds),
            *complete(round_),
            *judge(round_, reference),
        ]
        rows += made
        shutil.rmtree(round_.folder)
        show(f"round {number}", ["fault", "effect", "end of the run", "remedy"], made, None)
    counted = Counter(row[0] for row in rows if not row[0].startswith("("))
    show(
        f"{sum(counted.values())} faults in {number} rounds: every round complete and identical, never two writers",
        ["fault", "times"],
        [[name, str(times)] for name, times in sorted(counted.items())],
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
