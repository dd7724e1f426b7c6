"""A workflow folder on a test Slurm: run Snakemake with faults, follow its jobs, compare its SAEs with undisturbed ones."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ghosttrack.planning.configuration import load
from ghosttrack.runtime import files, lock_log
from tests.conftest import ROOT, copy_house, snakemake
from tests.slurm.cluster import Cluster

MODEL = "tiny-gpt2"
# One extraction job, and a checkpoint at every step: the runs are short.
ONE_SHARD = "activations={rows_per_job: 8192}"
# As on a site whose GPUs have a type and a partition of their own.
SITE = "plan={gpu_partition: accelerated, gpu_model: a100}"
SHORT = ("--set-resources", "train_sae:checkpoint_seconds=0")


@contextmanager
def temporary_cluster(gpus: int) -> Iterator[Cluster]:
    """A test Slurm in a folder with a short name: sockets allow no long ones."""
    folder = Path(tempfile.mkdtemp(prefix="gt-slurm-"))
    try:
        with Cluster(folder, gpus=gpus) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SlurmHouse:
    """A copy of the workflow whose commands go to one test Slurm."""

    def __init__(self, place: Path, cluster: Cluster, template: Path | None = None) -> None:
        """`template`: another house, to be copied with its results."""
        self.cluster = cluster
        self.place = (
            Path(shutil.copytree(template, place, symlinks=True)) if template else copy_house(place)
        )
        self.results = self.place / "results" / MODEL
        self.runs: list[subprocess.Popen[bytes]] = []
        profile = self.place / "profiles" / "slurm" / "config.yaml"
        # Short waits, because the jobs are short.
        profile.write_text(re.sub(r"(status-checks:) \d+", r"\1 2", profile.read_text()))

    def environment(self, faults: tuple[dict[str, Any], ...] = ()) -> dict[str, str]:
        """What the workflow's commands need, with `faults` on demand."""
        return {
            "PYTHONPATH": str(self.place / "workflow_scripts"),
            "GHOSTTRACK_FAULTS": json.dumps(faults) if faults else "",
            **self.cluster.environment,
        }

    def words(
        self, *more: str, target: tuple[str, ...] = ("--until", "train_sae", "--", "saes")
    ) -> tuple[str, ...]:
        """The documented command, with short checkpoints, up to the SAEs."""
        return (
            "--profile",
            "slurm",
            *SHORT,
            *more,
            "--config",
            f"model={MODEL}",
            ONE_SHARD,
            SITE,
            *target,
        )

    def run(
        self, *more: str, faults: tuple[dict[str, Any], ...] = (), **keys: Any
    ) -> "subprocess.CompletedProcess[str]":
        """The command to its end."""
        return snakemake(
            self.place, *self.words(*more, **keys), timeout=900, **self.environment(faults)
        )

    def start(
        self, *more: str, faults: tuple[dict[str, Any], ...] = (), **keys: Any
    ) -> "subprocess.Popen[bytes]":
        """The command in the background; its output goes to the file `screen`."""
        with (self.place / "screen").open("w") as screen:
            run = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *self.words(*more, **keys)],
                cwd=self.place,
                env={**os.environ, **self.environment(faults)},
                stdout=screen,
                stderr=screen,
            )
        self.runs.append(run)
        return run

    def stop(self) -> None:
        """End runs that a failed test left behind, and what no cgroup ended of jobs that were taken from their node."""
        for run in self.runs:
            run.kill()
            run.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()) == self.place:
                    process.kill()

    def command(self, module: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """`python -m ghosttrack.MODULE WORDS` in the folder."""
        return subprocess.run(
            [sys.executable, "-m", f"ghosttrack.{module}", *words],
            cwd=self.place,
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def events(self) -> list[lock_log.Event]:
        """The locks' journal."""
        return lock_log.read(self.results / "logs" / lock_log.NAME)

    def training(self) -> set[str]:
        """Layers whose progress folder is locked now."""
        folders = (self.results / "state" / "train_sae").glob("layer_*")
        return {folder.name for folder in folders if files.locked(folder)}

    def said(self, layer: int) -> str:
        """All that the training jobs of a layer have said, in order: Snakemake keeps the last log, Slurm those of failed jobs."""
        folder = (
            self.place / ".snakemake" / "slurm_logs" / "rule_train_sae" / f"{MODEL}_{layer:02d}"
        )
        logs = [
            *sorted(folder.glob("*.log"), key=lambda path: int(path.stem)),
            self.results / "logs" / "train_sae" / f"layer_{layer:02d}.log",
        ]
        return "".join(path.read_text() for path in logs if path.exists())

    def submitted(self, rule: str, start: int = 0) -> list[str]:
        """sbatch calls for a rule's jobs, without the wrapped command, from call number `start` on."""
        calls = [
            " ".join(word for word in words if not word.startswith("--wrap"))
            for words in self.cluster.submissions()
        ]
        return [
            call
            for call in calls[start:]
            if f"--comment rule_{rule}" in call and f"-D {self.place} " in f"{call} "
        ]

    def trained(self) -> set[int]:
        """Layers with weights."""
        return {
            int(path.parent.name[-2:])
            for path in self.results.glob("saes/layer_*/sae_weights.safetensors")
        }

    def saes(self) -> dict[str, bytes]:
        """Every file of every SAE."""
        return {
            str(path.relative_to(self.results / "saes")): path.read_bytes()
            for path in sorted(self.results.glob("saes/*/*"))
        }

    def undisturbed(self, place: Path) -> dict[str, bytes]:
        """The same layers trained here, one after the other, from the same activations, without Slurm, stop or fault."""
        from sae import train_sae

        for folder in sorted((self.results / "saes").glob("layer_*")):
            cfg, target = json.loads((folder / "cfg.json").read_text()), place / folder.name
            layer = int(folder.name[-2:])
            stores = sorted((self.results / "activations" / folder.name).glob("*.zarr"))
            train_sae.main(
                stores=stores,
                manifests=[store.with_suffix(".json") for store in stores],
                model_source=self.results / "model" / "source.json",
                weights=target / "sae_weights.safetensors",
                cfg=target / "cfg.json",
                history=target / "history.csv",
                sae=load({"model": MODEL}, ROOT / "config")[MODEL].sae,
                seed=0,
                layer=layer,
                threads=1,
                warm_start_layer=[],
                resident_mb=1536,
                micro_batch=4096,
                state=place / "state" / folder.name,
                model=MODEL,
                training_digest=cfg["metadata"]["training_digest"],
            )
        return {
            f"{path.parent.name}/{path.name}": path.read_bytes()
            for path in sorted(place.glob("layer_*/*"))
        }

    def extracted(self, place: Path) -> Iterator[tuple[Any, Any]]:
        """Every layer's activations as they stand and as extracted here at the first attempt's batch, float16 (rows, d_model)."""
        import zarr

        from extract import extract_activations

        stores = sorted((self.results / "activations").glob("layer_*/*.zarr"))
        again = [place / store.relative_to(self.results) for store in stores]
        corpus, settings = self.results / "corpus", load({"model": MODEL}, ROOT / "config")[MODEL]
        extract_activations.main(
            train=corpus / "train.zarr",
            train_manifest=corpus / "train.json",
            weights=self.results / "model" / "model.safetensors",
            check=self.results / "model_check.json",
            stores=again,
            manifests=[store.with_suffix(".json") for store in again],
            site=settings.activations.site,
            storage=settings.activations.storage,
            contexts_per_shard=settings.contexts,
            shard=0,
            batch=16,
            threads=1,
            code="",
        )
        for pair in zip(stores, again, strict=True):
            one, other = (
                zarr.open_array(store / settings.activations.site, mode="r")[:] for store in pair
            )
            yield one, other


def until(
    seconds: float, ready: Callable[[], Any], what: str, said: Callable[[], str] = str
) -> None:
    """Return once `ready()`; fail with what was waited for, and what was said meanwhile."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {what}\n{said()[-4000:]}")
        time.sleep(0.1)


def keep_screen(text: str) -> None:
    """With GHOSTTRACK_SCREENS set, docs/howto/slurm.md shows `text` from now on: the part from its `disk now` line."""
    page = ROOT / "docs" / "howto" / "slurm.md"
    before, begin, rest = page.read_text().partition("<!-- status: begin -->\n")
    assert begin, f"{page} has no place for the screen"
    if os.environ.get("GHOSTTRACK_SCREENS"):
        lines = text.splitlines()
        shown = lines[next(number for number, line in enumerate(lines) if "disk now" in line) :]
        screen = "\n".join(["```text", lines[0], *shown, "```", ""])
        page.write_text(f"{before}{begin}{screen}{rest[rest.index('<!-- status: end -->') :]}")


def memory_asked(call: str) -> int:
    """MB that an sbatch call asks for."""
    (size,) = re.findall(r"--mem (\d+)", call)
    return int(size)


def most_at_once(events: list[lock_log.Event], part: str) -> int:
    """The largest number of folders with `part` in their name that were held at one time."""
    held: set[str] = set()
    most = 0
    for event in events:
        if part in event.folder and event.event == "acquired":
            held.add(event.folder)
        elif event.event == "released":
            held.discard(event.folder)
        most = max(most, len(held))
    return most
