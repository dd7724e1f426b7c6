"""The detectors of one data set: probes, regressions, forests, and the stack of the best of them.

Every score is out-of-fold, and everything that is chosen (layer, strength, weights of the stack) is
chosen inside the training folds: a stack is fitted on base scores from fits without the row's inner fold.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.detection import classifiers, controls, probes
from ghosttrack.detection.probes import Fitted, Floats, Ints
from ghosttrack.detection.representations import CANDIDATES, LayerBlocks, Pairs
from ghosttrack.detection.splits import Round
from ghosttrack.errors import UserError
from ghosttrack.runtime.progress import Progress
from ghosttrack.settings import DetectionSettings

DEFAULT = "ghosttrack"
BILINEAR = "bilinear_probe"
# The regression on all output features, and on those that no other answer of the relation is needed for but as PMI's baseline.
OUTPUT, ALONE = "output_regression", "output_regression.alone"
# All that can be had without a look inside: output features, and which question goes with which answer by their words.
OUTSIDE = "output_and_words"
PAIRS = (controls.TEXT_PAIR, controls.EMBEDDING_PAIR)
# What the default detector stacks: the output features themselves, what the logit lens says, and the log-odds of these probes.
# The probe on SAE codes stands beside it: in the stack it takes away more than it gives (docs/explanation/detector_evidence.md).
BASES = (BILINEAR, "centred_probe", "residual_probe")
# The same stack with less, for the claim that its parts must earn; with more: see `stacks`.
STACKS: dict[str, tuple[str, ...]] = {
    DEFAULT: BASES,
    f"{DEFAULT}.without_sae": (BILINEAR, "centred_probe"),
}
WITH_METRICS = f"{DEFAULT}.with_metrics"
# Controls on raw activations and on codes, and the parts of the stack.
PROBES = ("raw_probe", "raw_probe_all", "difference_of_means", "sae_max_probe", "sae_probe", *BASES)
# The 26 metrics of the original system; signals tables hold more families.
METRIC_FAMILIES = ("entropy", "churn", "competition", "stability", "dominance", "density")
# Nulls are compared with the tracker by a linear detector and one that is not.
ON_NULLS = ("logistic", "forest")


class Inputs(NamedTuple):
    """What is known of each example of a data set, all in the same order.

    outputs: the model's output features, (examples, features); lens: what an earlier block says of the answers, (examples,
    features); layers: pooled activations by layer; pairs: prompts' states and answers; texts: the examples themselves, for
    controls; metrics: the tracking metrics by variant, each (examples, metrics).
    """

    outputs: pd.DataFrame
    lens: pd.DataFrame
    layers: Mapping[int, LayerBlocks]
    pairs: Pairs
    texts: pd.DataFrame
    metrics: Mapping[str, pd.DataFrame]


class Choice(NamedTuple):
    """What one outer fold chose: a layer or a strength, with the inner AUROC that spoke for it."""

    signal: str
    fold: int
    layer: int
    strength: float
    inner_auroc: float


class Weight(NamedTuple):
    """Importance of one feature in one outer fold: a coefficient in standardised units, or impurity of a forest."""

    signal: str
    fold: int
    feature: str
    importance: float


class Results(NamedTuple):
    """Probabilities by signal, each (examples,), with what was chosen and what mattered."""

    scores: dict[str, Floats]
    choices: list[Choice]
    weights: list[Weight]


def family_of(signal: str) -> str:
    """Family of a signal, for tables: detector, output, probe, control, tracking or tracking_null."""
    if signal in (*controls.AUDITED, *PAIRS):
        return "control"
    if signal.startswith(("metrics_", WITH_METRICS)) and signal.removeprefix(WITH_METRICS).count(
        "."
    ):
        return "tracking_null"
    if signal.startswith(DEFAULT):
        return "detector"
    if signal.startswith("metrics_"):
        return "tracking"
    return "probe" if signal in PROBES else "output"


def signal_names(variants: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Every trained signal that `train` gives, in the order of the tables; `chosen`: classifiers of the metrics."""
    metrics = [
        _of_variant(f"metrics_{name}", each)
        for each in variants
        for name in classifiers_of(each, chosen)
    ]
    return [*stacks(metrics), *PROBES, OUTPUT, ALONE, OUTSIDE, *PAIRS, *metrics]


def stacks(signals: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What each stack is made of beside the output features: STACKS, and one for each logistic regression on metrics among `signals`."""
    more = (signal for signal in signals if signal.startswith("metrics_logistic"))
    return {
        **STACKS,
        **{signal.replace("metrics_logistic", WITH_METRICS): (*BASES, signal) for signal in more},
    }


def train(
    inputs: Inputs,
    labels: Ints,
    rounds: Sequence[Round],
    detection: DetectionSettings,
    seed: int,
    name: str,
) -> Results:
    """Fit every detector in every outer fold.

    Args:
        labels: (examples,) 1 = hallucinated; rounds: outer folds with their inner ones; name: for the progress line.
    """
    results = Results(
        {
            each: np.full(len(labels), np.nan)
            for each in signal_names(list(inputs.metrics), detection.detectors)
        },
        [],
        [],
    )
    progress = Progress(f"detectors of {name}", len(rounds), "folds")
    for step in rounds:
        y = labels[step.train]
        fits = {**_output(inputs, y, step, results), **_probes(inputs, y, step, results)}
        fits[controls.TEXT_PAIR] = controls.text_pair(inputs.texts, labels, step)
        fits[controls.EMBEDDING_PAIR] = controls.embedding_pair(inputs.pairs, labels, step)
        outside = stacked(inputs._replace(lens=inputs.lens.iloc[:, :0]), PAIRS, step, fits)
        fits[OUTSIDE] = _logistic(outside, y, step, OUTSIDE, results)
        fits |= _metrics(inputs, y, step, results, detection, seed)
        fits |= _stacks(inputs, y, step, results, fits)
        for signal, fit in fits.items():
            results.scores[signal][step.test] = probes.probability(fit.outer)
        progress.advance(1)
    return results


def _output(inputs: Inputs, y: Ints, step: Round, results: Results) -> dict[str, Fitted]:
    alone = inputs.outputs[
        [name for name in inputs.outputs if not str(name).startswith(CANDIDATES)]
    ]
    return {
        signal: _logistic(table, y, step, signal, results)
        for signal, table in ((OUTPUT, inputs.outputs), (ALONE, alone))
    }


def _logistic(table: pd.DataFrame, y: Ints, step: Round, signal: str, results: Results) -> Fitted:
    """Logistic regression on the columns of a table, with its choices and weights noted."""
    x = table.to_numpy(dtype=np.float64)
    fit = probes.calibrated(probes.logistic(x[step.train], y, step.inner, x[step.test]), y)
    _note(signal, fit, list(table.columns), step, results)
    return fit


def _note(signal: str, fit: Fitted, columns: Sequence[str], step: Round, results: Results) -> None:
    results.choices.append(Choice(signal, step.number, -1, fit.strength, fit.score))
    if fit.weights is not None:
        results.weights.extend(
            Weight(signal, step.number, str(feature), float(value))
            for feature, value in zip(columns, fit.weights, strict=True)
        )


def _probes(inputs: Inputs, y: Ints, step: Round, results: Results) -> dict[str, Fitted]:
    """Probes of every raw layer and the best of them; probes of all layers together, one of each kind."""
    layers = list(inputs.layers)
    fits: dict[str, Fitted] = {}
    for signal, kind, fit in (
        ("raw_probe", "raw.layer", probes.ridge),
        ("difference_of_means", "means.layer", probes.difference_of_means),
    ):
        fitted = [
            fit(each.raw[step.train], y, step.inner, each.raw[step.test])
            for each in inputs.layers.values()
        ]
        results.choices.extend(
            Choice(kind, step.number, layer, found.strength, found.score)
            for layer, found in zip(layers, fitted, strict=True)
        )
        best = int(np.argmax([found.score for found in fitted]))
        fits[signal] = fitted[best]
        results.choices.append(
            Choice(signal, step.number, layers[best], fits[signal].strength, fits[signal].score)
        )
    joint = {
        "raw_probe_all": [blocks.raw for blocks in inputs.layers.values()],
        "centred_probe": [blocks.centred for blocks in inputs.layers.values()],
        "sae_probe": [blocks.code for blocks in inputs.layers.values()],
        "sae_max_probe": [blocks.code_max for blocks in inputs.layers.values()],
        "residual_probe": [blocks.residual for blocks in inputs.layers.values()],
    }
    for signal, parts in joint.items():
        fits[signal] = probes.joint_ridge(parts, y, step.inner, step.train, step.test)
    fits[BILINEAR] = bilinear(inputs, y, step)
    results.choices.extend(
        Choice(each, step.number, -1, fits[each].strength, fits[each].score)
        for each in (*joint, BILINEAR)
    )
    return fits


def bilinear(inputs: Inputs, y: Ints, step: Round) -> Fitted:
    """The probe on where the model stands before an answer and on the answer's row of the output embedding."""
    pairs = inputs.pairs
    return probes.bilinear_ridge(
        pairs.prompt, pairs.answer, pairs.relation, y, step.inner, step.train, step.test
    )


def _metrics(
    inputs: Inputs, y: Ints, step: Round, results: Results, detection: DetectionSettings, seed: int
) -> dict[str, Fitted]:
    """Every chosen classifier on the metrics of the tracker, and the two that every null is compared by on the nulls'."""
    options = classifiers.Options(detection.trees, seed)
    fits: dict[str, Fitted] = {}
    for variant, table in inputs.metrics.items():
        x = table.to_numpy(dtype=np.float64)
        names = classifiers_of(variant, detection.detectors)
        found = classifiers.fit_all(names, x[step.train], y, step.inner, x[step.test], options)
        for name, fit in found.items():
            signal = _of_variant(f"metrics_{name}", variant)
            _note(signal, fit, list(table.columns), step, results)
            fits[signal] = fit
    return fits


def classifiers_of(variant: str, chosen: Sequence[str]) -> list[str]:
    """The classifiers that run on a variant's metrics, in the order of `classifiers.NAMES`."""
    return [
        name
        for name in classifiers.NAMES
        if name in chosen and (variant == "default" or name in ON_NULLS)
    ]


def _stacks(
    inputs: Inputs, y: Ints, step: Round, results: Results, fits: Mapping[str, Fitted]
) -> dict[str, Fitted]:
    """Logistic regression on output features and base log-odds: inner ones to fit, outer ones to score."""
    made = {}
    for signal, bases in stacks(fits).items():
        made[signal] = _logistic(stacked(inputs, bases, step, fits), y, step, signal, results)
    return made


def stacked(
    inputs: Inputs, bases: Iterable[str], step: Round, fits: Mapping[str, Fitted]
) -> pd.DataFrame:
    """Columns of a stack, (examples, columns): inner log-odds of the bases for the training rows, outer ones for the others."""
    columns = {}
    for base in bases:
        columns[base] = np.full(len(inputs.outputs), np.nan)
        columns[base][step.train], columns[base][step.test] = fits[base].inner, fits[base].outer
    return pd.concat(
        [inputs.outputs, inputs.lens, pd.DataFrame(columns, index=inputs.outputs.index)], axis=1
    )


def _of_variant(kind: str, variant: str) -> str:
    return kind if variant == "default" else f"{kind}.{variant}"


def read_metrics(table: pd.DataFrame, ids: Sequence[str], where: str) -> pd.DataFrame:
    """The 26 metrics of a signals table in the order of the examples.

    Raises:
        UserError: when its rows are others, or a value is not finite.
    """
    if list(table["id"]) != list(ids):
        raise UserError(
            f"{where}: its rows are not the data set's examples in their order: delete it and run again"
        )
    names = [name for name in table.columns if name.split("_")[0] in METRIC_FAMILIES]
    metrics = table[names].astype(np.float64)
    finite = np.isfinite(metrics.to_numpy()).all(axis=0)
    if not finite.all():
        raise UserError(
            f"{where}: column {metrics.columns[int(np.argmin(finite))]} holds NaN or infinity, expected numbers: delete it and run again"
        )
    return metrics


def frame(
    examples: pd.DataFrame, fold: Ints, scores: Mapping[str, Floats], reasons: Mapping[str, str]
) -> pd.DataFrame:
    """Scores in the long form of the tables: one row per example and signal; `reasons`: why a signal was not run."""
    return pd.concat(list(_frames(examples, fold, scores, reasons)), ignore_index=True)


def _frames(
    examples: pd.DataFrame, fold: Ints, scores: Mapping[str, Floats], reasons: Mapping[str, str]
) -> Iterator[pd.DataFrame]:
    for signal, score in scores.items():
        part: dict[str, Any] = {
            column: examples[column].to_numpy()
            for column in ("dataset", "mode", "id", "group", "label")
        }
        missing = np.isnan(score).any()
        yield pd.DataFrame(
            {
                **part,
                "fold": fold,
                "signal": signal,
                "family": family_of(signal),
                "score": score,
                "reason": reasons.get(signal, "") if missing else "",
            }
        )
