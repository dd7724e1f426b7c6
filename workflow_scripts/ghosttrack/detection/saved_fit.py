"""Fit the saved detector: stacked and calibrated on out-of-fold scores of several data sets."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.detection import pooled, probes, representations, saved, splits
from ghosttrack.detection.audit import NOT_RUN
from ghosttrack.detection.pooled import LinearModel
from ghosttrack.detection.probes import Floats, Ints
from ghosttrack.runtime.progress import Progress
from ghosttrack.runtime.run_paths import layer_name

if TYPE_CHECKING:
    from ghosttrack.activations.reader import ActivationStore
    from ghosttrack.sae import Sae

KINDS = ("raw", "code", "residual")
# Fold of texts outside the training data: the fit on all rows scores them.
UNSEEN = -1
# Rows encoded at once.
_ROWS = 4096
# As in the stores: a token counts as an attention sink from this multiple of the median norm on.
_MASSIVE = 10.0
# One fold to fit, one to calibrate, one to test.
LEAST_FOLDS = 3


class DatasetSource(NamedTuple):
    """Examples and outputs of a data set, and the folder with one activation store per layer."""

    examples: pd.DataFrame
    outputs: pd.DataFrame
    folder: Path

    def open(self, layer: int) -> "ActivationStore":
        """Open the activation store of a layer."""
        from ghosttrack.activations.reader import ActivationStore

        stem = layer_name(layer)
        return ActivationStore.open(
            [self.folder / f"{stem}.zarr"], [self.folder / f"{stem}.json"], {"layer": layer}
        )


class SavedFit(NamedTuple):
    """The fitted detector with its out-of-fold metrics.

    weights: None with too little data; quality: metrics, or `reason`; tokens, effects: see `fit`.
    """

    weights: saved.Weights | None
    quality: dict[str, Any]
    tokens: pd.DataFrame
    effects: pd.DataFrame


class _Probes(NamedTuple):
    """Probes of each kind, Platt-scaled means over layers; the last fit uses all folds.

    weight: by kind, (fits, layers, columns); intercept: by kind, (fits,); out_of_fold: log-odds by
    kind, (texts,); nested: by kind, (folds, texts), as in pooled.CrossFit.
    """

    weight: dict[str, Floats]
    intercept: dict[str, Floats]
    out_of_fold: dict[str, Floats]
    nested: dict[str, Floats]


def training_sets(audits: pd.DataFrame) -> list[str]:
    """Names of the data sets to fit on: text-controlled ones, else leaky ones, else generated ones.

    Positive controls are never included. `audits`: the tables of all leak audits.
    """
    text_only = audits[
        (audits["check"] == registry.TEXT_ONLY)
        & (audits["verdict"] != NOT_RUN)
        & ~audits["control"]
    ]
    given = text_only["mode"] == "given"
    controlled = given & (text_only["low"] <= 0.5) & (text_only["high"] >= 0.5)
    return next(
        (
            list(part["dataset"])
            for part in (text_only[controlled], text_only[given], text_only[~given])
            if len(part)
        ),
        [],
    )


def fit(
    sources: Mapping[str, DatasetSource],
    chosen: Sequence[str],
    saes: Mapping[int, "Sae"],
    folds: int,
    seed: int,
) -> SavedFit:
    """Fit probes, stack and calibration, and score every answer token of every data set.

    Folds keep cross-validation groups whole across data sets (`cv_groups_across`). The stack is
    fitted on out-of-fold scores of all folds but the last, which calibrates it.

    Args:
        sources: all data sets.
        chosen: names of the data sets to fit on.
        saes: SAE by layer.
        folds: number of folds; at least LEAST_FOLDS are used.
    Returns:
        tokens: columns dataset, row, fold, probe. probe: log-odds from the fit without the token's
            fold; fold -1: a data set outside the training data, scored by the final fit.
        effects: columns fold, layer, feature, weight (see saved.Weights.effect).
    """
    parts = [sources[name].examples.assign(dataset=name) for name in chosen]
    texts = (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"label": [], "dataset": []})
    )
    labels = texts["label"].to_numpy(dtype=np.int64)
    cv_groups = cv_groups_across(texts) if parts else np.array([], dtype=object)
    folds = max(folds, LEAST_FOLDS)
    reason = (
        splits.infeasible_reason(labels, cv_groups, folds) if parts else "no data set was evaluated"
    )
    if reason:
        tokens, effects = (
            ["dataset", "row", "fold", "probe"],
            ["fold", "layer", "feature", "weight"],
        )
        return SavedFit(
            None, {"reason": reason}, pd.DataFrame(columns=tokens), pd.DataFrame(columns=effects)
        )
    fold = splits.assign_folds(labels, cv_groups, folds, seed)
    fitted, massive = _fit_probes([sources[name] for name in chosen], saes, labels, fold)
    outputs = np.concatenate([_outputs(sources[name]) for name in chosen])  # (texts, OUTPUTS)
    columns = np.column_stack([outputs, *(fitted.out_of_fold[kind] for kind in KINDS)])
    nested = [
        np.column_stack([outputs, *(fitted.nested[kind][number] for kind in KINDS)])
        for number in range(folds)
    ]
    quality = _quality(texts, labels, fold, _left_out(nested, labels, fold))
    stack = _calibrated(columns, labels, fold, folds - 1)
    made = [_weights(fitted, stack, number, saes, massive) for number in range(folds + 1)]
    where = dict(
        zip(chosen, np.split(fold, np.cumsum([len(part) for part in parts])[:-1]), strict=True)
    )
    return SavedFit(
        made[-1],
        {"texts": len(labels), "groups": len(set(cv_groups)), "datasets": list(chosen), **quality},
        _token_scores(sources, where, saes, made),
        _effects(made, list(saes)),
    )


def cv_groups_across(texts: pd.DataFrame) -> NDArray[np.object_]:
    """Cross-validation groups across data sets, (texts,).

    Groups are joined where they share a text, or subject and relation.
    """
    groups = [
        f"{dataset}: {group}"
        for dataset, group in zip(texts["dataset"], texts["group"], strict=True)
    ]
    about = [
        f"{relation}: {subject}" if subject else group
        for relation, subject, group in zip(
            texts["relation"], texts["subject"], groups, strict=True
        )
    ]
    return splits.make_cv_groups(list(splits.make_cv_groups(groups, list(texts["text"]))), about)


def _outputs(source: DatasetSource) -> Floats:
    table = representations.output_features(source.outputs)
    columns = table.iloc[:, saved.output_columns(list(table.columns))]
    return np.asarray(columns.to_numpy(), dtype=np.float64)


def _fit_probes(
    sources: Sequence[DatasetSource], saes: Mapping[int, "Sae"], labels: Ints, fold: Ints
) -> tuple[_Probes, Floats]:
    fits: dict[str, list[pooled.CrossFit]] = {kind: [] for kind in KINDS}
    massive = []
    progress = Progress("probes of the saved detector", len(saes), "layers")
    for layer, sae in saes.items():
        pooled_blocks, norms = [], []
        for source in sources:
            opened = source.open(layer)
            where = representations.spans(source.outputs, opened.rows, source.folder.name)
            values = opened.read()
            norms.append(np.linalg.norm(values.astype(np.float32), axis=1))
            # User texts have no other prompts, so no counterfactual-prompt mean is subtracted.
            unknown = np.full((len(where.start), values.shape[1]), np.nan, dtype=np.float32)
            blocks = representations.layer_blocks(values, opened.massive, where, sae, unknown)
            # Only the mean, not the maximum, of the code: it is linear in the tokens.
            pooled_blocks.append((blocks.raw, blocks.code[:, : sae.d_sae], blocks.residual))
        for kind, columns in zip(KINDS, zip(*pooled_blocks, strict=True), strict=True):
            fits[kind].append(pooled.cross_fit(np.concatenate(columns), labels, fold))
        massive.append(_MASSIVE * float(np.median(np.concatenate(norms))))
        progress.advance(1)
    means = {kind: _over_layers(layers, labels, fold) for kind, layers in fits.items()}
    return _Probes(
        *(dict(zip(means, parts, strict=True)) for parts in zip(*means.values(), strict=True))
    ), np.array(massive)


def _over_layers(
    layers: Sequence[pooled.CrossFit], labels: Ints, fold: Ints
) -> tuple[Floats, Floats, Floats, Floats]:
    """Platt-scaled mean of the probes of all layers: the values of one kind in `_Probes`."""
    mean = np.mean([layer.left_out for layer in layers], axis=0)
    to_odds = probes.platt(mean, labels)
    fits = [[*layer.folds, layer.final] for layer in layers]
    share = to_odds.slope / len(layers)
    nested = np.mean([layer.nested for layer in layers], axis=0)
    for number, row in enumerate(nested):
        others = fold != number
        row[:] = probes.platt(row[others], labels[others]).apply(row)
    return (
        share * np.stack([[fit.weight for fit in row] for row in fits], axis=1),
        to_odds.intercept
        + share * np.sum([[fit.intercept for fit in row] for row in fits], axis=0),
        to_odds.apply(mean),
        nested,
    )


# With three folds one is left to fit the stack on, and none to choose the strength by: use the
# middle one.
_ONE_FOLD = probes.LOGISTIC[1]


def _stack(columns: Floats, labels: Ints, inner: Ints) -> LinearModel:
    """Logistic regression on unscaled columns; inner folds choose the regularisation strength."""
    from sklearn.linear_model import LogisticRegression

    strength = _ONE_FOLD
    if len(np.unique(inner)) > 1:
        strength = probes.logistic(columns, labels, inner, columns[:1]).strength
    standard = probes.standardise(columns)
    model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=200).fit(
        standard.apply(columns), labels
    )
    weight = model.coef_[0] / standard.scale
    return LinearModel(weight, float(model.intercept_[0] - weight @ standard.mean))


def _calibrated(columns: Floats, labels: Ints, fold: Ints, held: int) -> LinearModel:
    """A stack fitted without fold `held` and calibrated on it."""
    train = fold != held
    stack = _stack(columns[train], labels[train], fold[train])
    to_odds = probes.platt(stack.apply(columns[~train]), labels[~train])
    return LinearModel(
        to_odds.slope * stack.weight, to_odds.slope * stack.intercept + to_odds.intercept
    )


def _left_out(nested: Sequence[Floats], labels: Ints, fold: Ints) -> Floats:
    """Out-of-fold probability of every text, (texts,).

    Of the other folds, the last calibrates and the rest fit the stack.

    Args:
        nested: for each fold, the columns of the stack, (texts, columns), from probes without it.
    """
    result, count = np.empty(len(labels)), len(nested)
    for number, columns in enumerate(nested):
        others = fold != number
        renamed = np.unique(fold[others], return_inverse=True)[1].astype(np.int64)
        made = _calibrated(columns[others], labels[others], renamed, count - 2)
        result[~others] = probes.probability(made.apply(columns[~others]))
    return result


def _quality(texts: pd.DataFrame, labels: Ints, fold: Ints, probability: Floats) -> dict[str, Any]:
    decided = statistics.decisions(labels, probability)
    sets = texts["dataset"].to_numpy()
    return {
        "auroc": statistics.auroc(labels, probability),
        "accuracy": decided.accuracy,
        "ece": decided.ece,
        "brier": decided.brier,
        "calibration_texts": int((fold == fold.max()).sum()),
        "auroc_by_dataset": {
            str(name): statistics.auroc(labels[sets == name], probability[sets == name])
            for name in dict.fromkeys(sets)
        },
    }


def _weights(
    fitted: _Probes, stack: LinearModel, number: int, saes: Mapping[int, "Sae"], massive: Floats
) -> saved.Weights:
    """Combine one fit of the probes and the stack into a single linear function."""
    outputs, share = (
        stack.weight[: -len(KINDS)],
        dict(zip(KINDS, stack.weight[-len(KINDS) :], strict=True)),
    )
    raw, code, residual = (
        share[kind] * fitted.weight[kind][number] for kind in KINDS
    )  # (layers, columns)
    intercept = sum(share[kind] * fitted.intercept[kind][number] for kind in KINDS)
    # residual = x - (b_dec + z . W_dec)
    intercept -= sum(
        float(sae.b_dec.numpy() @ weight)
        for sae, weight in zip(saes.values(), residual, strict=True)
    )
    raw = raw + residual
    effect = np.empty_like(code)
    for index, sae in enumerate(saes.values()):
        decoder = sae.W_dec.numpy().astype(np.float64)  # of one layer at a time: they are large
        code[index] -= decoder @ residual[index]
        effect[index] = code[index] + decoder @ raw[index]
    return saved.Weights(
        np.array([stack.intercept]),
        outputs,
        np.array([intercept]),
        raw.astype(np.float32),
        code.astype(np.float32),
        effect.astype(np.float32),
        massive,
    )


def _token_scores(
    sources: Mapping[str, DatasetSource],
    folds: Mapping[str, Ints],
    saes: Mapping[int, "Sae"],
    made: Sequence[saved.Weights],
) -> pd.DataFrame:
    """Probe score of every answer token of every data set, by the fit without its fold."""
    parts = []
    for name, source in sources.items():
        count = source.outputs["row_count"].to_numpy()
        fold = np.repeat(folds.get(name, np.full(len(count), UNSEEN)), count)
        probe = np.array([float(weights.probe_intercept[0]) for weights in made])[fold]
        for index, (layer, sae) in enumerate(saes.items()):
            opened = source.open(layer)
            values, share = opened.read(), token_shares(opened.massive, count)
            raw, code = (
                np.stack([getattr(weights, kind)[index] for weights in made], axis=1)
                for kind in ("raw", "code")
            )
            for rows, x, z in encoded(values, sae):
                scores = x @ raw + z @ code  # (rows, fits)
                probe[rows] += share[rows] * scores[np.arange(len(x)), fold[rows]]
        parts.append(
            pd.DataFrame(
                {
                    "dataset": name,
                    "row": np.arange(len(fold)),
                    "fold": fold,
                    "probe": probe.astype(np.float32),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def token_shares(massive: NDArray[np.bool_], count: Ints) -> Floats:
    """Weight of each token in its answer's mean times the answer's token count, (rows,).

    Attention sinks have the weight 0, unless an answer has no other token, as in
    representations.span_mean.
    """
    start = np.cumsum(count) - count
    left = np.add.reduceat((~massive).astype(np.int64), start)
    included = ~massive | np.repeat(left == 0, count)
    return np.asarray(
        included * np.repeat(count / np.add.reduceat(included.astype(np.int64), start), count),
        dtype=np.float64,
    )


def encoded(
    values: NDArray[Any], sae: "Sae"
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield row slices with their activations and SAE codes, _ROWS rows at a time."""
    import torch

    for start in range(0, len(values), _ROWS):
        x = values[start : start + _ROWS].astype(np.float32)
        with torch.inference_mode():
            z = sae.encode(torch.from_numpy(x)).numpy()
        yield slice(start, start + len(x)), x, z


def _effects(made: Sequence[saved.Weights], layers: Sequence[int]) -> pd.DataFrame:
    numbers = [*range(len(made) - 1), UNSEEN]
    parts = [
        pd.DataFrame(
            {"fold": number, "layer": layer, "feature": np.arange(len(effect)), "weight": effect}
        )
        for number, weights in zip(numbers, made, strict=True)
        for layer, effect in zip(layers, weights.effect, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)
