"""The report: one page that is complete in itself, verdict first. No script, no request, everything escaped."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import yaml

from ghosttrack import scores as registry
from ghosttrack.report import link_summary, pictures, sae_quality
from ghosttrack.report.numbers import MINUS, NONE, percent, score, signed
from ghosttrack.report.verdicts import Verdict
from ghosttrack.settings import code_digest

TEMPLATES = Path(__file__).parent / "templates"
# Scores of the main table.
COLUMNS = (
    registry.DETECTOR,
    "answer_logprob_mean",
    "answer_logprob_sum",
    "raw_probe",
    registry.TEXT_ONLY,
    registry.EMBEDDING_PROBE,
)
# Scores shown for every relation of generated answers.
BY_RELATION = (
    registry.DETECTOR,
    "answer_logprob_sum",
    "answer_logprob_mean",
    "self_consistency",
    "semantic_entropy",
    "p_true",
    "output_regression",
    registry.TEXT_ONLY,
    "length",
)
PARTS = {
    "pooled": (
        "Together",
        "Means over data sets that carry claims; every data set counts the same.",
    ),
    "text_controlled": (
        "Text-controlled data sets",
        "The text does not give the label away: the text-only interval covers 0.5. These carry the weight.",
    ),
    "generated": (
        "The model's own answers",
        "The model answered questions, and its answers were marked. Answers differ in form too, so compare with text only.",
    ),
    "leaky": (
        "Sets whose text leaks",
        "Text alone tells true from false to some degree: only what goes beyond it counts.",
    ),
    "control": (
        "Positive controls",
        "Sets known to leak, kept to show that the controls catch it. They support no claim.",
    ),
    "skipped": ("Not run", "Too little to train on; nothing can be said about these."),
}
POOLS = {registry.ALL_GIVEN: "mean, given texts", registry.ALL_GENERATED: "mean, own answers"}
CONTENTS = (
    ("claims", "Claims"),
    ("datasets", "Data sets"),
    ("leaks", "Leak audit"),
    ("curves", "Curves"),
    ("saes", "SAEs"),
    ("tracks", "Links and tracks"),
    ("explanations", "Explanations"),
    ("scores", "All scores"),
    ("words", "Words"),
    ("provenance", "Provenance"),
)


class Point(NamedTuple):
    """A mark with its whisker in a lane."""

    label: str
    kind: str
    marker: str
    value: float
    low: float
    high: float


class Scale(NamedTuple):
    """The shared axis of a forest plot."""

    low: float
    high: float
    chance: float
    ticks: list[float]


class Inputs(NamedTuple):
    """What the report shows; tables as pandas reads them, JSON files as they are, `quality` by layer."""

    model: str
    metrics: pd.DataFrame
    ledger: pd.DataFrame
    leak_audit: pd.DataFrame
    quality: Mapping[int, Mapping[str, Any]]
    answers: pd.DataFrame
    labels: Mapping[str, Mapping[str, Any]]
    relations: pd.DataFrame
    figures: Sequence[Path]
    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    datasets: Sequence[str]
    controls: Sequence[str]
    pairs: Sequence[link_summary.Pair]
    explanations: pd.DataFrame
    version: str
    code: str


def render(inputs: Inputs) -> str:
    """The page as HTML text; the same inputs give the same text."""
    kinds = registry.kinds(inputs.metrics, list(inputs.datasets), list(inputs.controls))
    scale = scale_of(inputs.metrics)
    members = {"pooled": _pools(inputs.metrics, kinds), **kinds._asdict()}
    parts = [_part(inputs.metrics, name, members[name]) for name in PARTS if members[name]]
    return page(
        "report.html",
        model=inputs.model,
        random_weights=inputs.source.get("kind") == "random",
        version=inputs.version,
        contents=CONTENTS,
        verdict=Verdict.of(inputs.ledger, kinds),
        confidence=f"{100 * inputs.settings.get('evaluation', {}).get('confidence', 0.95):g} %",
        shown=[
            {"label": shown.label, "kind": shown.family, "marker": shown.marker}
            for shown in registry.SHOWN
        ],
        columns=[{"score": name, "label": registry.get(name).heading} for name in COLUMNS],
        parts_of_data=parts,
        scale=scale,
        labels=_labels(inputs.labels),
        relations=_relations(inputs.relations),
        audit=_audit(inputs.leak_audit, inputs.datasets),
        figures=pictures.embed(inputs.figures),
        quality=sae_quality.section(inputs.quality, inputs.answers),
        pairs=inputs.pairs,
        explanations=_explanations(inputs.explanations),
        all_scores=[_scores(inputs.metrics, dataset) for dataset in inputs.datasets],
        detector=registry.get(registry.DETECTOR).meaning,
        provenance=_provenance(inputs),
        settings=yaml.safe_dump(_plain(inputs.settings), sort_keys=True, allow_unicode=True),
    )


def page(template: str, **values: Any) -> str:
    """Fill a template of the package; whatever is not marked as safe is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score,
        "signed": signed,
        "known": lambda value: not math.isnan(value),
        "count": lambda value: f"{int(value):,}",
        "percent": percent,
        "at": at,
        "label": registry.label,
        "tick": lambda value: f"{value:g}".replace("-", MINUS),
    }
    return environment.get_template(template).render(values)


def at(value: float, scale: Scale) -> str:
    """Place on an axis in per cent of its length, kept inside; off the page when there is no number."""
    if math.isnan(value):
        return "-1000%"
    return f"{100 * min(max((value - scale.low) / (scale.high - scale.low), 0.0), 1.0):.2f}%"


def scale_of(metrics: pd.DataFrame) -> Scale:
    """An AUROC axis from below the lowest shown interval to 1."""
    shown = metrics[metrics["score"].isin([each.name for each in registry.SHOWN])]
    lowest = np.nanmin([0.45, *shown["auroc_low"].to_numpy(float)])
    low = math.floor(10 * max(float(lowest), 0.0)) / 10
    return Scale(low, 1.0, 0.5, [tick / 10 for tick in range(round(10 * low), 11)])


def point(row: Mapping[str, Any], label: str, kind: str, marker: str) -> Point:
    """The AUROC of a row of metrics.csv as a mark."""
    return Point(label, kind, marker, row["auroc"], row["auroc_low"], row["auroc_high"])


def _pools(metrics: pd.DataFrame, kinds: registry.DatasetKinds) -> list[str]:
    """Names of the pooled rows that stand for more than one data set."""
    sizes = {
        registry.ALL_GIVEN: len(kinds.text_controlled) + len(kinds.leaky),
        registry.ALL_GENERATED: len(kinds.generated),
    }
    return [
        name
        for name, size in sizes.items()
        if size > 1 and registry.row_of(metrics, name, registry.DETECTOR)
    ]


def _part(metrics: pd.DataFrame, name: str, datasets: list[str]) -> dict[str, Any]:
    title, about = PARTS[name]
    rows: list[dict[str, Any]] = []
    forest: list[dict[str, Any]] = []
    for dataset in datasets:
        scores = {
            score_name: registry.row_of(metrics, dataset, score_name) for score_name in COLUMNS
        }
        detector = scores[registry.DETECTOR] or dict.fromkeys(registry.METRICS, float("nan")) | {
            "n": 0,
            "groups": 0,
        }
        points = [
            point(row, shown.label, shown.family, shown.marker)
            for shown in registry.SHOWN
            if (row := scores[shown.name])
        ]
        shown_name = POOLS.get(dataset, dataset) if name == "pooled" else dataset
        note = f"{int(detector['n']):,} texts, {int(detector['groups']):,} groups"
        if math.isnan(detector["auroc"]) and isinstance(detector.get("reason"), str):
            note += f"; not run: {detector['reason']}"
        rows.append({"dataset": shown_name, "scores": scores, "detector": detector})
        forest.append(
            {
                "name": shown_name,
                "points": points,
                "note": note,
                "alt": f"AUROC on {shown_name}: "
                + ", ".join(f"{each.label} {score(each.value)}" for each in points),
            }
        )
    scored = any(not math.isnan(row["detector"]["auroc"]) for row in rows)
    return {"title": title, "about": about, "rows": rows, "forest": forest, "scored": scored}


def _labels(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of marked answers per data set; empty when nothing was generated."""
    if not labels:
        return {}
    columns = [key for key, value in next(iter(labels.values())).items() if isinstance(value, int)]
    return {
        "columns": columns,
        "rows": [
            {"name": name, "counts": [found.get(key, 0) for key in columns]}
            for name, found in labels.items()
        ],
    }


def _relations(metrics: pd.DataFrame) -> dict[str, Any]:
    """Scores of `BY_RELATION` on every relation of generated answers; {} without any."""
    names = list(dict.fromkeys(metrics["dataset"]))
    rows = []
    for name in names:
        found = {
            score_name: registry.row_of(metrics, name, score_name) for score_name in BY_RELATION
        }
        detector = found[registry.DETECTOR]
        if detector:
            right = round((1 - detector["prevalence"]) * detector["n"])
            counts = {"right": right, "wrong": int(detector["n"]) - right}
            rows.append({"name": name.replace("/", ": "), **counts, "scores": list(found.values())})
    return {"scores": list(BY_RELATION), "rows": rows} if rows else {}


def _audit(audit: pd.DataFrame, datasets: Sequence[str]) -> dict[str, Any]:
    checks = [check for check in dict.fromkeys(audit["check"]) if check != "status"]
    rows = []
    for dataset in datasets:
        found = {row["check"]: row for row in audit[audit["dataset"] == dataset].to_dict("records")}
        rows.append({"dataset": dataset, "cells": [_cell(found.get(check)) for check in checks]})
    return {"checks": checks, "rows": rows}


def _cell(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    counted = math.isnan(row["low"])
    return {
        "value": f"{row['value']:g}"
        if counted and not math.isnan(row["value"])
        else score(row["value"]),
        "range": "" if counted else f"{score(row['low'])}{NONE}{score(row['high'])}",
        "verdict": row["verdict"],
        "style": {"pass": "established", "leak": "artefact"}.get(row["verdict"], "not-established"),
    }


def _explanations(table: pd.DataFrame) -> dict[str, Any]:
    """The removals, and in words whether the named reasons moved the score more than random features; {} without any."""
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    named = [row for row in rows if row["removed"].startswith("named")]
    if not named:
        return {}
    beyond = [row["features"] for row in named if row["beyond_random_low"] > 0]
    active = {
        row["features"]: row["change"] for row in rows if row["removed"].startswith("most active")
    }
    as_strong = [
        row["features"] for row in named if row["change_low"] <= active.get(row["features"], 0.0)
    ]
    return {
        "rows": rows,
        "texts": named[0]["n"],
        "counts": [row["features"] for row in named],
        "beyond": beyond,
        "as_strong": as_strong,
    }


def _scores(metrics: pd.DataFrame, dataset: str) -> dict[str, Any]:
    found = metrics[metrics["dataset"] == dataset].sort_values(
        ["auroc", "score"], ascending=[False, True]
    )
    rows = [
        row | {"meaning": registry.get(str(row["score"])).meaning}
        for row in found.to_dict("records")
    ]
    return {"dataset": dataset, "rows": rows}


def _provenance(inputs: Inputs) -> list[tuple[str, str]]:
    source, settings = inputs.source, inputs.settings
    libraries = ", ".join(
        f"{name} {version}" for name, version in code_digest.library_versions().items()
    )
    return [
        ("Model", f"{inputs.model}: {source['kind']} {source['id']}".strip()),
        ("Revision", source.get("revision") or "none given"),
        ("Weights", f"SHA-256 {source['weights_sha256']}"),
        ("Tokenizer", f"SHA-256 {source['tokenizer_sha256']}"),
        (
            "Size",
            f"{source['n_layers']} layers of width {source['d_model']}, {source['vocab_size']:,} tokens in the vocabulary",
        ),
        ("Analysed layers", ", ".join(map(str, sorted(inputs.quality)))),
        ("Training activations", _storage(inputs.quality)),
        ("Seed", str(settings.get("seed", "not recorded"))),
        ("GhostTrack", f"version {inputs.version}, code {inputs.code}"),
        ("Libraries", libraries),
    ]


def _storage(quality: Mapping[int, Mapping[str, Any]]) -> str:
    """How training activations were kept, and what that cost in the layer where it cost most."""
    modes = sorted({str(found["storage"]) for found in quality.values() if found.get("storage")})
    errors = [found["storage_error"] for found in quality.values() if found.get("storage_error")]
    if not errors:
        return ", ".join(modes) or "not recorded"
    worst = {key: max(error[key] for error in errors) for key in ("relative", "low_variance")}
    return (
        f"{', '.join(modes)}: error at most {worst['relative']:.1e} of the variance, {worst['low_variance']:.1e} "
        "within the half of the directions that vary least"
    )


def _plain(value: Any) -> Any:
    """Settings as plain lists and mappings, for YAML."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
