"""Detectors trained on some relations and tested on others.

Every feature is standardised within its relation. This reads no label, but needs some texts of the
test relation. Ridge fits share Gram matrices, which are computed once for all trainings.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import probes, representations, saved_fit, splits
from ghosttrack.detection import run as detection_run
from ghosttrack.detection.pooled import LinearModel, SufficientStatistics
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.errors import UserError
from ghosttrack.runtime.progress import Progress
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.statistics import auroc, codes_of

# Ridge strengths, in units of the mean squared norm of a row; stronger than within a relation.
STRENGTHS = (3.0, 30.0)
# Features of the score `output_scores`, which are not standardised within a relation.
OUTPUT_SCORES = ("logprob_sum", "logprob_mean", "pmi_sum", "entropy_mean")
# Field of LayerBlocks by probe. The default detector's bilinear probe cannot transfer: it is fitted
# per relation.
PROBES = {"raw_probe": "raw", "centred_probe": "centred", "residual_probe": "residual"}
STACKED = ("centred_probe", "residual_probe")
REVERSE = "_reverse"
# One part to test on, and two for the inner folds.
LEAST_PARTS = 3
SCORE_NAMES = (registry.DETECTOR, registry.OUTPUT_REGRESSION, "output_scores", "raw_probe")

Blocks = Mapping[int, Mapping[str, NDArray[np.float32]]]


class Pool(NamedTuple):
    """All texts of several data sets.

    labels, relation, dataset: (rows,); groups: (rows,) within a data set; cv_groups: (rows,)
    cross-validation groups, joined across data sets; outputs, lens: (rows, features); blocks: by
    layer and kind, (rows, d_model).
    """

    labels: Ints
    relation: NDArray[np.object_]
    dataset: NDArray[np.object_]
    groups: NDArray[np.object_]
    cv_groups: NDArray[np.object_]
    outputs: pd.DataFrame
    lens: pd.DataFrame
    blocks: Blocks


class TransferTraining(NamedTuple):
    """A training: its name, and the inner fold of each row, (rows,); -1: not in training."""

    name: str
    inner_fold: Ints


def pool(
    examples: Mapping[str, pd.DataFrame], outputs: Mapping[str, pd.DataFrame], blocks: Blocks
) -> Pool:
    """Concatenate the data sets; an output feature that one of them lacks is dropped for all."""
    texts = pd.concat(
        [table.assign(dataset=name) for name, table in examples.items()], ignore_index=True
    )
    features, lens = (
        pd.concat([read(outputs[name]) for name in examples], join="inner", ignore_index=True)
        for read in (representations.output_features, representations.lens_features)
    )
    return Pool(
        texts["label"].to_numpy(dtype=np.int64),
        texts["relation"].to_numpy(dtype=object),
        texts["dataset"].to_numpy(dtype=object),
        texts["group"].to_numpy(dtype=object),
        saved_fit.cv_groups_across(texts),
        features,
        lens,
        blocks,
    )


def parts(pool: Pool) -> NDArray[np.object_]:
    """Parts that are left out together, (rows,).

    Data sets are in one part if they share a relation, in either direction, or a group.
    """
    base = [str(name).removesuffix(REVERSE) for name in pool.relation]
    return splits.make_cv_groups(
        list(splits.make_cv_groups(list(pool.dataset), base)), list(pool.cv_groups)
    )


def left_out(part: NDArray[np.object_]) -> list[TransferTraining]:
    """One training without each part; `part`: (rows,). The other parts are its inner folds.

    Raises:
        UserError: there are fewer than LEAST_PARTS parts.
    """
    names, code, _ = codes_of(part)
    if len(names) < LEAST_PARTS:
        raise UserError(
            f"transfer: the data sets hold {len(names)} groups of relations that share no relation "
            f"and no group, expected at least {LEAST_PARTS}: add data sets of other relations to "
            "datasets (the texts of all files with source: file count as one relation)"
        )
    return [
        TransferTraining(f"without {name}", np.where(code != number, code, -1).astype(np.int64))
        for number, name in enumerate(names)
    ]


def single(
    pool: Pool, datasets: Iterable[str], inner_folds: int, seed: int
) -> list[TransferTraining]:
    """One training on each data set alone, with grouped inner folds."""
    result = []
    for name in datasets:
        rows = np.flatnonzero(pool.dataset == name)
        inner = np.full(len(pool.labels), -1, dtype=np.int64)
        inner[rows] = splits.assign_folds(
            pool.labels[rows], pool.cv_groups[rows], inner_folds, seed
        )
        result.append(TransferTraining(name, inner))
    return result


def scores(pool: Pool, trainings: Sequence[TransferTraining]) -> dict[str, dict[str, Floats]]:
    """Log-odds of "hallucinated" by training and score, (rows,).

    NaN for cross-validation groups in the training set.

    Regularisation strengths and the stack are fitted on inner folds, which are left-out relations
    where a training has several.
    """
    outputs = standardise_by_relation(pool.outputs.to_numpy(dtype=np.float64), pool)
    lens = standardise_by_relation(pool.lens.to_numpy(dtype=np.float64), pool)
    group = codes_of(pool.cv_groups).code
    plain = pool.outputs[[name for name in OUTPUT_SCORES if name in pool.outputs]].to_numpy(
        dtype=np.float64
    )
    fits = {score_name: fit_probes(pool, kind, trainings) for score_name, kind in PROBES.items()}
    result: dict[str, dict[str, Floats]] = {}
    for index, training in enumerate(trainings):
        train, test = (
            np.flatnonzero(training.inner_fold >= 0),
            np.flatnonzero(training.inner_fold < 0),
        )
        y, inner = pool.labels[train], training.inner_fold[train]
        base_learners = np.empty((len(outputs), len(STACKED)))
        for column, base in enumerate(STACKED):
            base_learners[train, column], base_learners[test, column] = (
                fits[base][index].train_log_odds,
                fits[base][index].test_log_odds,
            )
        stacked = np.column_stack([outputs, lens, standardise_by_relation(base_learners, pool)])
        fitted = {
            score_name: probes.calibrated(probes.logistic(x[train], y, inner, x[test]), y)
            for score_name, x in (
                (SCORE_NAMES[0], stacked),
                (SCORE_NAMES[1], outputs),
                (SCORE_NAMES[2], plain),
            )
        }
        result[training.name] = {}
        for score_name, fit in {**fitted, SCORE_NAMES[3]: fits[SCORE_NAMES[3]][index]}.items():
            log_odds = np.full(len(outputs), np.nan)
            log_odds[test] = fit.test_log_odds
            log_odds[np.isin(group, group[train])] = np.nan
            result[training.name][score_name] = log_odds
    return result


def standardise_by_relation(values: NDArray[Any], pool: Pool) -> NDArray[Any]:
    """Standardise rows, (rows, columns), within data set and relation.

    Where the relation has few texts, mean and deviation are those of the data set.
    """
    result = np.zeros_like(values)
    for name in dict.fromkeys(pool.dataset):
        rows = np.flatnonzero(pool.dataset == name)
        relations, code, counts = codes_of(pool.relation[rows])
        for number in range(len(relations)):
            members = rows[code == number]
            reference = members if counts[number] >= representations.RELATION_ROWS else rows
            mean, scale = values[reference].mean(axis=0), values[reference].std(axis=0)
            result[members] = (values[members] - mean) / np.where(scale > 0, scale, 1)
    return result


def fit_probes(pool: Pool, kind: str, trainings: Sequence[TransferTraining]) -> list[FoldFit]:
    """Ridge probes of every training: mean over layers; the strength has the best inner AUROC."""
    target = np.asarray(2.0 * pool.labels - 1.0, dtype=np.float64)
    # A cell holds the rows with the same fold in every training: its Gram matrix is computed once.
    _, cell = np.unique(
        np.stack([each.inner_fold for each in trainings]), axis=1, return_inverse=True
    )
    totals = [np.zeros((len(STRENGTHS), len(target))) for _ in trainings]
    progress = Progress(f"{kind} probes of other relations", len(pool.blocks), "layers")
    for blocks in pool.blocks.values():
        z = standardise_by_relation(blocks[kind], pool).astype(np.float32)
        _add_layer(z, target, cell, trainings, totals)
        progress.advance(1)
    result = []
    for training, total in zip(trainings, totals, strict=True):
        train = training.inner_fold >= 0
        y = pool.labels[train]
        reached = [auroc(y, each[train]) for each in total]
        best = int(np.argmax(reached))
        to_odds = probes.platt(total[best][train], y)
        odds = to_odds.apply(total[best])
        result.append(FoldFit(odds[train], odds[~train], STRENGTHS[best], reached[best], None))
    return result


def _add_layer(
    z: NDArray[np.float32],
    target: Floats,
    cell: Ints,
    trainings: Sequence[TransferTraining],
    totals: Sequence[Floats],
) -> None:
    """Add a layer's predictions to each training's total, (strengths, rows).

    Training rows are predicted out of fold.
    """
    sums = {
        int(number): SufficientStatistics.of(z[cell == number], target[cell == number])
        for number in np.unique(cell)
    }
    models: dict[frozenset[int], list[LinearModel]] = {}

    def fits(rows: NDArray[np.bool_]) -> list[LinearModel]:
        cells = frozenset(int(number) for number in np.unique(cell[rows]))
        if cells not in models:
            total = SufficientStatistics.together([sums[number] for number in sorted(cells)])
            unit = float(np.trace(total.squares)) / total.rows
            models[cells] = [total.solve(strength * unit) for strength in STRENGTHS]
        return models[cells]

    for training, total in zip(trainings, totals, strict=True):
        train = training.inner_fold >= 0
        for number in np.unique(training.inner_fold):
            scored = training.inner_fold == number
            for strength, fit in enumerate(fits(train & ~scored)):
                total[strength, scored] += fit.apply(z[scored])


class TransferFiles(NamedTuple):
    """Input files of a data set: activation stores and manifests by layer, and background.npz."""

    stores: Sequence[Path]
    manifests: Sequence[Path]
    counterfactual_mean: Path


def read_blocks(
    outputs: Mapping[str, pd.DataFrame],
    paths: Mapping[str, TransferFiles],
    weights: Mapping[int, Path],
    kinds_read: Sequence[str] = tuple(PROBES.values()),
) -> Blocks:
    """Pool the answers' activations of all data sets, by layer and kind.

    `weights`: paths of SAE weights by layer; `kinds_read`: attributes of LayerBlocks.
    """
    from ghosttrack import sae
    from ghosttrack.activations.reader import ActivationStore

    layers = list(weights)
    means = {
        name: detection_run.read_counterfactual_mean(
            files.counterfactual_mean, layers, len(outputs[name])
        )
        for name, files in paths.items()
    }
    result: dict[int, dict[str, NDArray[np.float32]]] = {}
    progress = Progress("answers of all data sets", len(layers), "layers")
    for index, (layer, path) in enumerate(weights.items()):
        model = sae.load(path.parent)
        kinds: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in kinds_read}
        for name, files in paths.items():
            store = ActivationStore.open(
                [files.stores[index]], [files.manifests[index]], {"layer": layer}
            )
            where = representations.spans(outputs[name], store.rows, name)
            pooled = representations.layer_blocks(
                store.read(), store.massive, where, model, means[name][layer_name(layer)]
            )
            for kind, values in kinds.items():
                values.append(getattr(pooled, kind))
        result[layer] = {kind: np.concatenate(values) for kind, values in kinds.items()}
        progress.advance(1)
    return result
