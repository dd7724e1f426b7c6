"""Detectors trained on some relations and tested on others: linear fits on sums of squares, taken once for all trainings.

Every number is read in units of its own relation: its mean over the relation's texts is taken off, and it is divided by its
deviation there. No label is read for that, but it needs some texts of a relation, true or not.
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
from ghosttrack.statistics import auroc, codes_of

# Ridge strengths, in units of the mean squared norm of a row. On left-out relations probes want more of it than within one.
STRENGTHS = (3.0, 30.0)
# What the model's output says of an answer in four scores, as they are: the plainest regression that needs no label of a set.
OUTPUT_SCORES = ("logprob_sum", "logprob_mean", "pmi_sum", "entropy_mean")
# Probes by the block that they read; the last two are the default detector's. Its bilinear probe is of one relation alone.
PROBES = {"raw_probe": "raw", "centred_probe": "centred", "residual_probe": "residual"}
STACKED = ("centred_probe", "residual_probe")
REVERSE = "_reverse"
# One to leave out, and two of which each is left out in turn.
LEAST_PARTS = 3
SCORE_NAMES = (registry.DETECTOR, registry.OUTPUT_REGRESSION, "output_scores", "raw_probe")

Blocks = Mapping[int, Mapping[str, NDArray[np.float32]]]


class Pool(NamedTuple):
    """All texts of several data sets, row by row.

    labels, relation, dataset: (rows,); groups: (rows,) within a data set; units: (rows,) groups joined across data sets,
    never parted; outputs, lens: (rows, features); blocks: by layer and kind, (rows, d_model).
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
    """One training: its name, and the inner fold of each row, (rows,); -1 for rows that are not trained on."""

    name: str
    inner_fold: Ints


def pool(
    examples: Mapping[str, pd.DataFrame], outputs: Mapping[str, pd.DataFrame], blocks: Blocks
) -> Pool:
    """Join the data sets, in their order; output features that one of them lacks are left out for all."""
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


def parts(found: Pool) -> NDArray[np.object_]:
    """What is left out together, (rows,): data sets that share a relation, read forwards or backwards, or a unit."""
    base = [str(name).removesuffix(REVERSE) for name in found.relation]
    return splits.make_cv_groups(
        list(splits.make_cv_groups(list(found.dataset), base)), list(found.cv_groups)
    )


def left_out(part: NDArray[np.object_]) -> list[TransferTraining]:
    """Trainings without each part, (rows,); the other parts are the inner folds.

    Raises:
        UserError: with two parts no relation is left to choose by.
    """
    names, code, _ = codes_of(part)
    if len(names) < LEAST_PARTS:
        raise UserError(
            f"transfer: the data sets hold {len(names)} groups of relations that share nothing; it takes {LEAST_PARTS} (datasets)"
        )
    return [
        TransferTraining(f"without {name}", np.where(code != number, code, -1).astype(np.int64))
        for number, name in enumerate(names)
    ]


def single(
    found: Pool, datasets: Iterable[str], inner_folds: int, seed: int
) -> list[TransferTraining]:
    """A training on each data set alone, with inner folds of whole units."""
    result = []
    for name in datasets:
        rows = np.flatnonzero(found.dataset == name)
        inner = np.full(len(found.labels), -1, dtype=np.int64)
        inner[rows] = splits.assign_folds(
            found.labels[rows], found.cv_groups[rows], inner_folds, seed
        )
        result.append(TransferTraining(name, inner))
    return result


def scores(found: Pool, trainings: Sequence[TransferTraining]) -> dict[str, dict[str, Floats]]:
    """Log-odds of "hallucinated" by training and signal, (rows,); NaN for the rows trained on, and for others of their units.

    Strengths of regularisation and weights of the stack are chosen on inner folds: on relations left out where several
    are trained on.
    """
    outputs = standardise_by_relation(found.outputs.to_numpy(dtype=np.float64), found)
    lens = standardise_by_relation(found.lens.to_numpy(dtype=np.float64), found)
    unit = codes_of(found.cv_groups).code
    plain = found.outputs[[name for name in OUTPUT_SCORES if name in found.outputs]].to_numpy(
        dtype=np.float64
    )
    fits = {score_name: _probes(found, kind, trainings) for score_name, kind in PROBES.items()}
    result: dict[str, dict[str, Floats]] = {}
    for place, training in enumerate(trainings):
        train, test = (
            np.flatnonzero(training.inner_fold >= 0),
            np.flatnonzero(training.inner_fold < 0),
        )
        y, inner = found.labels[train], training.inner_fold[train]
        base_learners = np.empty((len(outputs), len(STACKED)))
        for column, base in enumerate(STACKED):
            base_learners[train, column], base_learners[test, column] = (
                fits[base][place].train_log_odds,
                fits[base][place].test_log_odds,
            )
        stacked = np.column_stack([outputs, lens, standardise_by_relation(base_learners, found)])
        own = {
            score_name: probes.calibrated(probes.logistic(x[train], y, inner, x[test]), y)
            for score_name, x in (
                (SCORE_NAMES[0], stacked),
                (SCORE_NAMES[1], outputs),
                (SCORE_NAMES[2], plain),
            )
        }
        result[training.name] = {}
        for score_name, fit in {**own, SCORE_NAMES[3]: fits[SCORE_NAMES[3]][place]}.items():
            every = np.full(len(outputs), np.nan)
            every[test] = fit.test_log_odds
            every[np.isin(unit, unit[train])] = np.nan
            result[training.name][score_name] = every
    return result


def standardise_by_relation(values: NDArray[Any], found: Pool) -> NDArray[Any]:
    """Rows (rows, columns) in units of their relation; of their data set where it has few texts of the relation."""
    result = np.zeros_like(values)
    for name in dict.fromkeys(found.dataset):
        rows = np.flatnonzero(found.dataset == name)
        relations, code, counts = codes_of(found.relation[rows])
        for number in range(len(relations)):
            own = rows[code == number]
            norm = own if counts[number] >= representations.RELATION_ROWS else rows
            mean, spread = values[norm].mean(axis=0), values[norm].std(axis=0)
            result[own] = (values[own] - mean) / np.where(spread > 0, spread, 1)
    return result


def _probes(found: Pool, kind: str, trainings: Sequence[TransferTraining]) -> list[FoldFit]:
    """Ridge probes of every training, each the mean over layers; the strength with the best left-out AUROC."""
    target = np.asarray(2.0 * found.labels - 1.0, dtype=np.float64)
    # Rows that every training treats alike: sums over them are taken once.
    _, cell = np.unique(
        np.stack([each.inner_fold for each in trainings]), axis=1, return_inverse=True
    )
    totals = [np.zeros((len(STRENGTHS), len(target))) for _ in trainings]
    progress = Progress(f"{kind} probes of other relations", len(found.blocks), "layers")
    for blocks in found.blocks.values():
        z = standardise_by_relation(blocks[kind], found).astype(np.float32)
        _add_layer(z, target, cell, trainings, totals)
        progress.advance(1)
    result = []
    for training, total in zip(trainings, totals, strict=True):
        train = training.inner_fold >= 0
        y = found.labels[train]
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
    """Add a layer's predictions to each training's, (strengths, rows): of rows trained on by the fit without their fold."""
    sums = {
        int(number): SufficientStatistics.of(z[cell == number], target[cell == number])
        for number in np.unique(cell)
    }
    solved: dict[frozenset[int], list[LinearModel]] = {}

    def fits(rows: NDArray[np.bool_]) -> list[LinearModel]:
        cells = frozenset(int(number) for number in np.unique(cell[rows]))
        if cells not in solved:
            total = SufficientStatistics.together([sums[number] for number in sorted(cells)])
            unit = float(np.trace(total.squares)) / total.rows
            solved[cells] = [total.solve(strength * unit) for strength in STRENGTHS]
        return solved[cells]

    for training, total in zip(trainings, totals, strict=True):
        train = training.inner_fold >= 0
        for number in np.unique(training.inner_fold):
            scored = training.inner_fold == number
            for place, fit in enumerate(fits(train & ~scored)):
                total[place, scored] += fit.apply(z[scored])


class TransferFiles(NamedTuple):
    """Of one data set: activation stores and their manifests by layer, and backgrounds."""

    stores: Sequence[Path]
    manifests: Sequence[Path]
    background: Path


def read_blocks(
    outputs: Mapping[str, pd.DataFrame],
    paths: Mapping[str, TransferFiles],
    weights: Mapping[int, Path],
) -> Blocks:
    """Pool the answers' activations of every data set, layer by layer; `weights`: SAE weights by layer."""
    from ghosttrack import sae
    from ghosttrack.activations.reader import ActivationStore

    layers = list(weights)
    backgrounds = {
        name: detection_run.read_background(own.background, layers, len(outputs[name]))
        for name, own in paths.items()
    }
    result: dict[int, dict[str, NDArray[np.float32]]] = {}
    progress = Progress("answers of all data sets", len(layers), "layers")
    for place, (layer, path) in enumerate(weights.items()):
        model = sae.load(path.parent)
        kinds: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in PROBES.values()}
        for name, own in paths.items():
            store = ActivationStore.open(
                [own.stores[place]], [own.manifests[place]], {"layer": layer}
            )
            where = representations.spans(outputs[name], store.rows, name)
            background = backgrounds[name][f"layer_{layer:02d}"]
            found = representations.layer_blocks(
                store.read(), store.massive, where, model, background
            )
            for kind, values in kinds.items():
                values.append(getattr(found, kind))
        result[layer] = {kind: np.concatenate(values) for kind, values in kinds.items()}
        progress.advance(1)
    return result
