"""The report's section on SAEs: metrics and gates of every layer, and the worst layers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.evaluation.gates import GATES, Gate
from ghosttrack.report.numbers import DELTA, NONE, PLUS_MINUS, percent, score, signed

Quality = Mapping[int, Mapping[str, Any]]  # quality.json by layer
# Keys of quality.json and columns of saes/answers.csv, with headings.
HELDOUT = (
    ("l0", "L0"),
    ("fvu", "FVU"),
    ("fvu_token_median", "FVU, median token"),
    ("ce_loss_score", "CE score"),
    ("delta_ce", f"{DELTA}CE, nats"),
    ("kl_div_with_sae", "KL, nats"),
    ("dead_fraction", "dead features"),
    ("pca_fvu", "FVU of PCA"),
    ("random_fvu", "FVU of a random dictionary"),
)
ANSWERS = (
    ("l0", "L0, answers"),
    ("fvu", "FVU, answers"),
    ("fvu_token_median", "FVU, median answer token"),
)
_GATED = {gate.key: gate for gate in GATES}


class Cell(NamedTuple):
    """A value as text, and whether it passes its gate; None without a gate or a value."""

    text: str
    passed: bool | None = None


def section(quality: Quality, answers: pd.DataFrame) -> dict[str, Any]:
    """Values for the template sae_quality.html.

    Args:
        quality: quality.json by layer.
        answers: saes/answers.csv.
    """
    ordered = dict(sorted(quality.items()))
    spliced = {layer: values for layer, values in ordered.items() if "kl_div_with_sae" in values}
    costliest = max(spliced, key=lambda layer: spliced[layer]["kl_div_with_sae"], default=None)
    together = {
        int(row["layer"]): row
        for row in answers[answers["dataset"] == registry.ALL_ANSWERS].to_dict("records")
    }
    return {
        "columns": [label for _, label in (*HELDOUT, *ANSWERS)],
        "rows": [
            {
                "layer": layer,
                "cells": [cell(key, values) for key, _ in HELDOUT]
                + [cell(key, together.get(layer, {}), gated=False) for key, _ in ANSWERS],
            }
            for layer, values in ordered.items()
        ],
        "gates": [_gate(gate, ordered) for gate in GATES],
        "worst_answers": _worst_answers(answers),
        "costliest": costliest,
        "cost": {key: cell(key, spliced[costliest]).text for key, _ in HELDOUT}
        if costliest is not None
        else {},
        "predictions": spliced[costliest]["spliced_rows"] if costliest is not None else 0,
    }


def cell(key: str, values: Mapping[str, Any], *, gated: bool = True) -> Cell:
    """The value of one metric in a layer; `gated`: judge it by the gate of the metric, if any."""
    value = float(values.get(key, math.nan))
    if key == "delta_ce" and not math.isnan(value):
        return Cell(f"{signed(value)}\u00a0{PLUS_MINUS}\u00a0{score(values['delta_ce_error'])}")
    gate = _GATED.get(key) if gated else None
    return Cell(
        _formatted(key, gate.value(values) if gate else value),
        gate.passed(values) if gate else None,
    )


def _formatted(key: str, value: float) -> str:
    if key == "dead_fraction":
        return percent(value)
    return score(value, 1 if key == "l0" else 3)


def _gate(gate: Gate, quality: Quality) -> dict[str, Any]:
    """How many layers pass the gate, and the worst layer."""
    worst = gate.worst(quality)
    judged = [passed for layer in quality.values() if (passed := gate.passed(layer)) is not None]
    return {
        "label": gate.label,
        "asked": gate.asked,
        "passed": sum(judged),
        "judged": len(judged),
        "worst": worst,
        "value": NONE if worst is None else _formatted(gate.key, gate.value(quality[worst])),
    }


def _worst_answers(answers: pd.DataFrame) -> dict[str, Any] | None:
    """The layer with the highest median FVU on answer tokens, and its worst data set."""
    every = answers["dataset"] == registry.ALL_ANSWERS
    ranked = (
        answers[every]
        .dropna(subset=["fvu_token_median"])
        .sort_values("fvu_token_median", ascending=False)
    )
    if ranked.empty:
        return None
    first = ranked.iloc[0]
    by_dataset = answers[~every & (answers["layer"] == first["layer"])].dropna(
        subset=["fvu_token_median"]
    )
    worst = by_dataset.sort_values("fvu_token_median", ascending=False).iloc[0]
    return {
        "layer": int(first["layer"]),
        "median": score(first["fvu_token_median"]),
        "fvu": score(first["fvu"]),
        "l0": score(first["l0"], 1),
        "tokens": int(first["tokens"]),
        "massive": int(first["massive_tokens"]),
        "dataset": worst["dataset"],
        "dataset_median": score(worst["fvu_token_median"]),
    }
