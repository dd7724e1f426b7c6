"""CPU time of the plan and of the dry run of a model that is only described, without weights.

    PYTHONPATH=workflow_scripts python benchmarks/dry_runs.py

`wide70` has 70 layers, d_model 8,192, d_sae 131,072 and 10^9 tokens. Its dry run names one store
per job and layer, so its time depends on `activations.rows_per_job`. A second table gives the plan
of each model as `make status` computes it: its hours are computed from assumed speeds of a GPU.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import ROOT, show

PARTS = ("Snakefile", "rules", "envs", "profiles", "config", "workflow_scripts")
WIDE = {
    "source": {"kind": "hub", "id": "example/wide70", "revision": "0" * 40},
    "dimensions": {
        "n_layers": 70,
        "d_model": 8192,
        "max_position_embeddings": 4096,
        "vocab_size": 128_256,
    },
    "corpus": {"tokens": 1_000_000_000},
    "activations": {"layers": "all", "storage": "int8s", "rows_per_job": 1 << 24},
    "sae": {"d_sae": 131_072, "epochs": 1},
}
MODELS = ("gpt2-small", "gpt2-medium", "wide70")
COLUMNS = ("model", "layers", "extraction jobs", "jobs", "plan, CPU s", "dry run, CPU s", "peak MB")
PLAN = (
    "model",
    "waves",
    "TB of one layer",
    "TB of activations at once",
    "forward passes",
    "extraction, GPU hours",
    "SAE training, GPU hours",
    "bottleneck of training",
)


def copied(folder: Path) -> Path:
    """A workflow folder with the described model."""
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy2(source, folder / name)
    file = folder / "config" / "models" / "wide70.yaml"
    file.write_text(yaml.safe_dump(WIDE), encoding="utf-8")
    return folder


def called(folder: Path, *words: str) -> tuple[str, float]:
    """Output of `python -m WORDS` in the folder, and its CPU seconds.

    Raises:
        SystemExit: it failed.
    """
    before = _children()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "workflow_scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Plan and dry-run each model, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    given = parser.parse_args()
    times: list[list[Any]] = []
    plans: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = copied(Path(name))
        for model in given.models:
            config = ("--config", f"model={model}")
            output, planned = called(folder, "ghosttrack.cli.status", *config, "--json")
            found = json.loads(output)[model]
            plan, phases = found["plan"], found["phases"]
            profile = ("--profile", "profiles/local")
            output, dry = called(folder, "snakemake", "-n", "-q", "rules", *profile, *config)
            (total,) = re.findall(r"^total +(\d+)$", output, re.MULTILINE)[:1]
            layers = sum(map(len, plan["waves"]))
            jobs = phases["extract_activations"]["total"]
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
            times.append([model, layers, jobs, int(total), planned, dry, peak])
            effort = plan["effort"]
            plans.append(
                [
                    model,
                    len(plan["waves"]),
                    plan["layer_bytes"] / 1e12,
                    plan["peak_bytes"] / 1e12,
                    float(plan["forward_passes"]),
                    float(effort["extract_activations"]["gpu_hours"]),
                    float(effort["train_sae"]["gpu_hours"]),
                    effort["train_sae"]["bottleneck"],
                ]
            )
            show("plan and dry run", COLUMNS, times)
    show("plan, with assumed speeds", PLAN, plans, "plan")


if __name__ == "__main__":
    main()
