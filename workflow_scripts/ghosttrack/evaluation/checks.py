"""Sanity checks of the finished tables of a run."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import same_text

# Maximum factor between an SAE's L0 and its k.
L0_FACTOR = 2.0
# Tolerance for rounding.
SLACK = 1e-6
# An AUROC may be outside its interval by this, divided by the number of groups. A resample counts
# the pairs of two texts of one group twice as often, on average, as the data do; they are about one
# of `groups` pairs, or more where a few groups are large.
SHIFT = 5.0
# Required keys of quality.json.
QUALITY = (
    "l0",
    "fvu",
    "fvu_token_median",
    "explained_variance",
    "dead_fraction",
    "ce_loss_score",
    "delta_ce",
    "kl_div_with_sae",
    "k",
)
SHARES = (
    "prevalence",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auprc",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "ece",
    "brier",
)
SCORES = ("dataset", "mode", "id", "group", "label", "fold", "score", "family", "value")


def check_metrics(path: Path, metrics: pd.DataFrame, datasets: Sequence[str]) -> int:
    """Check metrics.csv: required scores, no duplicates, fractions and intervals.

    Returns:
        The number of rows.
    Raises:
        UserError: a check fails; the message names file, row and value.
    """
    needed = {*(shown.name for shown in registry.SHOWN), registry.EMBEDDING_PROBE}
    twice = metrics[metrics.duplicated(["dataset", "mode", "score"])]
    if len(twice):
        raise _failed(
            path, _name(twice.iloc[0]), "two rows", "one row per data set, mode and score"
        )
    for dataset in datasets:
        missing = sorted(needed - set(metrics.loc[metrics["dataset"] == dataset, "score"]))
        if missing:
            raise _failed(
                path, f"data set {dataset}", f"no row for {', '.join(missing)}", "a row for each"
            )
    means = metrics["dataset"].isin(registry.MEANS)
    fewest = metrics.loc[~means, "groups"].min()  # of the data sets in a mean, or less
    for row, mean in zip(metrics.to_dict("records"), means, strict=True):
        for problem in _row_problems(row, fewest if mean else row["groups"]):
            raise _failed(path, _name(row), *problem)
    return len(metrics)


def shared_texts(texts: Mapping[str, Iterable[str]]) -> list[dict[str, Any]]:
    """Pairs of data sets that have texts in common.

    A mean over data sets resamples each one separately, as if no text were in two of them.

    Args:
        texts: name of a data set -> its texts, as `as_read` gives them.
    Returns:
        One entry per pair: datasets (two names), texts (number of different texts in common).
    """
    known = {name: {hash(same_text(text)) for text in each} for name, each in texts.items()}
    return [
        {"datasets": [one, other], "texts": len(known[one] & known[other])}
        for one, other in itertools.combinations(known, 2)
        if known[one] & known[other]
    ]


def _row_problems(row: Mapping[str, Any], groups: float) -> Iterator[tuple[str, str]]:
    for key in SHARES:
        if not math.isnan(row[key]) and not 0 <= row[key] <= 1:
            yield f"{key} = {row[key]}", "a number from 0 to 1"
    not_run = isinstance(row.get("reason"), str) and row["reason"]
    if math.isnan(row["auroc"]) and 0 < row["prevalence"] < 1 and not not_run:
        yield "no auroc", "a number, since both classes are present"
    low, point, high = row["auroc_low"], row["auroc"], row["auroc_high"]
    outside = SLACK + SHIFT / max(groups, 1)
    if not math.isnan(low) and not (low <= high and low - outside <= point <= high + outside):
        yield (
            f"auroc = {point} outside its interval {low} to {high}",
            "auroc_low <= auroc <= auroc_high",
        )
    if not 1 <= row["groups"] <= row["n"]:
        yield f"groups = {row['groups']} with n = {row['n']}", "1 <= groups <= n"


def check_scores(
    path: Path, scores: pd.DataFrame, metrics: pd.DataFrame, examples: Mapping[str, set[str]]
) -> int:
    """Check a score table: finite values, labels, duplicates, ids, and n as in metrics.csv.

    Args:
        path: file that errors name.
        scores: long table of out-of-fold scores.
        metrics: metrics.csv.
        examples: ids of the examples by data set; a run may score a part of them.
    Returns:
        The number of rows.
    Raises:
        UserError: a check fails; the message names file, score and value.
    """
    missing = [column for column in SCORES if column not in scores.columns]
    if missing:
        raise _failed(
            path, "the table", f"no column {', '.join(missing)}", f"the columns {', '.join(SCORES)}"
        )
    labels = sorted(set(scores["label"]) - {0, 1})
    if labels:
        raise _failed(path, "label", f"{labels[0]}", "0 (true) or 1 (hallucinated)")
    twice = scores[scores.duplicated(["dataset", "mode", "score", "id"])]
    if len(twice):
        raise _failed(
            path, f"{_name(twice.iloc[0])}, id {twice.iloc[0]['id']}", "two scores", "one"
        )
    for (dataset, score_name), part in scores.groupby(["dataset", "score"], sort=True):
        for where, found, expected in _score_problems(part, examples.get(str(dataset), set())):
            raise _failed(path, f"data set {dataset}, score {score_name}{where}", found, expected)
        row = registry.row_of(metrics, str(dataset), str(score_name))
        if row is not None and row["n"] != len(part):
            raise _failed(
                path,
                f"data set {dataset}, score {score_name}",
                f"{len(part)} scores",
                f"n = {row['n']} as in metrics.csv",
            )
    return len(scores)


def _score_problems(part: pd.DataFrame, known: set[str]) -> Iterator[tuple[str, str, str]]:
    finite = np.isfinite(part["value"].to_numpy(dtype=np.float64))
    if finite.any() and not finite.all():  # all values are NaN if a score was not computed
        first = part[~finite].iloc[0]
        yield f", id {first['id']}", f"value = {first['value']}", "a finite number"
    unknown = sorted(set(part["id"].astype(str)) - known)
    if unknown:
        yield f", id {unknown[0]}", "no example with this id", "ids of examples.parquet"


def check_quality(path: Path, quality: Mapping[str, Any]) -> None:
    """Check quality.json: no missing number, L0 near k, metrics in their range."""
    for key, value in quality.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _failed(path, key, f"{value}", "a finite number")
    for key in QUALITY:
        if not isinstance(quality.get(key), int | float):
            raise _failed(path, key, f"{quality.get(key)}", "a finite number")
    k = quality["k"]
    if not k / L0_FACTOR <= quality["l0"] <= k * L0_FACTOR:
        raise _failed(
            path, "l0", f"{quality['l0']}", f"{k / L0_FACTOR:g} to {k * L0_FACTOR:g} for k = {k}"
        )
    if quality["fvu"] < 0 or quality["explained_variance"] > 1 + SLACK:
        raise _failed(path, "fvu", f"{quality['fvu']}", "not below 0")
    if quality["kl_div_with_sae"] < -SLACK:
        raise _failed(path, "kl_div_with_sae", f"{quality['kl_div_with_sae']}", "not below 0")
    if not 0 <= quality["dead_fraction"] <= 1:
        raise _failed(path, "dead_fraction", f"{quality['dead_fraction']}", "a number from 0 to 1")


def check_answers(
    path: Path, answers: pd.DataFrame, datasets: Sequence[str], layers: Sequence[int]
) -> None:
    """Check answers.csv: a row for every layer and data set, no negative number."""
    measured = set(zip(answers["layer"], answers["dataset"], strict=True))
    for layer in layers:
        for dataset in (*datasets, registry.ALL_ANSWERS):
            if (layer, dataset) not in measured:
                raise _failed(
                    path,
                    f"layer {layer}",
                    f"no row for {dataset}",
                    "one for every data set, and one for all",
                )
    for row in answers.to_dict("records"):
        for key in ("l0", "fvu", "fvu_token_median"):
            if not row[key] >= 0:
                raise _failed(
                    path,
                    f"layer {row['layer']}, data set {row['dataset']}",
                    f"{key} = {row[key]}",
                    "a number from 0",
                )


def _name(row: Mapping[str, Any] | pd.Series) -> str:
    return f"data set {row['dataset']}, score {row['score']}"


def _failed(path: Path, where: str, found: str, expected: str) -> UserError:
    return UserError(
        f"{path}: {where}: found {found}, expected {expected}. "
        "The results of the run are not valid: delete the file and run again; report a bug if "
        "the error comes back"
    )
