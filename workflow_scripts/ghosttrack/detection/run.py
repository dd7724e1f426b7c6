"""Train the detectors of one data set, from its files to its score tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack import scores as registry
from ghosttrack.detection import agreement, candidate_scores, controls, detectors, splits
from ghosttrack.detection.detectors import Choice, DetectorInputs, RemarkInputs, Weight
from ghosttrack.detection.representations import (
    REMARK_SUPPORT,
    LayerBlocks,
    by_relation,
    context_support,
    layer_blocks,
    lens_features,
    output_features,
    pairs_of,
    remark_features,
    remark_support,
    spans,
)
from ghosttrack.errors import UserError
from ghosttrack.facts import remarks
from ghosttrack.facts.examples import as_read
from ghosttrack.runtime.run_paths import layer_name
from ghosttrack.settings import DetectionSettings


class DatasetFiles(NamedTuple):
    """Input files of a data set.

    stores, manifests, weights: activation stores, their manifests and SAE weights by layer;
    counterfactual_mean: background.npz; prompt_states: prompts.npz; track_metrics: tables of
    tracking metrics by variant; candidates: the two tables of rule attribute_candidates, or none;
    random_decoders: weights of the SAEs with random decoders by layer, or none.
    """

    stores: Sequence[Path]
    manifests: Sequence[Path]
    weights: Sequence[Path]
    counterfactual_mean: Path
    prompt_states: Path
    track_metrics: Sequence[Path]
    candidates: Sequence[Path] = ()
    random_decoders: Sequence[Path] = ()


class DrawnAnswers(NamedTuple):
    """samples.parquet of a generated data set, with its path."""

    table: pd.DataFrame
    path: Path


class DatasetScores(NamedTuple):
    """Tables of a data set: scores in long form, and hyperparameters and importances by fold."""

    scores: pd.DataFrame
    selection: pd.DataFrame
    importance: pd.DataFrame


def train_dataset(
    dataset: str,
    examples: pd.DataFrame,
    outputs: pd.DataFrame,
    audited: pd.DataFrame,
    paths: DatasetFiles,
    layers: Sequence[int],
    variants: Sequence[str],
    detection: DetectionSettings,
    seed: int,
    samples: DrawnAnswers | None = None,
    closed_book: pd.DataFrame | None = None,
    without_context: pd.DataFrame | None = None,
) -> DatasetScores:
    """Train every detector in the folds of the leak audit.

    Without folds all scores are NaN, with the reason.

    Args:
        audited: scores of the audit's controls, with the folds.
        samples: sampled answers of a generated data set.
        closed_book: closed_book.parquet of a conflict set.
        without_context: without_context.parquet of a data set with contexts; the support of the
            context becomes an output feature.
    Raises:
        UserError: the tables are from different examples.
    """
    if list(outputs["id"]) != list(examples["id"]):
        raise UserError(
            f"{dataset}: outputs.parquet and examples.parquet list different examples: delete "
            "both and run again"
        )
    first = audited[audited["score"] == registry.TEXT_ONLY]
    row_of = {name: row for row, name in enumerate(examples["id"])}
    if not set(first["id"]) <= set(row_of):
        raise UserError(
            f"{dataset}: the leak audit has examples that examples.parquet lacks: delete "
            f"detection/{dataset}/ and run again"
        )
    rows = np.array([row_of[name] for name in first["id"]], dtype=np.int64)
    labels, fold = (first[column].to_numpy(dtype=np.int64) for column in ("label", "fold"))
    cv_groups, reason = first["group"].to_numpy(dtype=object), str(first["reason"].iloc[0])
    evaluated = examples.iloc[rows].reset_index(drop=True).assign(dataset=dataset, group=cv_groups)
    outputs = with_other_passes(dataset, examples, outputs, samples, without_context)
    if closed_book is not None:
        agrees = np.array(remarks.agreement(examples), dtype=np.bool_)
        support = remark_support(outputs, agrees, remarks.strata(examples))
        outputs = outputs.assign(**{REMARK_SUPPORT: support})
    untrained = [name for name in controls.UNTRAINED if controls.is_measured(name, outputs)]
    scores = {name: controls.untrained(name, outputs.iloc[rows]) for name in untrained}
    reasons = {name: controls.missing(name, outputs.iloc[rows]) for name in untrained}
    choices: list[Choice] = []
    weights: list[Weight] = []
    if reason:
        compared = _candidates(paths, examples, rows)
        scores |= {
            name: np.full(len(rows), np.nan)
            for name in detectors.score_names(
                variants,
                detection.detectors,
                compared=[]
                if compared is None
                else candidate_scores.score_names(list(compared.metrics)),
                null=bool(paths.random_decoders),
                remarks=closed_book is not None,
            )
        }
    else:
        inputs = read_inputs(dataset, examples, outputs, rows, paths, layers, variants)
        if closed_book is not None:
            inputs = inputs._replace(
                remarks=_of_remarks(dataset, examples, outputs, closed_book, rows)
            )
        splits.check_folds(fold, cv_groups, as_read(evaluated), list(evaluated["id"]), dataset)
        outer_folds = splits.outer_folds(labels, cv_groups, fold, detection.inner_folds, seed)
        trained = detectors.train(inputs, labels, outer_folds, detection, seed, dataset)
        scores |= trained.scores
        choices, weights = trained.choices, trained.weights
    table = detectors.frame(
        evaluated, fold, scores, {name: reasons.get(name) or reason for name in scores}
    )
    return DatasetScores(
        pd.concat([table, audited], ignore_index=True),
        pd.DataFrame(choices, columns=list(Choice._fields)).assign(dataset=dataset),
        pd.DataFrame(weights, columns=list(Weight._fields)).assign(dataset=dataset),
    )


def with_other_passes(
    dataset: str,
    examples: pd.DataFrame,
    outputs: pd.DataFrame,
    samples: DrawnAnswers | None,
    without_context: pd.DataFrame | None,
) -> pd.DataFrame:
    """outputs.parquet with the columns that come from other passes of the model over the texts.

    These are the agreement of sampled answers, and how much its context supports an answer.

    Raises:
        UserError: the tables are from different examples.
    """
    if samples is not None:
        agreement_scores = agreement.measure(samples.table, list(examples["id"]), str(samples.path))
        outputs = outputs.assign(
            **{name: agreement_scores[name].to_numpy() for name in agreement_scores}
        )
    if without_context is not None:
        outputs = outputs.assign(**context_support(outputs, without_context, dataset))
    return outputs


def _of_remarks(
    dataset: str,
    examples: pd.DataFrame,
    outputs: pd.DataFrame,
    closed_book: pd.DataFrame,
    rows: NDArray[np.int64],
) -> RemarkInputs:
    """Agreement with the remark, closed-book features and features of the remark's answer."""
    if list(closed_book["id"]) != list(examples["id"]):
        raise UserError(
            f"{dataset}: closed_book.parquet and examples.parquet list different examples: delete "
            "both and run again"
        )
    texts, measured, asserted = (
        table.iloc[rows].reset_index(drop=True) for table in (examples, closed_book, outputs)
    )
    return RemarkInputs(
        np.array(remarks.agreement(texts), dtype=np.bool_),
        by_relation(output_features(measured), texts["relation"].tolist()),
        by_relation(remark_features(asserted), remarks.strata(texts)),
    )


def read_inputs(
    dataset: str,
    examples: pd.DataFrame,
    outputs: pd.DataFrame,
    rows: np.ndarray,
    paths: DatasetFiles,
    layers: Sequence[int],
    variants: Sequence[str],
) -> DetectorInputs:
    """Pool activations and read tracking metrics of the examples `rows`, in that order."""
    from ghosttrack import sae
    from ghosttrack.activations import candidates
    from ghosttrack.activations.reader import ActivationStore, require_same_rows
    from ghosttrack.runtime import tables

    stores = [
        ActivationStore.open([store], [manifest], {"layer": layer})
        for layer, store, manifest in zip(layers, paths.stores, paths.manifests, strict=True)
    ]
    require_same_rows(stores)
    means = read_counterfactual_mean(paths.counterfactual_mean, layers, len(outputs))

    def pooled(weights: Sequence[Path]) -> dict[int, LayerBlocks]:
        blocks: dict[int, LayerBlocks] = {}
        for layer, opened, path in zip(layers, stores, weights, strict=True):
            where = spans(outputs, opened.rows, dataset)
            model, mean = sae.load(path.parent), means[layer_name(layer)]
            found = layer_blocks(opened.read(), opened.massive, where, model, mean)
            blocks[layer] = LayerBlocks(*(block[rows] for block in found))
        return blocks

    metrics = {}
    for variant, path in zip(variants, paths.track_metrics, strict=True):
        table = detectors.read_metrics(tables.read_parquet(path), list(examples["id"]), str(path))
        metrics[variant] = table.iloc[rows].reset_index(drop=True)
    measured, texts = (table.iloc[rows].reset_index(drop=True) for table in (outputs, examples))
    features = by_relation(output_features(measured), remarks.strata(texts))
    pairs = pairs_of(
        candidates.read(paths.prompt_states, len(examples)), texts["relation"].tolist(), rows
    )
    return DetectorInputs(
        features,
        lens_features(measured),
        pooled(paths.weights),
        pairs,
        texts,
        metrics,
        _candidates(paths, examples, rows),
        pooled(paths.random_decoders) if paths.random_decoders else None,
    )


def _candidates(
    paths: DatasetFiles, examples: pd.DataFrame, rows: np.ndarray
) -> candidate_scores.CandidateInputs | None:
    if not paths.candidates:
        return None
    without_sae, metrics = paths.candidates
    return candidate_scores.read_inputs(without_sae, metrics, examples, rows)


def read_counterfactual_mean(
    path: Path, layers: Sequence[int], examples: int
) -> dict[str, NDArray[Any]]:
    """Counterfactual-prompt means of a data set's answers by `layer_LL`, each (examples, d_model).

    Raises:
        UserError: the file has other layers or another number of examples.
    """
    with np.load(path) as arrays:
        names = [layer_name(layer) for layer in layers]
        if not set(names) <= set(arrays.files) or any(
            len(arrays[name]) != examples for name in names
        ):
            raise UserError(
                f"{path} holds {', '.join(arrays.files)}; expected {', '.join(names)} of "
                f"{examples} examples each: delete the data set's folder in examples/ and run again"
            )
        return {name: arrays[name] for name in names}
