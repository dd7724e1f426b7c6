"""Tables of detectors on relations outside their training set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import misled_transfer, transfer
from ghosttrack.detection.misled_transfer import MisledPool
from ghosttrack.detection.transfer import Pool
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import Floats

# Value of `trained_on` for a training on all relations except the tested one.
OTHERS = "other relations"
PMI = "pmi"
# Controls of the detector that was trained on other relations; they have the same training set.
CONTROLS = ("output_scores", registry.OUTPUT_REGRESSION, PMI, "raw_probe")


class TransferTables(NamedTuple):
    """The tables transfer.csv and left_out.csv."""

    transfer: pd.DataFrame
    left_out: pd.DataFrame


class _Cell(NamedTuple):
    """A training on one test set: AUROC by score, and bootstrap AUROCs, (draws,)."""

    dataset: str
    n: int
    groups: int
    auroc: dict[str, float]
    draws: dict[str, Floats]


def judge(
    pool: Pool,
    scored: Mapping[str, Mapping[str, Floats]],
    left_out: Sequence[str],
    within: pd.DataFrame,
    settings: EvaluationSettings,
    seed: int,
) -> TransferTables:
    """Compute both tables.

    Args:
        scored: log-odds by training and score, (rows,), NaN for training rows.
        left_out: names of the trainings that leave relations out.
        within: detection/scores.parquet, the out-of-fold scores of detectors trained on the test
            set itself.
    """
    names = list(dict.fromkeys(pool.dataset))
    untrained = {PMI: -pool.outputs["pmi_sum"].to_numpy()} if "pmi_sum" in pool.outputs else {}
    others: list[_Cell] = []
    rows: list[dict[str, Any]] = []
    for name in names:
        for training, score_names in scored.items():
            where = (pool.dataset == name) & np.isfinite(score_names[registry.DETECTOR])
            if len(set(pool.labels[where])) < 2:
                continue
            cell = _cell(name, pool, where, {**score_names, **untrained}, settings, seed)
            trained_on = OTHERS if training in left_out else training
            if trained_on == OTHERS:
                others.append(cell)
            rows += _rows(trained_on, cell, settings)
        rows += _within(name, within, settings, seed)
    if others:
        pooled = _pool(others)
        rows += _rows(OTHERS, pooled, settings)
        others.append(pooled)
    differences = [
        row
        for cell in others
        for control in CONTROLS
        if (row := _difference(cell, control, settings))
    ]
    return TransferTables(
        pd.DataFrame(rows, columns=list(registry.TRANSFER)),
        pd.DataFrame(_corrected(differences, settings, False), columns=list(registry.LEFT_OUT)),
    )


# Pairs of scores on conflict sets: ours, and its control in the same training.
MISLED_PAIRS = (
    (registry.DETECTOR, registry.SAME_PASS),
    (registry.WITH_AGREEMENT, registry.SAME_PASS),
    (registry.WITH_CLOSED_BOOK, registry.CLOSED_BOOK_AND_CONTEXT),
    (registry.DETECTOR, registry.OUTPUT_REGRESSION),
    (registry.DETECTOR, "raw_probe"),
    ("sae_max_probe", "raw_probe"),
    # Scores on candidates are compared with each other only: no other score knows which candidate is
    # in play.
    (registry.CANDIDATE_GRADIENTS, registry.CANDIDATE_LOGIT),
    (registry.CANDIDATE_FEATURES, registry.CANDIDATE_GRADIENTS),
    (registry.CANDIDATE_FEATURES, f"{registry.CANDIDATE_FEATURES}.decoders"),
    (registry.CANDIDATE_ALL, registry.CANDIDATE_FEATURES),
    # A gain from tracking must exceed that of every null of the tracks.
    *(
        (registry.CANDIDATE_ALL, f"{registry.CANDIDATE_ALL}.{null}")
        for null in ("untracked", "random", "shuffled", "candidates", "decoders")
    ),
)


def judge_misled(
    misled: MisledPool,
    scored: Mapping[str, Mapping[str, Mapping[str, Floats]]],
    settings: EvaluationSettings,
    seed: int,
    *,
    null_rows_differ: bool = False,
) -> pd.DataFrame:
    """misled_left_out.csv: scores on conflict sets that were trained on other relations or wordings.

    A left-out wording is judged in each data set; its row and that of all wordings are unweighted
    means. Verdicts follow the rules of the ledger; Holm's correction is over the rows of a left-out
    part.

    Args:
        scored: log-odds by kind of shift, training and score, (rows,), NaN for training rows.
        null_rows_differ: whether random decoders were fitted on other rows than the SAEs. Then no
            gain over them is tested.
    """
    pool = misled.pool
    rows: list[dict[str, Any]] = []
    for kind, by_training in scored.items():
        means: list[_Cell] = []
        for training, by_score in by_training.items():
            tested = np.isfinite(by_score[registry.DETECTOR])
            cells = [
                _cell(name, pool, where, by_score, settings, seed)
                for name in dict.fromkeys(pool.dataset[tested])
                if len(set(pool.labels[where := tested & (pool.dataset == name)])) == 2
            ]
            single = kind == misled_transfer.RELATION
            named = [(cell, training) for cell in cells] if single else []
            means += cells
            if cells and not single:
                named.append((_pool(cells), training))
            rows += _corrected(_misled_rows(named, settings), settings, null_rows_differ)
        if means:
            found = _misled_rows([(_pool(means), f"each {kind} in turn")], settings)
            rows += _corrected(found, settings, null_rows_differ)
    return pd.DataFrame(rows, columns=list(registry.MISLED_LEFT_OUT))


def _corrected(
    rows: Sequence[dict[str, Any]], settings: EvaluationSettings, null_rows_differ: bool
) -> list[dict[str, Any]]:
    """Rows of left_out.csv, or of one left-out part of misled_left_out.csv, with Holm's correction, and verdicts that depend on it."""
    unfair = [null_rows_differ and registry.has_random_decoder(row["control"]) for row in rows]
    p_values = [
        float("nan") if excluded else row["p"] for row, excluded in zip(rows, unfair, strict=True)
    ]
    result = []
    for row, excluded, p_holm in zip(rows, unfair, statistics.holm(p_values), strict=True):
        verdict, reason = row["verdict"], ""
        if excluded:
            verdict, reason = registry.NOT_ESTABLISHED, registry.NULL_ROWS_DIFFER
        elif row["difference_low"] > 0 and row["groups"] < settings.minimum_groups:
            reason = registry.too_few_groups(row["groups"], settings.minimum_groups)
        elif row["difference_low"] > 0 and verdict == registry.NOT_ESTABLISHED:
            reason = registry.NOT_ABOVE_CHANCE
        elif verdict == registry.ESTABLISHED and not p_holm < 1 - settings.confidence:
            verdict, reason = registry.NOT_ESTABLISHED, registry.NOT_AFTER_CORRECTION
        result.append({**row, "verdict": verdict, "p_holm": p_holm, "reason": reason})
    return result


def _misled_rows(
    cells: Sequence[tuple[_Cell, str]], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    result = []
    for cell, left_out in cells:
        dataset = registry.ALL_MISLED if cell.dataset == registry.ALL_GIVEN else cell.dataset
        for ours, control in MISLED_PAIRS:
            row = _difference(cell, control, settings, ours)
            if row:
                result.append({**row, "left_out": left_out, "dataset": dataset, "ours": ours})
    return result


def _cell(
    name: str,
    pool: Pool,
    where: NDArray[np.bool_],
    score_names: Mapping[str, Floats],
    settings: EvaluationSettings,
    seed: int,
) -> _Cell:
    labels, cv_groups = pool.labels[where], pool.groups[where]
    matrix = np.array([score[where] for score in score_names.values()])
    draws = statistics.bootstrap_auroc(
        labels, matrix, cv_groups, settings.bootstrap, statistics.stream(seed, name)
    )
    reached = {
        score_name: statistics.auroc(labels, score)
        for score_name, score in zip(score_names, matrix, strict=True)
    }
    return _Cell(
        name, len(labels), len(set(cv_groups)), reached, dict(zip(score_names, draws, strict=True))
    )


def _pool(cells: Sequence[_Cell]) -> _Cell:
    """Unweighted mean over data sets, each resampled separately."""
    score_names = [
        score_name
        for score_name in cells[0].auroc
        if all(score_name in cell.auroc for cell in cells)
    ]
    return _Cell(
        registry.ALL_GIVEN,
        sum(cell.n for cell in cells),
        sum(cell.groups for cell in cells),
        {
            score_name: float(np.mean([cell.auroc[score_name] for cell in cells]))
            for score_name in score_names
        },
        {
            score_name: np.mean([cell.draws[score_name] for cell in cells], axis=0)
            for score_name in score_names
        },
    )


def _rows(trained_on: str, cell: _Cell, settings: EvaluationSettings) -> list[dict[str, Any]]:
    result = []
    for score_name, value in cell.auroc.items():
        low, high = statistics.interval(cell.draws[score_name], settings.confidence)
        result.append(
            {
                "trained_on": trained_on,
                "dataset": cell.dataset,
                "score": score_name,
                "n": cell.n,
                "groups": cell.groups,
                "auroc": value,
                "auroc_low": low,
                "auroc_high": high,
            }
        )
    return result


def _within(
    name: str, within: pd.DataFrame, settings: EvaluationSettings, seed: int
) -> list[dict[str, Any]]:
    """Rows of the detectors that were trained on the data set itself, out of fold."""
    table = within[within["dataset"] == name]
    parts = {score_name: table[table["score"] == score_name] for score_name in transfer.SCORE_NAMES}
    parts = {
        score_name: part
        for score_name, part in parts.items()
        if len(part) and part["value"].notna().all()
    }
    if not parts:
        return []
    first = next(iter(parts.values()))
    labels, cv_groups = (
        first["label"].to_numpy(dtype=np.int64),
        first["group"].to_numpy(dtype=object),
    )
    matrix = np.array([part["value"].to_numpy(dtype=np.float64) for part in parts.values()])
    draws = statistics.bootstrap_auroc(
        labels, matrix, cv_groups, settings.bootstrap, statistics.stream(seed, name)
    )
    reached = {
        score_name: statistics.auroc(labels, score)
        for score_name, score in zip(parts, matrix, strict=True)
    }
    return _rows(
        name,
        _Cell(
            name, len(labels), len(set(cv_groups)), reached, dict(zip(parts, draws, strict=True))
        ),
        settings,
    )


def _difference(
    cell: _Cell, control: str, settings: EvaluationSettings, ours: str = registry.DETECTOR
) -> dict[str, Any] | None:
    if ours not in cell.auroc or control not in cell.auroc:
        return None
    gain = statistics.difference(
        cell.auroc[ours],
        cell.auroc[control],
        cell.draws[ours],
        cell.draws[control],
        settings.confidence,
    )
    return {
        "dataset": cell.dataset,
        "control": control,
        "n": cell.n,
        "groups": cell.groups,
        "auroc_ours": cell.auroc[ours],
        "auroc_control": cell.auroc[control],
        "difference": gain.value,
        "difference_low": gain.low,
        "difference_high": gain.high,
        "p": gain.p,
        "verdict": registry.ESTABLISHED
        if gain.low > 0
        and cell.groups >= settings.minimum_groups
        and statistics.interval(cell.draws[ours], settings.confidence).low > 0.5
        else registry.NOT_ESTABLISHED,
    }
