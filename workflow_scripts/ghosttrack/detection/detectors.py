"""The detectors of one data set: probes, regressions, tracking classifiers, and their stacks.

Nested cross-validation: every score is out of fold. Layers, regularisation strengths and stack
weights are chosen inside the training folds. The meta-learner of a stack is fitted on log-odds of
base learners that did not see the row's inner fold.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import candidate_scores, classifiers, controls, probes
from ghosttrack.detection.candidate_scores import CandidateInputs
from ghosttrack.detection.probes import Floats, FoldFit, Ints
from ghosttrack.detection.representations import CANDIDATES, LayerBlocks, PromptAnswerPairs
from ghosttrack.detection.splits import OuterFold
from ghosttrack.errors import UserError
from ghosttrack.runtime.progress import Progress
from ghosttrack.settings import DetectionSettings

Bools = npt.NDArray[np.bool_]

PAIRS = (registry.TEXT_PAIR, registry.EMBEDDING_PAIR)
# Base learners of the default detector, which stacks their log-odds with output and logit-lens
# features. The probe on SAE codes is not among them: as a base learner it lowers the AUROC
# (docs/explanation/detector_evidence.md).
BASE_LEARNERS = (registry.BILINEAR_PROBE, "centred_probe", "residual_probe")
# Base learners by stack. `stacks` adds the stacks with tracking metrics.
STACKS: dict[str, tuple[str, ...]] = {
    registry.DETECTOR: BASE_LEARNERS,
    registry.WITHOUT_SAE: (registry.BILINEAR_PROBE, "centred_probe"),
}
# Probes on the SAEs of random decoders, and the field of LayerBlocks that each reads.
NULL_PROBES = {registry.NULL_SAE_PROBE: "code", registry.NULL_RESIDUAL_PROBE: "residual"}
# Regressions that a stack adds to the base learners, and the names of these stacks.
_ADDED = {
    "metrics_logistic": registry.WITH_METRICS,
    registry.CANDIDATE_LOGIT: registry.WITH_CANDIDATE_LOGIT,
    registry.CANDIDATE_GRADIENTS: registry.WITH_GRADIENTS,
    registry.CANDIDATE_ALL: registry.WITH_CANDIDATES,
}
# Control probes on activations and SAE codes, and the base learners.
PROBES = (
    "raw_probe",
    "raw_probe_all",
    "difference_of_means",
    "sae_max_probe",
    "sae_probe",
    *BASE_LEARNERS,
)
# Families of the original system's 26 metrics. A table of tracking metrics holds more families.
METRIC_FAMILIES = ("entropy", "churn", "competition", "stability", "dominance", "density")
# Classifiers on the metrics of nulls: a linear and a non-linear one.
ON_NULLS = ("logistic", "forest")


# Scores of conflict sets alone.
ON_REMARKS = (
    registry.AGREEMENT,
    registry.OUTPUT_AND_AGREEMENT,
    registry.SAME_PASS,
    registry.CLOSED_BOOK,
    registry.CLOSED_BOOK_AND_CONTEXT,
    registry.WITH_AGREEMENT,
    registry.WITH_CLOSED_BOOK,
)


class RemarkInputs(NamedTuple):
    """Features that only texts after a remark have.

    agrees: whether the text states the answer of its remark, (examples,); closed_book: output
    features of the texts without their remarks, (examples, features); asserted: output features of
    the answers that the remarks assert, (examples, features).
    """

    agrees: Bools
    closed_book: pd.DataFrame
    asserted: pd.DataFrame


class DetectorInputs(NamedTuple):
    """Features of the examples of a data set, all in the same order.

    outputs: output features, (examples, features); lens: logit-lens features, (examples, features);
    layers: pooled activations by layer; pairs: activations of prompts and unembedding rows of
    answers; texts: the examples, for text controls; metrics: tracking metrics by variant, each
    (examples, metrics); candidates: of a data set with other candidate answers; null_layers: as
    layers, with the SAEs of random decoders; remarks: of a conflict set.
    """

    outputs: pd.DataFrame
    lens: pd.DataFrame
    layers: Mapping[int, LayerBlocks]
    pairs: PromptAnswerPairs
    texts: pd.DataFrame
    metrics: Mapping[str, pd.DataFrame]
    candidates: CandidateInputs | None = None
    null_layers: Mapping[int, LayerBlocks] | None = None
    remarks: RemarkInputs | None = None


class Choice(NamedTuple):
    """Hyperparameters chosen in one outer fold, with their inner AUROC; layer -1: none chosen."""

    score: str
    fold: int
    layer: int
    strength: float
    inner_auroc: float


class Weight(NamedTuple):
    """Importance of a feature in one outer fold: standardised coefficient, or impurity decrease."""

    score: str
    fold: int
    feature: str
    importance: float


class DetectorResults(NamedTuple):
    """Out-of-fold probabilities by score, (examples,), with hyperparameters and importances."""

    scores: dict[str, Floats]
    choices: list[Choice]
    weights: list[Weight]


def score_names(
    variants: Sequence[str],
    chosen: Sequence[str],
    *,
    compared: Sequence[str] = (),
    null: bool = False,
    remarks: bool = False,
) -> list[str]:
    """Names of the scores of `train`, in the order of the tables.

    `chosen`: classifiers of tracking metrics; `compared`: scores on candidate answers; `null`:
    whether there are random decoders; `remarks`: whether the texts follow remarks.
    """
    metrics = [
        _of_variant(f"metrics_{name}", variant)
        for variant in variants
        for name in classifiers_of(variant, chosen)
    ]
    return [
        *stacks([*metrics, *compared, *(NULL_PROBES if null else ())]),
        *PROBES,
        *(NULL_PROBES if null else ()),
        registry.OUTPUT_REGRESSION,
        registry.WITHOUT_CANDIDATES,
        registry.OUTPUT_AND_WORDS,
        *PAIRS,
        *compared,
        *(ON_REMARKS if remarks else ()),
        *metrics,
    ]


def stacks(score_names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Base learners by stack: STACKS, and a stack per logistic regression in `_ADDED`."""
    added: dict[str, tuple[str, ...]] = {}
    for name in score_names:
        base, _, variant = name.partition(".")
        if base in _ADDED:
            added[f"{_ADDED[base]}.{variant}".removesuffix(".")] = (*BASE_LEARNERS, name)
        if name == registry.NULL_RESIDUAL_PROBE:
            added[registry.NULL_DETECTOR] = (*STACKS[registry.WITHOUT_SAE], name)
    return {**STACKS, **added}


def train(
    inputs: DetectorInputs,
    labels: Ints,
    outer_folds: Sequence[OuterFold],
    detection: DetectionSettings,
    seed: int,
    name: str,
) -> DetectorResults:
    """Fit every detector in every outer fold.

    Args:
        labels: (examples,) 1 = hallucinated.
        outer_folds: outer folds with their inner folds.
        name: data set, for the progress line.
    """
    compared = {} if inputs.candidates is None else candidate_scores.columns(inputs.candidates)
    results = DetectorResults(
        {
            score_name: np.full(len(labels), np.nan)
            for score_name in score_names(
                list(inputs.metrics),
                detection.detectors,
                compared=list(compared),
                null=inputs.null_layers is not None,
                remarks=inputs.remarks is not None,
            )
        },
        [],
        [],
    )
    progress = Progress(f"detectors of {name}", len(outer_folds), "folds")
    for outer in outer_folds:
        y = labels[outer.train]
        fits = {**_output(inputs, y, outer, results), **_probes(inputs, y, outer, results)}
        fits[registry.TEXT_PAIR] = controls.text_pair(inputs.texts, labels, outer)
        fits[registry.EMBEDDING_PAIR] = controls.embedding_pair(inputs.pairs, labels, outer)
        known = stacked(inputs._replace(lens=inputs.lens.iloc[:, :0]), PAIRS, outer, fits)
        fits[registry.OUTPUT_AND_WORDS] = _logistic(
            known, y, outer, registry.OUTPUT_AND_WORDS, results
        )
        fits |= {
            name: _logistic(table, y, outer, name, results) for name, table in compared.items()
        }
        fits |= {
            name: probes.joint_ridge(
                [getattr(blocks, field) for blocks in inputs.null_layers.values()],
                y,
                outer.inner_fold,
                outer.train,
                outer.test,
            )
            for name, field in NULL_PROBES.items()
            if inputs.null_layers is not None
        }
        fits |= _metrics(inputs, y, outer, results, detection, seed)
        fits |= _stacks(inputs, y, outer, results, fits)
        if inputs.remarks:
            fits |= _on_remarks(inputs, inputs.remarks, known, y, outer, results, fits)
        for score_name, fit in fits.items():
            results.scores[score_name][outer.test] = probes.probability(fit.test_log_odds)
        progress.advance(1)
    return results


def _output(
    inputs: DetectorInputs, y: Ints, outer: OuterFold, results: DetectorResults
) -> dict[str, FoldFit]:
    without_candidates = inputs.outputs[
        [name for name in inputs.outputs if not str(name).startswith(CANDIDATES)]
    ]
    return {
        score_name: _logistic(table, y, outer, score_name, results)
        for score_name, table in (
            (registry.OUTPUT_REGRESSION, inputs.outputs),
            (registry.WITHOUT_CANDIDATES, without_candidates),
        )
    }


def _logistic(
    table: pd.DataFrame, y: Ints, outer: OuterFold, score_name: str, results: DetectorResults
) -> FoldFit:
    """Calibrated logistic regression on a table; records strength and coefficients in `results`."""
    x = table.to_numpy(dtype=np.float64)
    fit = probes.calibrated(probes.logistic(x[outer.train], y, outer.inner_fold, x[outer.test]), y)
    _note(score_name, fit, list(table.columns), outer, results)
    return fit


def _note(
    score_name: str,
    fit: FoldFit,
    columns: Sequence[str],
    outer: OuterFold,
    results: DetectorResults,
) -> None:
    results.choices.append(Choice(score_name, outer.number, -1, fit.strength, fit.inner_auroc))
    if fit.weights is not None:
        results.weights.extend(
            Weight(score_name, outer.number, str(feature), float(value))
            for feature, value in zip(columns, fit.weights, strict=True)
        )


def _probes(
    inputs: DetectorInputs, y: Ints, outer: OuterFold, results: DetectorResults
) -> dict[str, FoldFit]:
    """Probes of the best single layer, and probes of all layers together."""
    layers = list(inputs.layers)
    fits: dict[str, FoldFit] = {}
    for score_name, kind, fit_probe in (
        ("raw_probe", "raw.layer", probes.ridge),
        ("difference_of_means", "means.layer", probes.difference_of_means),
    ):
        fitted = [
            fit_probe(blocks.raw[outer.train], y, outer.inner_fold, blocks.raw[outer.test])
            for blocks in inputs.layers.values()
        ]
        results.choices.extend(
            Choice(kind, outer.number, layer, fit.strength, fit.inner_auroc)
            for layer, fit in zip(layers, fitted, strict=True)
        )
        best = int(np.argmax([fit.inner_auroc for fit in fitted]))
        fit = fits[score_name] = fitted[best]
        results.choices.append(
            Choice(score_name, outer.number, layers[best], fit.strength, fit.inner_auroc)
        )
    joint = {
        "raw_probe_all": [blocks.raw for blocks in inputs.layers.values()],
        "centred_probe": [blocks.centred for blocks in inputs.layers.values()],
        "sae_probe": [blocks.code for blocks in inputs.layers.values()],
        "sae_max_probe": [blocks.code_max for blocks in inputs.layers.values()],
        "residual_probe": [blocks.residual for blocks in inputs.layers.values()],
    }
    for score_name, parts in joint.items():
        fits[score_name] = probes.joint_ridge(parts, y, outer.inner_fold, outer.train, outer.test)
    fits[registry.BILINEAR_PROBE] = bilinear(inputs, y, outer)
    results.choices.extend(
        Choice(name, outer.number, -1, fits[name].strength, fits[name].inner_auroc)
        for name in (*joint, registry.BILINEAR_PROBE)
    )
    return fits


def bilinear(inputs: DetectorInputs, y: Ints, outer: OuterFold) -> FoldFit:
    """Bilinear probe on the last prompt token's activations and the answer's unembedding row."""
    pairs = inputs.pairs
    return probes.bilinear_ridge(
        pairs.prompt, pairs.answer, pairs.relation, y, outer.inner_fold, outer.train, outer.test
    )


def _metrics(
    inputs: DetectorInputs,
    y: Ints,
    outer: OuterFold,
    results: DetectorResults,
    detection: DetectionSettings,
    seed: int,
) -> dict[str, FoldFit]:
    """The chosen classifiers on the tracker's metrics, and ON_NULLS on those of each null."""
    options = classifiers.ClassifierOptions(detection.trees, seed)
    fits: dict[str, FoldFit] = {}
    for variant, table in inputs.metrics.items():
        x = table.to_numpy(dtype=np.float64)
        names = classifiers_of(variant, detection.detectors)
        fitted = classifiers.fit_all(
            names, x[outer.train], y, outer.inner_fold, x[outer.test], options
        )
        for name, fit in fitted.items():
            score_name = _of_variant(f"metrics_{name}", variant)
            _note(score_name, fit, list(table.columns), outer, results)
            fits[score_name] = fit
    return fits


def classifiers_of(variant: str, chosen: Sequence[str]) -> list[str]:
    """Classifiers of a variant's metrics, in the order of `classifiers.NAMES`."""
    return [
        name
        for name in classifiers.NAMES
        if name in chosen and (variant == "default" or name in ON_NULLS)
    ]


def _stacks(
    inputs: DetectorInputs,
    y: Ints,
    outer: OuterFold,
    results: DetectorResults,
    fits: Mapping[str, FoldFit],
) -> dict[str, FoldFit]:
    """Fit the meta-learner of every stack."""
    return {
        score_name: _logistic(
            stacked(inputs, base_learners, outer, fits), y, outer, score_name, results
        )
        for score_name, base_learners in stacks(fits).items()
    }


def _on_remarks(
    inputs: DetectorInputs,
    remarks: RemarkInputs,
    known: pd.DataFrame,
    y: Ints,
    outer: OuterFold,
    results: DetectorResults,
    fits: Mapping[str, FoldFit],
) -> dict[str, FoldFit]:
    """The scores ON_REMARKS. `known`: output features and log-odds of the text controls."""
    agrees = pd.DataFrame({registry.AGREEMENT: remarks.agrees.astype(np.float64)})
    same_pass = interacted(pd.concat([known, remarks.asserted], axis=1), remarks.agrees)
    both = pd.concat(
        [same_pass, remarks.closed_book.add_prefix(f"{registry.CLOSED_BOOK}.")], axis=1
    )
    inside = stacked(
        inputs._replace(outputs=inputs.outputs.iloc[:, :0]), BASE_LEARNERS, outer, fits
    )
    tables = {
        registry.AGREEMENT: agrees,
        registry.OUTPUT_AND_AGREEMENT: interacted(
            pd.concat([inputs.outputs, remarks.asserted], axis=1), remarks.agrees
        ),
        registry.SAME_PASS: same_pass,
        registry.CLOSED_BOOK: remarks.closed_book,
        registry.CLOSED_BOOK_AND_CONTEXT: both,
        registry.WITH_AGREEMENT: pd.concat([same_pass, inside], axis=1),
        registry.WITH_CLOSED_BOOK: pd.concat([both, inside], axis=1),
    }
    return {name: _logistic(table, y, outer, name, results) for name, table in tables.items()}


def interacted(table: pd.DataFrame, agrees: Bools) -> pd.DataFrame:
    """Features, agreement with the remark (+1 or -1), and the products of both.

    A linear model of these columns has other weights for texts that agree with their remark than
    for texts that do not. Features are standardised over all rows, which reads no label.
    """
    sign = np.where(agrees, 1.0, -1.0)
    z = probes.standardise(table.to_numpy(dtype=np.float64)).apply(table.to_numpy(np.float64))
    products = pd.DataFrame(
        z * sign[:, None],
        columns=[f"{name} x {registry.AGREEMENT}" for name in table],
        index=table.index,
    )
    return pd.concat(
        [table, pd.Series(sign, table.index, name=registry.AGREEMENT), products], axis=1
    )


def stacked(
    inputs: DetectorInputs,
    base_learners: Iterable[str],
    outer: OuterFold,
    fits: Mapping[str, FoldFit],
) -> pd.DataFrame:
    """Input of a meta-learner, (examples, columns): features, and log-odds of the base learners.

    Training rows have out-of-fold log-odds.
    """
    columns = {}
    for base in base_learners:
        columns[base] = np.full(len(inputs.outputs), np.nan)
        columns[base][outer.train], columns[base][outer.test] = (
            fits[base].train_log_odds,
            fits[base].test_log_odds,
        )
    return pd.concat(
        [inputs.outputs, inputs.lens, pd.DataFrame(columns, index=inputs.outputs.index)], axis=1
    )


def _of_variant(kind: str, variant: str) -> str:
    return kind if variant == "default" else f"{kind}.{variant}"


def read_metrics(table: pd.DataFrame, ids: Sequence[str], where: str) -> pd.DataFrame:
    """The 26 original metrics of a table of tracking metrics.

    Args:
        ids: ids of the examples, in order; where: file that errors name.
    Raises:
        UserError: the table has other rows, or a value is not finite.
    """
    if list(table["id"]) != list(ids):
        raise UserError(
            f"{where}: its rows are not the data set's examples in their order: delete the file "
            "and run again"
        )
    names = [name for name in table.columns if name.split("_")[0] in METRIC_FAMILIES]
    metrics = table[names].astype(np.float64)
    finite = np.isfinite(metrics.to_numpy()).all(axis=0)
    if not finite.all():
        raise UserError(
            f"{where}: column {metrics.columns[int(np.argmin(finite))]} holds NaN or infinity, "
            "expected finite numbers: delete the file and run again"
        )
    return metrics


def frame(
    examples: pd.DataFrame, fold: Ints, scores: Mapping[str, Floats], reasons: Mapping[str, str]
) -> pd.DataFrame:
    """Scores as a long table: one row per example and score.

    `reasons`: why a score was not computed.
    """
    return pd.concat(list(_frames(examples, fold, scores, reasons)), ignore_index=True)


def _frames(
    examples: pd.DataFrame, fold: Ints, scores: Mapping[str, Floats], reasons: Mapping[str, str]
) -> Iterator[pd.DataFrame]:
    for score_name, score in scores.items():
        part: dict[str, Any] = {
            column: examples[column].to_numpy()
            for column in ("dataset", "mode", "id", "group", "label")
        }
        missing = np.isnan(score).any()
        yield pd.DataFrame(
            {
                **part,
                "fold": fold,
                "score": score_name,
                "family": registry.get(score_name).family,
                "value": score,
                "reason": reasons.get(score_name, "") if missing else "",
            }
        )
