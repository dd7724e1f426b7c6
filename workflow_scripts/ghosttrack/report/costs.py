"""What a run took: time and memory of its jobs from Snakemake's benchmark tables, and disk by kind of output.

Times differ from run to run, so all of this lies in benchmarks/ and none of it in the report, which two runs give byte for byte.
"""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.planning.run_state import PHASES

# Steps of the pipeline with their rules; a rule of no step is shown under the last.
STEPS = {
    "fetch": ("fetch_model", "fetch_corpus", "fetch_dataset", "fetch_questions"),
    "generate": ("generate_answers",),
    "extract": ("check_model", "extract_activations", "extract_heldout", "extract_examples"),
    "autoencoders": (
        "fetch_sae",
        "train_sae",
        "train_shared_sae",
        "evaluate_sae",
        "describe_features",
        "measure_answers",
        "sweep_sae",
        "draw_sweep",
    ),
    "track": ("find_neighbours", "cluster_features", "track_features", "measure_signals"),
    "detect": (
        "audit_dataset",
        "train_detectors",
        "evaluate_detectors",
        "save_detector",
        "check_explanations",
    ),
    "report": ("check_results", "check_claims", "draw_figures", "write_report", "write_explorer"),
    "on request": (),
}
# Kinds of output with what lies in the run's folder; files of the folder itself are pages and tables.
KINDS = {
    "model": ("model",),
    "training activations": ("activations",),
    "held-out activations": ("heldout",),
    "activations of examples": ("examples",),
    "autoencoders": ("saes", "sweep"),
    "features, neighbours, tracks": (
        "features",
        "neighbours",
        "tracks",
        "clusters.parquet",
        "cluster_labels.parquet",
    ),
    "texts": ("corpus", "datasets"),
    "signals, scores, tables": ("signals", "detection", "evaluation", "scores"),
    "figures and pages": ("figures", "report.html", "explorer.html", "paper"),
    "logs, benchmarks, unfinished work": ("logs", "benchmarks", "state"),
    "other": (),
}


class Cost(NamedTuple):
    """Jobs of one rule: seconds summed over them, the peak of any one, and the job that took longest.

    cpu_seconds, peak_rss_mb: NaN where no job lived long enough to be looked at.
    """

    step: str
    rule: str
    jobs: int
    cpu_seconds: float
    wall_seconds: float
    peak_rss_mb: float
    longest_job: str
    longest_seconds: float


class Disk(NamedTuple):
    """Bytes of one kind of output, and the number of its files."""

    kind: str
    bytes: int
    files: int


class Budget(NamedTuple):
    """Bytes that training and held-out activations take together at most, and may take; allowed 0: as they like."""

    planned: int
    allowed: int


def of_jobs(folder: Path) -> list[Cost]:
    """Costs of every rule with tables in a run's benchmarks/, in the order of the pipeline."""
    found: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for path in sorted([*folder.glob("*.tsv"), *folder.glob("*/*.tsv")]):
        if path.name.endswith(".gpu.tsv"):
            continue
        alone = path.parent == folder
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        if rows:
            found.setdefault(path.stem if alone else path.parent.name, []).append(
                ("" if alone else path.stem, rows[-1])
            )
    step_of = {rule: step for step, rules in STEPS.items() for rule in rules}
    order = {rule: place for place, rule in enumerate(PHASES)}
    steps = list(STEPS)
    costs = [_cost(step_of.get(rule, steps[-1]), rule, jobs) for rule, jobs in found.items()]
    return sorted(
        costs,
        key=lambda each: (steps.index(each.step), order.get(each.rule, len(order)), each.rule),
    )


def _cost(step: str, rule: str, jobs: Sequence[tuple[str, dict[str, str]]]) -> Cost:
    wall = [_number(row, "s") for _, row in jobs]
    cpu, memory = ([_number(row, key) for _, row in jobs] for key in ("cpu_time", "max_rss"))
    longest = max(range(len(jobs)), key=lambda place: wall[place])
    return Cost(
        step,
        rule,
        len(jobs),
        _sum(cpu),
        sum(wall),
        max(_known(memory), default=math.nan),
        jobs[longest][0],
        wall[longest],
    )


def _number(row: dict[str, str], key: str) -> float:
    try:
        return float(row.get(key) or "nan")
    except ValueError:  # NA: the job was over before anyone looked
        return math.nan


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _sum(values: Iterable[float]) -> float:
    known = _known(values)
    return sum(known) if known else math.nan


def by_step(costs: Sequence[Cost]) -> list[Cost]:
    """The same with the rules of a step together; its longest job with the rule before its name."""
    found = []
    for step in STEPS:
        own = [each for each in costs if each.step == step]
        if own:
            longest = max(own, key=lambda each: each.longest_seconds)
            name = f"{longest.rule} {longest.longest_job}".strip()
            found.append(
                Cost(
                    step,
                    "",
                    sum(each.jobs for each in own),
                    _sum(each.cpu_seconds for each in own),
                    sum(each.wall_seconds for each in own),
                    max(_known(each.peak_rss_mb for each in own), default=math.nan),
                    name,
                    longest.longest_seconds,
                )
            )
    return found


def of_disk(home: Path) -> list[Disk]:
    """What lies in a run's folder, by kind; kinds that it has nothing of are left out. Links are not followed."""
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    total = {kind: [0, 0] for kind in KINDS}
    for place, _, names in os.walk(home):
        inside = Path(place).relative_to(home).parts
        for name in names:
            counted = total[kind_of.get((*inside, name)[0], "other")]
            counted[0] += (Path(place) / name).lstat().st_size
            counted[1] += 1
    return [Disk(kind, *counted) for kind, counted in total.items() if counted[1]]


def render(
    model: str, costs: Sequence[Cost], disk: Sequence[Disk], budget: Budget, version: str
) -> str:
    """The page as HTML text."""
    from ghosttrack.report.page import page
    from ghosttrack.runtime.progress import amount, duration

    return page(
        "costs.html",
        model=model,
        version=version,
        steps=by_step(costs),
        costs=costs,
        disk=disk,
        budget=budget,
        cpu=_sum(each.cpu_seconds for each in costs),
        wall=sum(each.wall_seconds for each in costs),
        jobs=sum(each.jobs for each in costs),
        bytes=sum(each.bytes for each in disk),
        amount=amount,
        duration=lambda seconds: "\u2013" if math.isnan(seconds) else duration(seconds),
        memory=lambda megabytes: "\u2013" if math.isnan(megabytes) else amount(1e6 * megabytes),
    )
