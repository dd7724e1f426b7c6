"""The report: one self-contained HTML page, conclusion first. No script and no network request."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import yaml

from ghosttrack import scores as registry
from ghosttrack.report import (
    external,
    link_summary,
    marked,
    misled,
    pictures,
    sae_quality,
    verdicts,
)
from ghosttrack.report.lanes import Axis, Point, position
from ghosttrack.report.numbers import MINUS, NONE, percent, score, signed
from ghosttrack.report.verdicts import Conclusions

TEMPLATES = Path(__file__).parent / "templates"
# CSS class of each score of registry.SHOWN, in the same order.
KINDS = ("detector", "output", "probe", "control")
# Scores of the main table, with short headings.
COLUMNS = (
    registry.DETECTOR,
    "answer_logprob_mean",
    "answer_logprob_sum",
    "raw_probe",
    registry.TEXT_ONLY,
    registry.EMBEDDING_PROBE,
)
# Scores that are shown for every relation of generated answers.
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
        "Pooled",
        "Mean over the data sets that support claims. Each data set has the same weight.",
    ),
    "text_controlled": (
        "Strict data sets",
        "Text alone does not predict the label: its interval does not lie above 0.5.",
    ),
    "generated": (
        "The model's own answers",
        "The model answered questions and the answers were graded. Correct and wrong answers may "
        "differ in wording, so compare with text only.",
    ),
    "misled": (
        "Texts after remarks",
        "A remark before each text asserts the true or the false answer. Neither the remark nor "
        "its agreement with the text predicts the label of a given text.",
    ),
    "leaky": (
        "Data sets with a text leak",
        "Text alone predicts the label to some degree. Only the gain over text only counts.",
    ),
    "control": (
        "Positive controls",
        "Data sets with a known leak. They show that the controls detect it and support no claim.",
    ),
    "skipped": ("Not run", "Too few examples to train on."),
}
POOLS = verdicts.POOLS
# What kinds.csv leaves out, in words, and its confidences.
LEFT_OUT = {
    "kind": "kinds of statement, one at a time",
    "negated kinds": "all negated kinds at once",
    "facts": "kinds of facts, one at a time",
}
VERDICT_CONFIDENCES = ("0.75", "0.9")


class ReportInputs(NamedTuple):
    """Tables and files of the report; `quality` is keyed by layer, `labels` by data set.

    followed: prompts of given texts after a false remark; kinds: `left_out_kinds.table`.
    """

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
    kinds: pd.DataFrame
    followed: misled.Followed
    version: str
    code: str
    libraries: Mapping[str, Sequence[str]]  # versions with which the results were made
    shared_texts: Sequence[Mapping[str, Any]]  # pairs of data sets, as in checks.json
    tokens: Sequence[tuple[pd.DataFrame, pd.DataFrame]] = ()  # token_metrics.csv, token_claims.csv
    marked_answers: Mapping[str, Sequence[marked.Answer]] = MappingProxyType({})  # by data set


def render(inputs: ReportInputs) -> str:
    """The report as HTML text; equal inputs give equal text."""
    kinds = registry.kinds(inputs.metrics, list(inputs.datasets), list(inputs.controls))
    members = {"pooled": _pools(inputs.metrics, kinds), **kinds._asdict()}
    return page(
        "report.html",
        model=inputs.model,
        random_weights=inputs.source.get("kind") == "random",
        version=inputs.version,
        conclusions=Conclusions.of(inputs.ledger, kinds),
        misled=misled.sentence(
            inputs.ledger.to_dict("records"), inputs.followed, misled.answers(inputs.labels)
        ),
        shared_texts=inputs.shared_texts,
        confidence=f"{100 * inputs.settings.get('evaluation', {}).get('confidence', 0.95):g} %",
        shown=[
            {"label": shown.label, "kind": shown.family, "marker": shown.marker}
            for shown in registry.SHOWN
        ],
        columns=[{"name": name, "label": registry.get(name).heading} for name in COLUMNS],
        parts_of_data=[
            _part(inputs.metrics, name, members[name]) for name in PARTS if members[name]
        ],
        axis=auroc_axis(inputs.metrics),
        labels=_labels(inputs.labels),
        relations=_relations(inputs.relations),
        audit=_audit(inputs.leak_audit, inputs.datasets),
        figures=pictures.embed(inputs.figures),
        quality=sae_quality.section(inputs.quality, inputs.answers),
        pairs=inputs.pairs,
        explanations=_explanations(inputs.explanations),
        verdicts=_verdicts(inputs.kinds),
        judged=external.judged(inputs.metrics, inputs.ledger),
        outside=external.OUTSIDE,
        token_results=_token_results(inputs.tokens, inputs.marked_answers),
        all_scores=[_all_scores(inputs.metrics, dataset) for dataset in inputs.datasets],
        detector=registry.get(registry.DETECTOR).meaning,
        provenance=_provenance(inputs),
        settings=yaml.safe_dump(_plain(inputs.settings), sort_keys=True, allow_unicode=True),
    )


def page(template: str, **values: Any) -> str:
    """Fill a template of TEMPLATES; every value that is not `Markup` is escaped."""
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
        "position": position,
        "label": registry.label,
        "tick": lambda value: f"{value:g}".replace("-", MINUS),
    }
    return environment.get_template(template).render(values)


# What the scores of tokens read.
TOKEN_SCORES = {
    "token_generator": "who wrote the answer",
    "token_position": "position in the answer",
    "token_length": "length of the answer",
    "token_words": "the token and the words beside it",
    "token_copy": "copied words of the context",
    "token_logprob": "log-probability with the context",
    "token_entropy": "entropy of the prediction",
    "token_support": "gain of log-probability by the context",
    "token_output": "all output features",
    "token_lookback": "attention of each head to what precedes the answer",
    "token_controls": "the scores of all controls",
    "token_raw_probe": "raw activations of one layer",
    "token_sae_probe": "SAE features of one layer",
    "token_detector": "the scores of all controls and of both probes",
}


def _token_results(
    results: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    answers: Mapping[str, Sequence[marked.Answer]],
) -> list[dict[str, Any]]:
    """Measures, claims and some answers of every data set with hallucinated spans."""
    found = []
    for metrics, claims in results:
        for dataset, part in metrics.groupby("dataset", sort=False):
            rows: list[dict[str, Any]] = [
                {str(key): value for key, value in row.items()} for row in part.to_dict("records")
            ]
            for row in rows:
                row["meaning"] = TOKEN_SCORES.get(row["score"], "")
            found.append(
                {
                    "dataset": dataset,
                    "rows": rows,
                    "answers": answers.get(str(dataset), ()),
                    "claims": claims[claims["dataset"] == dataset]
                    .fillna({"reason": ""})
                    .to_dict("records"),
                }
            )
    return found


def auroc_axis(metrics: pd.DataFrame) -> Axis:
    """An AUROC axis from below the lowest shown interval to 1."""
    shown = metrics[metrics["score"].isin([shown.name for shown in registry.SHOWN])]
    # A point without an interval counts too: outside the axis it would be drawn at its end.
    lowest = np.nanmin([0.45, *shown[["auroc", "auroc_low"]].to_numpy(float).ravel()])
    low = math.floor(10 * max(float(lowest), 0.0)) / 10
    return Axis(low, 1.0, 0.5, [tick / 10 for tick in range(round(10 * low), 11)])


def point(row: Mapping[str, Any], label: str, kind: str, marker: str) -> Point:
    """The AUROC of a row of metrics.csv as a point."""
    return Point(label, kind, marker, row["auroc"], row["auroc_low"], row["auroc_high"])


def alt_text(name: str, points: Sequence[Point]) -> str:
    """The points of one data set for a screen reader."""
    values = ", ".join(f"{point.label} {score(point.value)}" for point in points)
    return f"AUROC on {name}: {values}"


def _pools(metrics: pd.DataFrame, kinds: registry.DatasetKinds) -> list[str]:
    """Names of the pooled rows that summarise more than one data set."""
    given = metrics.loc[metrics["mode"] == "given", "dataset"]
    sizes = {
        registry.ALL_GIVEN: len(kinds.text_controlled) + len(kinds.leaky),
        registry.ALL_GENERATED: len(kinds.generated),
        registry.ALL_MISLED: len({*kinds.misled} & {*given}),
    }
    return [
        name
        for name, size in sizes.items()
        if size > 1 and registry.row_of(metrics, name, registry.DETECTOR)
    ]


def _part(metrics: pd.DataFrame, name: str, datasets: list[str]) -> dict[str, Any]:
    """One group of data sets: a row of the table and a row of the forest plot for each."""
    title, about = PARTS[name]
    rows: list[dict[str, Any]] = []
    forest: list[dict[str, Any]] = []
    for dataset in datasets:
        scores = {column: registry.row_of(metrics, dataset, column) for column in COLUMNS}
        detector = scores[registry.DETECTOR] or dict.fromkeys(registry.METRICS, float("nan")) | {
            "n": 0,
            "groups": 0,
        }
        points = [
            point(row, shown.label, kind, shown.marker)
            for shown, kind in zip(registry.SHOWN, KINDS, strict=True)
            if (row := scores[shown.name])
        ]
        label = POOLS.get(dataset, dataset) if name == "pooled" else dataset
        note = f"{int(detector['n']):,} texts, {int(detector['groups']):,} groups"
        if math.isnan(detector["auroc"]) and isinstance(detector.get("reason"), str):
            note += f"; not run: {detector['reason']}"
        rows.append({"dataset": label, "scores": scores, "detector": detector})
        forest.append(
            {"name": label, "points": points, "note": note, "alt": alt_text(label, points)}
        )
    scored = any(not math.isnan(row["detector"]["auroc"]) for row in rows)
    return {"title": title, "about": about, "rows": rows, "forest": forest, "scored": scored}


def _labels(labels: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of graded answers per data set; {} if no answers were generated.

    With remarks also the numbers of questions after true and false ones, and of answers that repeat
    them.
    """
    if not labels:
        return {}
    labels = {name: {**counts, **_repeated(counts)} for name, counts in labels.items()}
    columns = list(
        dict.fromkeys(
            key
            for counts in labels.values()
            for key, value in counts.items()
            if isinstance(value, int)
        )
    )
    return {
        "columns": columns,
        "rows": [
            {"name": name, "counts": [counts.get(key, 0) for key in columns]}
            for name, counts in labels.items()
        ],
    }


def _repeated(counts: Mapping[str, Any]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for kind, found in counts.get("remarks", {}).items():
        numbers |= {
            f"after {kind} remarks": found["asked"],
            f"repeat {kind} remarks": found["followed"],
        }
    return numbers


def _relations(metrics: pd.DataFrame) -> dict[str, Any]:
    """The scores of `BY_RELATION` on every relation of generated answers; {} without relations."""
    rows = []
    for name in dict.fromkeys(metrics["dataset"]):
        scores = {column: registry.row_of(metrics, name, column) for column in BY_RELATION}
        detector = scores[registry.DETECTOR]
        if detector:
            correct = round((1 - detector["prevalence"]) * detector["n"])
            counts = {"correct": correct, "wrong": int(detector["n"]) - correct}
            rows.append(
                {"name": name.replace("/", ": "), **counts, "scores": list(scores.values())}
            )
    return {"columns": list(BY_RELATION), "rows": rows} if rows else {}


def _audit(audit: pd.DataFrame, datasets: Sequence[str]) -> dict[str, Any]:
    """The leak audit with a row per data set and a column per check."""
    checks = [check for check in dict.fromkeys(audit["check"]) if check != "status"]
    rows = []
    for dataset in datasets:
        results = {
            row["check"]: row for row in audit[audit["dataset"] == dataset].to_dict("records")
        }
        rows.append({"dataset": dataset, "cells": [_cell(results.get(check)) for check in checks]})
    return {"checks": checks, "rows": rows}


def _cell(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """One result of the leak audit: a count, or an AUROC with its interval."""
    if row is None:
        return None
    known = not math.isnan(row["low"])
    counted = not known and float(row["value"]).is_integer()
    return {
        "value": f"{row['value']:g}" if counted else score(row["value"]),
        "range": f"{score(row['low'])}{NONE}{score(row['high'])}" if known else "",
        "verdict": row["verdict"],
        "style": {"pass": "established", "leak": "artefact"}.get(row["verdict"], "not-established"),
    }


def _verdicts(kinds: pd.DataFrame) -> list[dict[str, Any]]:
    """What verdicts reach on all left-out kinds, on negated ones, and on left-out facts."""
    together = kinds[kinds["kind"] == "all"]
    return [
        {
            "name": LEFT_OUT[row["left_out"]],
            "row": row,
            "cells": [
                {
                    "coverage": row[f"coverage_{confidence}"],
                    **{
                        end: row[f"error_{confidence}{end}"]
                        if row[f"coverage_{confidence}"]
                        else None
                        for end in ("", "_low", "_high")
                    },
                }
                for confidence in VERDICT_CONFIDENCES
            ],
        }
        for row in together.to_dict("records")
    ]


def _explanations(table: pd.DataFrame) -> dict[str, Any]:
    """The ablations of features, and whether named features matter more than random ones.

    {} without ablations.

    beyond: numbers of features for which the named ones change the score more than random ones.
    as_strong: numbers for which the most active features change it as much as the named ones.
    """
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    named = [row for row in rows if row["removed"].startswith("named")]
    if not named:
        return {}
    active = {
        row["features"]: row["change"] for row in rows if row["removed"].startswith("most active")
    }
    return {
        "rows": rows,
        "texts": named[0]["n"],
        "counts": [row["features"] for row in named],
        "beyond": [row["features"] for row in named if row["beyond_random_low"] > 0],
        "as_strong": [
            row["features"]
            for row in named
            if row["change_low"] <= active.get(row["features"], 0.0)
        ],
    }


def _all_scores(metrics: pd.DataFrame, dataset: str) -> dict[str, Any]:
    """Every score on one data set with its meaning, highest AUROC first."""
    ordered = metrics[metrics["dataset"] == dataset].sort_values(
        ["auroc", "score"], ascending=[False, True]
    )
    rows = [
        row | {"meaning": registry.get(str(row["score"])).meaning}
        for row in ordered.to_dict("records")
    ]
    return {"dataset": dataset, "rows": rows}


def _provenance(inputs: ReportInputs) -> list[tuple[str, str]]:
    source, settings = inputs.source, inputs.settings
    libraries = ", ".join(
        f"{name} {' and '.join(versions)}" for name, versions in inputs.libraries.items()
    )
    return [
        ("Model", f"{inputs.model}: {source['kind']} {source['id']}".strip()),
        ("Revision", source.get("revision") or "not given"),
        *((("Terms of use", source["terms"]),) if source.get("terms") else ()),
        ("Weights", f"SHA-256 {source['weights_sha256']}"),
        ("Tokenizer", f"SHA-256 {source['tokenizer_sha256']}"),
        (
            "Size",
            f"{source['n_layers']} layers, d_model {source['d_model']}, vocabulary of "
            f"{source['vocab_size']:,} tokens",
        ),
        ("Precision of the model", _precision(inputs.quality)),
        ("Analysed layers", ", ".join(map(str, sorted(inputs.quality)))),
        ("Training activations", _storage(inputs.quality)),
        ("Seed", str(settings.get("seed", "not recorded"))),
        ("GhostTrack", f"version {inputs.version}, code {inputs.code}"),
        ("Libraries", libraries),
    ]


def _precision(quality: Mapping[int, Mapping[str, Any]]) -> str:
    """Precision in which the model ran, such as bfloat16."""
    # Files from before this key are of float32 models.
    return ", ".join(
        sorted({layer.get("model_precision", "float32") for layer in quality.values()})
    )


def _storage(quality: Mapping[int, Mapping[str, Any]]) -> str:
    """Storage format of the training activations, and its quantisation error in the worst layer."""
    formats = sorted({str(layer["storage"]) for layer in quality.values() if layer.get("storage")})
    errors = [layer["storage_error"] for layer in quality.values() if layer.get("storage_error")]
    if not errors:
        return ", ".join(formats) or "not recorded"
    worst = {key: max(error[key] for error in errors) for key in ("relative", "low_variance")}
    return (
        f"{', '.join(formats)}: squared error at most {worst['relative']:.1e} of the variance, "
        f"{worst['low_variance']:.1e} within the half of the principal components with least "
        "variance"
    )


def _plain(value: Any) -> Any:
    """Settings as plain lists and dictionaries, for YAML."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
