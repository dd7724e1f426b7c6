"""Fit the detector that is kept: on all strict data sets together, stacked and calibrated on scores of left-out folds."""

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

if TYPE_CHECKING:
    from ghosttrack.activations.reader import ActivationStore
    from ghosttrack.sae import Sae

KINDS = ("raw", "code", "residual")
# The fold of texts that no fit has seen: they are scored by the fit on all rows.
UNSEEN = -1
# Rows encoded at once.
_ROWS = 4096
# As in the stores: a token is an attention sink from this multiple of the median norm on.
_MASSIVE = 10.0
# One fold to fit on, one to calibrate on, one to leave out.
LEAST_FOLDS = 3


class DatasetSource(NamedTuple):
    """One data set: its examples, their outputs, and its folder with one store a layer."""

    examples: pd.DataFrame
    outputs: pd.DataFrame
    folder: Path

    def open(self, layer: int) -> "ActivationStore":
        """The answer tokens' activations of a layer."""
        from ghosttrack.activations.reader import ActivationStore

        stem = f"layer_{layer:02d}"
        return ActivationStore.open(
            [self.folder / f"{stem}.zarr"], [self.folder / f"{stem}.json"], {"layer": layer}
        )


class SavedFit(NamedTuple):
    """weights: None if there was too little to fit; quality: on left-out folds; tokens, effects: see `fit`."""

    weights: saved.Weights | None
    quality: dict[str, Any]
    tokens: pd.DataFrame
    effects: pd.DataFrame


class _Probes(NamedTuple):
    """Linear probes of every fit, left-out ones first and the final one last.

    weight: by kind, (fits, layers, columns); intercept: by kind, (fits,); base: by kind, left-out log-odds, (texts,).
    Each is a mean over layers, set to scale again.
    """

    weight: dict[str, Floats]
    intercept: dict[str, Floats]
    base: dict[str, Floats]


def training_sets(audits: pd.DataFrame) -> list[str]:
    """Names of the sets to fit on, from all leak audits: given texts that their words do not give away, without positive
    controls; without such, given texts that leak; without those, generated answers.
    """
    found = audits[
        (audits["check"] == registry.TEXT_ONLY)
        & (audits["verdict"] != NOT_RUN)
        & ~audits["control"]
    ]
    given = found["mode"] == "given"
    strict = given & (found["low"] <= 0.5) & (found["high"] >= 0.5)
    return next(
        (
            list(part["dataset"])
            for part in (found[strict], found[given], found[~given])
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
    """Fit probes, stack and calibration, and score every answer token of every set.

    Groups that share a text, or a subject and relation, across sets are one unit, and units are never parted. The last fold
    calibrates: the stack is fitted on the left-out scores of the others.

    Returns:
        tokens: dataset, row, fold, probe (log-odds; the fit had not seen the token's unit; fold -1: a set that is in no
        fit). effects: fold, layer, feature, weight (see saved.Weights.effect).
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
    found, massive = _fit_probes([sources[name] for name in chosen], saes, labels, fold)
    outputs = np.concatenate([_outputs(sources[name]) for name in chosen])  # (texts, OUTPUTS)
    columns = np.column_stack([outputs, *(found.base[kind] for kind in KINDS)])
    quality = _quality(texts, labels, fold, _left_out(columns, labels, fold))
    stack = _calibrated(columns, labels, fold, folds - 1)
    made = [_weights(found, stack, number, saes, massive) for number in range(folds + 1)]
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
    """Groups of several data sets, joined where they share a text, or a subject and relation, (texts,)."""
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
    own = table.iloc[:, saved.features_named(list(table.columns))]
    return np.asarray(own.to_numpy(), dtype=np.float64)


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
            # A text of one's own has no other prompts to meet: nothing is taken off.
            unknown = np.full((len(where.start), values.shape[1]), np.nan, dtype=np.float32)
            blocks = representations.layer_blocks(values, opened.massive, where, sae, unknown)
            # The mean alone: what it says is the mean of what each token says.
            pooled_blocks.append((blocks.raw, blocks.code[:, : sae.d_sae], blocks.residual))
        for kind, columns in zip(KINDS, zip(*pooled_blocks, strict=True), strict=True):
            fits[kind].append(pooled.cross_fit(np.concatenate(columns), labels, fold))
        massive.append(_MASSIVE * float(np.median(np.concatenate(norms))))
        progress.advance(1)
    weight, intercept, base = {}, {}, {}
    for kind, layers in fits.items():
        mean = np.mean([each.left_out for each in layers], axis=0)
        to_odds = probes.platt(mean, labels)
        every = [[*each.folds, each.final] for each in layers]  # layers x fits
        share = to_odds.slope / len(layers)
        weight[kind] = share * np.stack([[one.weight for one in each] for each in every], axis=1)
        intercept[kind] = to_odds.intercept + share * np.sum(
            [[one.intercept for one in each] for each in every], axis=0
        )
        base[kind] = to_odds.apply(mean)
    return _Probes(weight, intercept, base), np.array(massive)


# With three folds a left-out score leaves one to fit on: nothing is left to choose by, so the middle of the choices.
_ONE_FOLD = probes.LOGISTIC[1]


def _stack(columns: Floats, labels: Ints, inner: Ints) -> LinearModel:
    """Logistic regression in the units of the columns; strength chosen over the inner folds."""
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
    """A stack fitted without fold `held`, calibrated on it."""
    train = fold != held
    stack = _stack(columns[train], labels[train], fold[train])
    to_odds = probes.platt(stack.apply(columns[~train]), labels[~train])
    return LinearModel(
        to_odds.slope * stack.weight, to_odds.slope * stack.intercept + to_odds.intercept
    )


def _left_out(columns: Floats, labels: Ints, fold: Ints) -> Floats:
    """Probability of every text from a stack, and a calibration, that saw neither its fold nor each other's, (texts,)."""
    result, count = np.empty(len(labels)), int(fold.max()) + 1
    for number in range(count):
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
    found: _Probes, stack: LinearModel, number: int, saes: Mapping[int, "Sae"], massive: Floats
) -> saved.Weights:
    """One fit of the probes under the stack, as a single linear function."""
    outputs, share = (
        stack.weight[: -len(KINDS)],
        dict(zip(KINDS, stack.weight[-len(KINDS) :], strict=True)),
    )
    raw, code, residual = (
        share[kind] * found.weight[kind][number] for kind in KINDS
    )  # (layers, columns)
    intercept = sum(share[kind] * found.intercept[kind][number] for kind in KINDS)
    # residual = x - (b_dec + z . W_dec)
    decoders = [sae.W_dec.numpy().astype(np.float64) for sae in saes.values()]
    intercept -= sum(
        float(sae.b_dec.numpy() @ own) for sae, own in zip(saes.values(), residual, strict=True)
    )
    code = code - np.stack([decoder @ own for decoder, own in zip(decoders, residual, strict=True)])
    raw = raw + residual
    effect = code + np.stack([decoder @ own for decoder, own in zip(decoders, raw, strict=True)])
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
    """Probe score of every answer token of every set, each by the fit without its fold."""
    parts = []
    for name, source in sources.items():
        count = source.outputs["row_count"].to_numpy()
        fold = np.repeat(folds.get(name, np.full(len(count), UNSEEN)), count)
        probe = np.array([float(weights.probe_intercept[0]) for weights in made])[fold]
        for place, (layer, sae) in enumerate(saes.items()):
            opened = source.open(layer)
            values, share = opened.read(), token_shares(opened.massive, count)
            raw, code = (
                np.stack([getattr(weights, kind)[place] for weights in made], axis=1)
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
    """Weight of each token in its answer's mean, times the number of tokens: 1, or 0 for an attention sink, (rows,).

    As representations.span_mean: sinks are left out, unless an answer has no other token.
    """
    start = np.cumsum(count) - count
    left = np.add.reduceat((~massive).astype(np.int64), start)
    kept = ~massive | np.repeat(left == 0, count)
    return np.asarray(
        kept * np.repeat(count / np.add.reduceat(kept.astype(np.int64), start), count),
        dtype=np.float64,
    )


def encoded(
    values: NDArray[Any], sae: "Sae"
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
    """Rows, activations and SAE codes, some rows at a time."""
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
            {"fold": number, "layer": layer, "feature": np.arange(len(own)), "weight": own}
        )
        for number, weights in zip(numbers, made, strict=True)
        for layer, own in zip(layers, weights.effect, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)
