"""Cost of a run: time and memory from Snakemake's benchmark tables and logs, disk by kind of output.

Times differ between runs, so they are kept in benchmarks/, apart from the reproducible report.
"""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.planning.run_state import PHASES
from ghosttrack.runtime import resource_use

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
    """All jobs of one rule: seconds are sums, peak_rss_mb (10^6 bytes) is the maximum over jobs.

    cpu_seconds and peak_rss_mb are NaN if no job has logged them, and every job ended before
    Snakemake's first sample.
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
    """Costs of all rules with tables in `folder`, a run's benchmarks/, in pipeline order.

    CPU time and peak memory are those that a job logged at its end. Snakemake's samples count for
    jobs without a log.
    """
    jobs_of: dict[str, list[_Job]] = {}
    for path in sorted([*folder.glob("*.tsv"), *folder.glob("*/*.tsv")]):
        if path.name.endswith(".gpu.tsv"):
            continue
        single = path.parent == folder  # the only job of its rule
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        if rows:
            log = folder.parent / "logs" / path.relative_to(folder).with_suffix(".log")
            jobs_of.setdefault(path.stem if single else path.parent.name, []).append(
                _job("" if single else path.stem, rows[-1], log)
            )
    step_of = {rule: step for step, rules in STEPS.items() for rule in rules}
    order = {rule: number for number, rule in enumerate(PHASES)}
    steps = list(STEPS)
    costs = [_cost(step_of.get(rule, steps[-1]), rule, jobs) for rule, jobs in jobs_of.items()]
    return sorted(
        costs,
        key=lambda cost: (steps.index(cost.step), order.get(cost.rule, len(order)), cost.rule),
    )


class _Job(NamedTuple):
    name: str  # "" for the only job of a rule
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def _job(name: str, sampled: dict[str, str], log: Path) -> _Job:
    """What Snakemake measured of a job, with what its last attempt logged at its end."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    cpu, peak = _number(sampled, "cpu_time"), _number(sampled, "max_rss") * 2**20 / 1e6
    if uses := resource_use.logged(text):
        last = uses[-1]
        cpu = cpu if last.cpu_seconds is None else last.cpu_seconds
        peak = max(_known((peak, float(last.peak_mb))))
    return _Job(name, _number(sampled, "s"), cpu, peak)


def _cost(step: str, rule: str, jobs: Sequence[_Job]) -> Cost:
    longest = max(jobs, key=lambda job: job.wall_seconds)
    return Cost(
        step,
        rule,
        len(jobs),
        _sum(job.cpu_seconds for job in jobs),
        sum(job.wall_seconds for job in jobs),
        max(_known(job.peak_mb for job in jobs), default=math.nan),
        longest.name,
        longest.wall_seconds,
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
