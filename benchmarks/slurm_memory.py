"""A complete run of GPT-2 medium's full shape on the test Slurm: asked and peak memory by rule.

    PYTHONPATH=workflow_scripts:. python benchmarks/slurm_memory.py            # 24 layers, full width
    PYTHONPATH=workflow_scripts:. python benchmarks/slurm_memory.py --rehearse # 3 small layers

The model has random weights, written in the form of the hub's gpt2-medium: config.json,
model.safetensors without a prefix in its names, tokenizer. Its SAEs have 5,120 features and train
for one epoch on 20,000 tokens; the data sets are small. The test Slurm claims memory and does not
confine it, so the peak is what the job logged, or Snakemake sampled. The processes of Snakemake in
each Slurm job are sampled here, and their largest sum is added to the peak. Needs Slurm and munge.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import memory
import psutil
import yaml
from measure import show

from ghosttrack.report import costs
from tests.conftest import copy_house
from tests.slurm.cluster import Cluster, missing_tools

MODEL = "random-medium"
DATASETS = ("capitals", "element_symbol", "questions")
# Texts of each data set: the run is about memory, and texts cost most of its time.
TEXTS = 48
# Processes of Snakemake around the script of a Slurm job.
_NESTED = re.compile(r"snakemake.*--mode (remote|subprocess)")


class Shape(NamedTuple):
    """Size of a run."""

    layers: int
    d_model: int
    heads: int
    d_sae: int
    vocabulary: int
    tokens: int


FULL = Shape(24, 1024, 16, 5120, 50_257, 20_000)
REHEARSAL = Shape(3, 64, 4, 256, 6000, 4096)


def write_model(folder: Path, shape: Shape) -> None:
    """Write random weights with GPT-2's initialisation, and a tokenizer of the embedded texts."""
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    from ghosttrack.inputs.tiny import build_tokenizer

    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=1024,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["GPT2LMHeadModel"],
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    # The hub's file has the names of the model without a head.
    weights = {name: value.contiguous() for name, value in model.transformer.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def write_settings(house: Path, model: Path, shape: Shape) -> None:
    """Write the model's file and small data sets to the house."""
    settings = {
        "source": {"kind": "directory", "id": str(model)},
        "dimensions": {
            "n_layers": shape.layers,
            "d_model": shape.d_model,
            "max_position_embeddings": 1024,
            "vocab_size": shape.vocabulary,
        },
        "activations": {"layers": "all", "storage": "int8s", "rows_per_job": 10_240},
        "corpus": {
            "source": "embedded",
            "tokens": shape.tokens,
            "heldout_tokens": 2048,
            "context": 256,
        },
        "sae": {"d_sae": shape.d_sae, "k": 32, "epochs": 1, "batch": 1024},
        "datasets": list(DATASETS),
        "generation": {"max_new_tokens": 4, "questions": TEXTS, "samples": 1},
        "detection": {
            "folds": 3,
            "inner_folds": 2,
            "trees": 20,
            "pmi_prompts": 1,
            "audit": "report",
        },
        "evaluation": {"bootstrap": 200},
        # There is no GPU, so no libraries of one.
        "plan": {"device": "cpu"},
    }
    (house / "config" / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(settings))
    for name in DATASETS:
        path = house / "config" / "datasets" / f"{name}.yaml"
        path.write_text(f"{path.read_text()}max_examples: {TEXTS}\n")
    profile = house / "profiles" / "slurm" / "config.yaml"
    profile.write_text(re.sub(r"(status-checks:) \d+", r"\1 2", profile.read_text()))


@contextmanager
def sampled(house: Path, seconds: float = 0.5) -> Iterator[dict[int, tuple[float, int]]]:
    """Sample the processes of Snakemake in the Slurm jobs of a house: MB and number by job.

    Pages that processes share count once (PSS): a fork would double them.
    """
    largest: dict[int, tuple[float, int]] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(seconds):
            now: dict[int, list[float]] = {}
            for process in psutil.process_iter(["cmdline"]):
                with suppress(psutil.Error):
                    words = " ".join(process.info["cmdline"] or ())
                    if _NESTED.search(words) and Path(process.cwd()) == house:
                        job = int(process.environ().get("SLURM_JOB_ID", 0))
                        now.setdefault(job, []).append(process.memory_full_info().pss / 1e6)
            for job, sizes in now.items():
                if sum(sizes) > largest.get(job, (0.0, 0))[0]:
                    largest[job] = (sum(sizes), len(sizes))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def submitted(cluster: Cluster) -> dict[str, float]:
    """Largest memory that jobs of each rule asked Slurm for, in MB."""
    asked: dict[str, float] = {}
    suffix = re.compile(rf"_{re.sub(r'[^A-Za-z0-9]', '_', MODEL)}(_wave_\d+)?$")
    for words in cluster.submissions():
        call = " ".join(word for word in words if not word.startswith("--wrap"))
        rule = re.search(r"--comment rule_(\w+?)(?:_wildcards_\S*)?(?: |$)", call)
        size = re.search(r"--mem (\d+)", call)
        if rule and size:
            name = suffix.sub("", rule[1])
            asked[name] = max(asked.get(name, 0.0), float(size[1]))
    return asked


def main() -> None:
    """Run, and print a table of asked and peak memory by rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="three small layers")
    parser.add_argument("--place", type=Path, help="keep the run here; default: a temporary folder")
    parser.add_argument("--cpus", type=int, default=2, help="jobs at once")
    parser.add_argument("--memory", type=int, default=20_000, help="MB of the test node")
    chosen = parser.parse_args()
    if missing := missing_tools():
        sys.exit(f"Slurm is not installed: {', '.join(missing)} missing")
    shape = REHEARSAL if chosen.rehearse else FULL
    place = chosen.place or Path(tempfile.mkdtemp(prefix="gt-memory-"))
    house = copy_house(place / "house")
    write_model(place / "model", shape)
    write_settings(house, place / "model", shape)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="gt-slurm-") as folder,
        Cluster(Path(folder), chosen.cpus, chosen.cpus, chosen.memory) as cluster,
        sampled(house) as nested,
    ):
        environment = {
            **os.environ,
            "PYTHONPATH": str(house / "workflow_scripts"),
            "OMP_NUM_THREADS": "1",
            **cluster.environment,
        }
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--config"]
        code = subprocess.run(
            [*command, f"model={MODEL}"], cwd=house, env=environment, check=False
        ).returncode
        asked = submitted(cluster)
        calls = len(cluster.submissions())
    results = house / "results" / MODEL
    around = max((size for size, _ in nested.values()), default=0.0)
    peaks = {rule: peak + around for rule, peak in memory.measured(results).items()}
    show(
        f"memory of {shape.layers} layers, d_model {shape.d_model}, d_sae {shape.d_sae} on Slurm, "
        f"with {around:,.0f} MB of Snakemake",
        ["rule", "asked MB", "peak MB", "asked / peak"],
        memory.table(asked, peaks),
    )
    seconds = [cost.cpu_seconds for cost in costs.of_jobs(results / "benchmarks")]
    cpu = sum(each for each in seconds if not math.isnan(each))
    sys.stdout.write(
        f"exit code {code}; {calls} Slurm jobs in {(time.monotonic() - started) / 60:.1f} minutes; "
        f"scripts took {cpu / 60:.1f} CPU-minutes\nthe run: {house}\n"
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
