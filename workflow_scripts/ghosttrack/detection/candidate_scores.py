"""Detectors on the candidate answers of a text: logit difference, gradients, features, tracks.

All read the prompt alone, in the outer folds of the other detectors. None knows an SAE feature by
its identity. Where a remark before the text asserts an answer, every column also enters with its
sign, 1 where the remark agrees with the stated answer and -1 where it does not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection.probes import Ints
from ghosttrack.errors import UserError
from ghosttrack.facts import remarks
from ghosttrack.runtime import tables

# Column of the logit difference, and prefixes of the metrics of layers and tracks.
_DIFFERENCE, _LAYERS, _TRACKS = "difference", "layer_", "track_"
_NOT_METRICS = ("id", "variant", "compared")
# Nulls of the tracks' links, which leave the metrics of layers as they are.
LINK_NULLS = frozenset(("untracked", "random", "shuffled"))


class CandidateInputs(NamedTuple):
    """Columns of the texts of a data set, in their order.

    controls: logit difference, gradients and logit lens, (examples, columns); metrics: attribution
    and track metrics by variant, each (examples, columns); agreement: (examples,) 1 where a remark
    asserts the stated answer, -1 where it asserts another, 0 without a remark.
    """

    controls: pd.DataFrame
    metrics: Mapping[str, pd.DataFrame]
    agreement: Ints


def read_inputs(
    controls: Path, metrics: Path, examples: pd.DataFrame, rows: Ints
) -> CandidateInputs | None:
    """Read the tables of rule attribute_candidates for the examples `rows`; None: no comparison.

    Raises:
        UserError: the tables are of other examples.
    """
    table, by_variant = tables.read_parquet(controls), tables.read_parquet(metrics)
    ids = list(examples["id"])
    parts = dict(iter(by_variant.groupby("variant", sort=False)))
    for path, found in ((controls, table), *((metrics, part) for part in parts.values())):
        if list(found["id"]) != ids:
            raise UserError(
                f"{path}: its rows are not the data set's examples in their order: delete the "
                "file and run again"
            )
    if not table["compared"].iloc[rows].any():
        return None

    def measured(frame: pd.DataFrame) -> pd.DataFrame:
        chosen = frame.drop(columns=[name for name in _NOT_METRICS if name in frame])
        return chosen.iloc[rows].reset_index(drop=True).astype(np.float64).dropna(axis=1)

    return CandidateInputs(
        measured(table),
        {str(variant): measured(part) for variant, part in parts.items()},
        agreement_of(examples.iloc[rows]),
    )


def agreement_of(examples: pd.DataFrame) -> Ints:
    """Whether a remark before the text asserts the stated answer: 1, -1, or 0 without a remark."""
    if "remark" not in examples:
        return np.zeros(len(examples), dtype=np.int64)
    known = (examples["remark"] != "").to_numpy()
    found = np.zeros(len(examples), dtype=np.int64)
    found[known] = np.where(remarks.agreement(examples[known]), 1, -1)
    return found


def score_names(variants: Sequence[str]) -> list[str]:
    """Names of the scores of `columns`, in their order."""
    names = [registry.CANDIDATE_LOGIT, registry.CANDIDATE_GRADIENTS]
    for variant in variants:
        for base in _bases(variant):
            names.append(of_variant(base, variant))
    return names


def of_variant(base: str, variant: str) -> str:
    """Name of a score on the metrics of a variant."""
    return base if variant == "default" else f"{base}.{variant}"


def _bases(variant: str) -> list[str]:
    features = [registry.CANDIDATE_ATTRIBUTION, registry.CANDIDATE_FEATURES]
    tracks = [registry.CANDIDATE_TRACKS, registry.CANDIDATE_ALL]
    return tracks if variant in LINK_NULLS else features + tracks


def columns(inputs: CandidateInputs) -> dict[str, pd.DataFrame]:
    """Columns of every score with their interactions, each (examples, columns)."""
    tables = plain_columns(inputs)
    return {name: with_agreement(table, inputs.agreement) for name, table in tables.items()}


def plain_columns(inputs: CandidateInputs) -> dict[str, pd.DataFrame]:
    """Columns of every score, each (examples, columns)."""
    found = {
        registry.CANDIDATE_LOGIT: inputs.controls[[_DIFFERENCE]],
        registry.CANDIDATE_GRADIENTS: inputs.controls,
    }
    for variant, metrics in inputs.metrics.items():
        layers, tracks = (
            metrics[[name for name in metrics if str(name).startswith(prefix)]]
            for prefix in (_LAYERS, _TRACKS)
        )
        parts = {
            registry.CANDIDATE_ATTRIBUTION: [layers],
            registry.CANDIDATE_FEATURES: [inputs.controls, layers],
            registry.CANDIDATE_TRACKS: [tracks],
            registry.CANDIDATE_ALL: [inputs.controls, layers, tracks],
        }
        for base in _bases(variant):
            found[of_variant(base, variant)] = pd.concat(parts[base], axis=1)
    return found


def with_agreement(table: pd.DataFrame, agreement: Ints) -> pd.DataFrame:
    """The columns, and their interaction with agreement where there is a remark."""
    if not agreement.any():
        return table
    product = table.mul(agreement, axis=0).add_suffix(".agreement")
    return pd.concat([table, product, pd.DataFrame({"agreement": agreement})], axis=1)
