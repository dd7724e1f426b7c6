"""Cost of a run: time and memory from Snakemake's benchmark tables, disk by kind of output.

Times differ between runs, so they are kept in benchmarks/, apart from the reproducible report.
"""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.planning.run_state import PHASES

# Rules by step of the pipeline; any other rule belongs to the last step.
STEPS = {
    "fetch": ("fetch_model", "fetch_corpus", "fetch_dataset", "fetch_questions"),
    "generate": ("generate_answers",),
    "extract": (
        "check_model",
        "extract_activations",
        "extract_heldout",
        "extract_examples",
        "extract_closed_book",
        "extract_without_context",
        "read_statements",
    ),
    "autoencoders": (
        "fetch_sae",
        "train_sae",
        "train_shared_sae",
        "fit_random_decoder",
        "evaluate_sae",
        "describe_features",
        "measure_answers",
        "sweep_sae",
        "draw_sweep",
    ),
    "track": (
        "find_neighbours",
        "cluster_features",
        "track_features",
        "measure_signals",
        "attribute_candidates",
    ),
    "detect": (
        "audit_dataset",
        "train_detectors",
        "read_score_table",
        "fit_detector_class",
        "train_token_detectors",
        "evaluate_detectors",
        "evaluate_token_detectors",
        "save_detector",
        "save_statement_detector",
        "check_explanations",
    ),
    "report": ("check_results", "check_claims", "draw_figures", "write_report", "write_explorer"),
    "on request": (),
}
# Names in the run's folder by kind of output; any other name is of the last kind.
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
    "texts": ("corpus", "datasets", "statements"),
    "signals, scores, tables": (
        "signals",
        "detection",
        "external",
        "evaluation",
        "judged",
        "scores",
    ),
    "figures and pages": ("figures", "report.html", "explorer.html", "paper"),
    "logs, benchmarks, unfinished work": ("logs", "benchmarks", "state"),
    "other": (),
}


class Cost(NamedTuple):
    """All jobs of one rule: seconds are sums, peak_rss_mb is the maximum over jobs.

    cpu_seconds and peak_rss_mb are NaN if every job ended before its first sample.
    """

    step: str
    rule: str
    jobs: int
    cpu_seconds: float
    wall_seconds: float
    peak_rss_mb: float
    longest_job: str
    longest_seconds: float


class DiskUse(NamedTuple):
    """Size of the files of one kind of output, and their number."""

    kind: str
    bytes: int
    files: int


class Budget(NamedTuple):
    """Planned and allowed peak of the activations in bytes; allowed 0: no limit."""

    planned: int
    allowed: int


def of_jobs(folder: Path) -> list[Cost]:
    """Costs of all rules with tables in `folder`, a run's benchmarks/, in pipeline order."""
    jobs_of: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for path in sorted([*folder.glob("*.tsv"), *folder.glob("*/*.tsv")]):
        if path.name.endswith(".gpu.tsv"):
            continue
        single = path.parent == folder  # the only job of its rule
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        if rows:
            jobs_of.setdefault(path.stem if single else path.parent.name, []).append(
                ("" if single else path.stem, rows[-1])
            )
    step_of = {rule: step for step, rules in STEPS.items() for rule in rules}
    order = {rule: number for number, rule in enumerate(PHASES)}
    steps = list(STEPS)
    costs = [_cost(step_of.get(rule, steps[-1]), rule, jobs) for rule, jobs in jobs_of.items()]
    return sorted(
        costs,
        key=lambda cost: (steps.index(cost.step), order.get(cost.rule, len(order)), cost.rule),
    )


def _cost(step: str, rule: str, jobs: Sequence[tuple[str, dict[str, str]]]) -> Cost:
    wall = [_number(row, "s") for _, row in jobs]
    cpu, memory = ([_number(row, key) for _, row in jobs] for key in ("cpu_time", "max_rss"))
    longest = max(range(len(jobs)), key=wall.__getitem__)
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
    except ValueError:  # NA: the job ended before its first sample
        return math.nan


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _sum(values: Iterable[float]) -> float:
    known = _known(values)
    return sum(known) if known else math.nan


def by_step(costs: Sequence[Cost]) -> list[Cost]:
    """Costs summed over the rules of each step; the longest job is named RULE JOB."""
    steps = []
    for step in STEPS:
        rules = [cost for cost in costs if cost.step == step]
        if rules:
            longest = max(rules, key=lambda cost: cost.longest_seconds)
            name = f"{longest.rule} {longest.longest_job}".strip()
            steps.append(
                Cost(
                    step,
                    "",
                    sum(cost.jobs for cost in rules),
                    _sum(cost.cpu_seconds for cost in rules),
                    sum(cost.wall_seconds for cost in rules),
                    max(_known(cost.peak_rss_mb for cost in rules), default=math.nan),
                    name,
                    longest.longest_seconds,
                )
            )
    return steps


def of_disk(home: Path) -> list[DiskUse]:
    """Disk use of a run's folder by kind of output, without empty kinds. Links are not followed."""
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    total = {kind: [0, 0] for kind in KINDS}
    for folder, _, names in os.walk(home):
        inside = Path(folder).relative_to(home).parts
        for name in names:
            try:
                size = (Path(folder) / name).lstat().st_size
            except FileNotFoundError:  # another job of the run, such as a sweep, removed it
                continue
            counted = total[kind_of.get((*inside, name)[0], "other")]
            counted[0] += size
            counted[1] += 1
    return [DiskUse(kind, *counted) for kind, counted in total.items() if counted[1]]


def render(
    model: str, costs: Sequence[Cost], disk: Sequence[DiskUse], budget: Budget, version: str
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
        cpu=_sum(cost.cpu_seconds for cost in costs),
        wall=sum(cost.wall_seconds for cost in costs),
        jobs=sum(cost.jobs for cost in costs),
        bytes=sum(kind.bytes for kind in disk),
        amount=amount,
        duration=lambda seconds: "\u2013" if math.isnan(seconds) else duration(seconds),
        memory=lambda megabytes: "\u2013" if math.isnan(megabytes) else amount(1e6 * megabytes),
    )
