"""Random faults over whole runs of a tiny model: `python benchmarks/random_faults.py --faults 30`. Needs no Slurm.

Each round starts from fetched inputs, meets a few faults, one after the other, each at a random moment, and is then run
until it is complete. Where a run stops, its error must name the remedy, and the remedy, followed to the word, must
mend it. In the end every result is byte for byte that of a run without faults, and no folder ever had two writers.

Faults: a job is killed (SIGKILL), preempted (SIGTERM), or takes too much memory; Snakemake is killed and its jobs run
on; nothing larger than some 10 kB can be written any more (a full quota); a result or a file inside a store is lost.
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
# Two extraction jobs, five layers; slow enough that faults strike at work, not only at imports.
SETTINGS = [f"model={MODEL}", "dimensions={n_layers: 5}"]
SLOW = {"job": "*", "kind": "slow", "seconds": 0.03}
# What an error says when the same command again is all that it needs; the last is Snakemake's, with the file's name.
AGAIN = ("run again", "run the same command again", "Missing files after")


class Ended(NamedTuple):
    """One command: its exit code, what it said, and the seconds it took."""

    code: int
    text: str
    seconds: float


class House:
    """A workflow folder of one round, the run that works in it, and what is left to chance."""

    run: "subprocess.Popen[str]"

    def __init__(self, place: Path, chance: random.Random) -> None:
        self.place, self.results, self.chance = place, place / "results" / MODEL, chance

    def start(self, faults: list[dict[str, object]], largest: int = 0) -> None:
        """Begin a run, as `make run` does; with `largest`, no process of it can write a longer file."""

        def limit() -> None:
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

        environment = {
            **os.environ,
            "PYTHONPATH": str(self.place / "workflow_scripts"),
            "GHOSTTRACK_FAULTS": json.dumps([SLOW, *faults]),
        }
        screen = (self.place / "screen").open("w")
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
            cwd=self.place,
            env=environment,
            stdout=screen,
            stderr=screen,
            text=True,
            preexec_fn=limit,
        )

    def end(self) -> Ended:
        """Wait for the run."""
        code = self.run.wait(timeout=900)
        return Ended(code, (self.place / "screen").read_text(), time.monotonic() - self.began)

    def command(self, module: str, *words: str) -> int:
        """Exit code of `python -m ghosttrack.MODULE WORDS`."""
        environment = {**os.environ, "PYTHONPATH": str(self.place / "workflow_scripts")}
        return subprocess.run(
            [sys.executable, "-m", f"ghosttrack.{module}", *words],
            cwd=self.place,
            env=environment,
            check=False,
            capture_output=True,
        ).returncode

    def contents(self) -> dict[str, bytes]:
        """Every result by name; logs, timings and progress are none."""
        return {
            str(path.relative_to(self.results)): path.read_bytes()
            for path in sorted(self.results.rglob("*"))
            if path.is_file()
            and path.relative_to(self.results).parts[0] not in ("logs", "benchmarks", "state")
            and not path.name.startswith(".snakemake")
        }

    def jobs(self) -> list[int]:
        """Processes of jobs that work now."""
        return [process.pid for process in orphans.job_processes(self.place)]


# ---- faults. Each is called while a run works, and says what it did; "" if there was nothing to do it to.
def kill_a_job(house: House) -> str:
    """SIGKILL, as the kernel does when memory is out."""
    return _signal(house, signal.SIGKILL)


def preempt_a_job(house: House) -> str:
    """SIGTERM, as a scheduler does before it takes the node."""
    return _signal(house, signal.SIGTERM)


def _signal(house: House, number: signal.Signals) -> str:
    if not (jobs := house.jobs()):
        return ""
    os.kill(chosen := house.chance.choice(jobs), number)
    return f"{number.name} to process {chosen}"


def kill_snakemake(house: House) -> str:
    """SIGKILL to Snakemake alone: its jobs run on."""
    # `launch` has one child, Snakemake; both go, as with a closed terminal.
    children = subprocess.run(
        ["pgrep", "-P", str(house.run.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in [int(child) for child in children] + [house.run.pid]:
        os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to Snakemake, {len(house.jobs())} jobs ran on"


def lose_a_file(house: House) -> str:
    """Any one file of the results or of a half-written store."""
    files = [
        path
        for path in sorted(house.results.rglob("*"))
        if path.is_file()
        and path.relative_to(house.results).parts[0]
        in ("activations", "saes", "state", "corpus", "model")
    ]
    if not files:
        return ""
    path = house.chance.choice(files)
    path.unlink(missing_ok=True)
    return f"lost {path.relative_to(house.results)}"


DURING: list[Callable[[House], str]] = [kill_a_job, preempt_a_job, kill_snakemake, lose_a_file]


def follow_remedy(house: House, said: str) -> str:
    """Do what the error of a stopped run asks for; what that was, "" if it asks for nothing."""
    if "make orphans ARGS=--cancel" in said:
        return "orphans cancelled" if house.command("orphans", "--cancel") == 0 else ""
    done = []
    for line in said.splitlines():
        before, word, after = line.partition("delete ")
        if " ERROR " not in line or not word:
            continue
        named = (
            re.findall(r"results/[\w./-]*\w", after.split("then:")[0])
            or re.findall(r"results/[\w./-]*\w", before)[:1]
        )
        for path in (house.place / name for name in named):
            whole = path.parent if after.startswith("its directory") else path
            if whole.is_dir():
                shutil.rmtree(whole)
            else:
                whole.unlink(missing_ok=True)
            done.append(f"deleted {whole.relative_to(house.results)}")
    if done:
        return ", ".join(dict.fromkeys(done))
    return "run again" if any(words in said for words in AGAIN) else ""


def strike(house: House, faults: int, seconds: float) -> list[list[str]]:
    """Runs with one fault each, at a moment within `seconds`; a row (fault, what it did, how the run ended, what mended it) each."""
    rows, chance = [], house.chance
    for _ in range(faults):
        at = chance.randrange(len(DURING) + 2)
        if at == len(DURING):
            largest = chance.choice(
                [40_000, 80_000, 150_000]
            )  # Snakemake copies the rules, the longest of 25 kB
            name, did = "quota", f"no file above {largest // 1000} kB"
            house.start([], largest)
        elif at > len(DURING):
            layer = chance.randrange(5)
            name, did = "memory", f"training of layer {layer}"
            house.start(
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
            house.start([])
            moment = time.monotonic() + chance.uniform(2.0, seconds)
            while house.run.poll() is None and time.monotonic() < moment:
                time.sleep(0.2)
            while house.run.poll() is None and not (did := fault(house)):
                time.sleep(0.2)
        ended = house.end()
        if (
            ended.code < 0
        ):  # killed; one time in three the next run is simply started, and has to refuse
            choice = chance.choice(["--wait", "--cancel", ""])
            mended = (
                f"orphans {choice}"
                if choice and house.command("orphans", choice) == 0
                else "left alone"
            )
        else:
            mended = follow_remedy(house, ended.text) if ended.code else ""
            if ended.code and not mended:
                raise SystemExit(
                    f"{house.place}: {name} ({did}): stopped without a remedy\n{ended.text[-5000:]}"
                )
        rows.append(
            [
                name if did else f"({name})",
                did or "too late, or refused",
                f"exit {ended.code}",
                mended,
            ]
        )
    return rows


def complete(house: House) -> list[list[str]]:
    """Runs without faults until one ends well; a row for each that did not."""
    rows: list[list[str]] = []
    for _ in range(6):
        house.start([])
        ended = house.end()
        if ended.code == 0:
            return rows
        rows.append(["(again)", "", f"exit {ended.code}", follow_remedy(house, ended.text)])
        if not rows[-1][-1]:
            break
    raise SystemExit(
        f"{house.place}: stopped without a remedy, or not complete after {len(rows)} runs\n{ended.text[-5000:]}"
    )


def judge(house: House, reference: dict[str, bytes]) -> list[list[str]]:
    """Nothing wrong may be reported as done: every result against the undisturbed run, and the locks' journal."""
    found, rows = house.contents(), []
    wrong = {
        name for name in reference.keys() | found.keys() if reference.get(name) != found.get(name)
    }
    # A part of a store that was lost when nothing needed it any more: no run reads it, verify_activations names it.
    if lost := {name for name in wrong if name not in found and ".zarr/" in name}:
        rows.append(
            ["(unread)", ", ".join(sorted(lost)), "complete", "verify_activations names it"]
        )
    if wrong - lost:
        raise SystemExit(
            f"{house.place}: not those of an undisturbed run: {', '.join(sorted(wrong - lost))}"
        )
    if doubled := list(lock_log.overlaps(lock_log.read(house.results / "logs" / lock_log.NAME))):
        raise SystemExit(f"{house.place}: two writers at once: {doubled}")
    return rows


def main() -> None:
    """Make the reference, then rounds until there were enough faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=30, help="in all")
    parser.add_argument("--each", type=int, default=5, help="faults a round")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    folder = Path(tempfile.mkdtemp(prefix="random-faults-"))
    whole = House(folder / "whole", chance)
    whole.place.mkdir()
    for name in PARTS:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            source, whole.place / name, ignore=ignore
        ) if source.is_dir() else shutil.copy2(source, whole.place / name)
    whole.start([])
    ended = whole.end()
    if ended.code:
        raise SystemExit(ended.text[-5000:])
    reference = whole.contents()
    template = folder / "fetched"
    shutil.copytree(whole.place, template, symlinks=True)
    for name in ("activations", "saes", "state", "logs"):
        shutil.rmtree(template / "results" / MODEL / name, ignore_errors=True)
    rows: list[list[str]] = []
    number = 0
    while sum(not row[0].startswith("(") for row in rows) < chosen.faults:
        number += 1
        house = House(
            Path(shutil.copytree(template, folder / f"round_{number:02d}", symlinks=True)), chance
        )
        made = [
            *strike(house, chosen.each, 0.8 * ended.seconds),
            *complete(house),
            *judge(house, reference),
        ]
        rows += made
        shutil.rmtree(house.place)
        show(f"round {number}", ["fault", "what", "the run ended", "mended by"], made)
    counted = Counter(row[0] for row in rows if not row[0].startswith("("))
    show(
        f"{sum(counted.values())} faults in {number} rounds: every round complete and identical, never two writers",
        ["fault", "times"],
        [[name, str(times)] for name, times in sorted(counted.items())],
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
