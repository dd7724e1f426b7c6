"""Detectors: they find a planted signal, not noise, and use nothing outside the training folds."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ghosttrack import scores as registry
from ghosttrack.detection import controls, detectors, representations, splits
from ghosttrack.detection.detectors import DetectorInputs
from ghosttrack.detection.representations import LayerBlocks, PromptAnswerPairs
from ghosttrack.errors import UserError
from ghosttrack.settings import DetectionSettings
from ghosttrack.statistics import auroc

SETTINGS = DetectionSettings(folds=3, inner_folds=3, trees=20)
GROUPS = 30


def made(signal: float, seed: int = 0) -> tuple[DetectorInputs, np.ndarray, list[splits.OuterFold]]:
    """Inputs of two layers; the label moves one channel of layer 4 by `signal`, and one metric."""
    rng = np.random.default_rng(seed)
    labels, cv_groups = (
        np.tile([0, 0, 1, 1], GROUPS),
        np.repeat([f"g{n:02d}" for n in range(GROUPS)], 4).astype(object),
    )
    n = len(labels)

    def block(columns: int, layer: int) -> np.ndarray:
        x = rng.standard_normal((n, columns)).astype(np.float32)
        x[:, 0] += signal * labels * (layer == 4)
        return x

    layers = {
        layer: LayerBlocks(block(20, layer), block(20, layer), block(200, layer), block(20, layer))
        for layer in (2, 4)
    }
    outputs = pd.DataFrame(
        rng.standard_normal((n, 3)), columns=["logprob_sum", "logprob_mean", "entropy_mean"]
    )
    metrics = {
        name: pd.DataFrame(rng.standard_normal((n, 4)), columns=list("abcd"))
        for name in ("default", "permuted")
    }
    metrics["default"]["a"] += signal * labels
    fold = splits.assign_folds(labels, cv_groups, SETTINGS.folds, seed)
    lens = pd.DataFrame(rng.standard_normal((n, 2)), columns=["lens_lead", "lens_rank"])
    prompt, answer = (rng.standard_normal((n, 6)).astype(np.float32) for _ in range(2))
    answer += (
        signal * prompt * np.where(labels == 1, -1, 1)[:, None]
    )  # which answer goes with which prompt
    pairs = PromptAnswerPairs(
        [prompt], rng.standard_normal((n, 6)), answer, np.zeros(n, dtype=np.int64)
    )
    letters = rng.integers(97, 123, (n, 2, 5)).astype("u1")
    texts = pd.DataFrame(
        {
            "question": "",
            "prompt": [row[0].tobytes().decode() for row in letters],
            "answer": [row[1].tobytes().decode() for row in letters],
            "relation": "r",
        }
    )
    return (
        DetectorInputs(outputs, lens, layers, pairs, texts, metrics),
        labels,
        splits.outer_folds(labels, cv_groups, fold, SETTINGS.inner_folds, seed),
    )


def test_output_that_depends_on_agreement_is_found_by_the_controls_that_know_it() -> None:
    inputs, labels, outer_folds = made(0.0)
    agrees = np.tile([True, False], len(labels) // 2)
    outputs = inputs.outputs.copy()
    outputs["entropy_mean"] += 2.5 * labels * np.where(agrees, 1, -1)
    closed = pd.DataFrame({"logprob_sum": inputs.outputs["logprob_sum"] + 2.5 * labels})
    asserted = pd.DataFrame({"remark_logprob_sum": inputs.outputs["entropy_mean"] * 0})
    inputs = inputs._replace(
        outputs=outputs, remarks=detectors.RemarkInputs(agrees, closed, asserted)
    )
    found = detectors.train(inputs, labels, outer_folds, SETTINGS, 0, "misled")
    assert list(found.scores) == detectors.score_names(
        ["default", "permuted"], SETTINGS.detectors, remarks=True
    )
    reached = {name: auroc(labels, score) for name, score in found.scores.items()}
    for name in ("ghosttrack", registry.OUTPUT_REGRESSION, registry.AGREEMENT):
        assert abs(reached[name] - 0.5) < 0.2, name
    for name in (registry.OUTPUT_AND_AGREEMENT, registry.CLOSED_BOOK):
        assert reached[name] > 0.85, name
    # It also has the words of a hundred texts, which say nothing.
    assert reached[registry.SAME_PASS] > 0.7
    for name in (registry.CLOSED_BOOK_AND_CONTEXT, registry.WITH_CLOSED_BOOK):
        assert reached[name] > reached[registry.CLOSED_BOOK], name


def test_the_log_probability_of_the_remarks_answer_is_part_of_the_same_pass() -> None:
    inputs, labels, outer_folds = made(0.0)
    agrees = np.tile([True, False], len(labels) // 2)
    noise = np.random.default_rng(7).standard_normal(len(labels))
    # A remark is false where the text agrees with it and is false, or disagrees and is true.
    asserted = pd.DataFrame({"remark_logprob_sum": noise - 3.0 * ((labels == 1) == agrees)})
    closed = pd.DataFrame({"logprob_sum": noise[::-1]})
    inputs = inputs._replace(remarks=detectors.RemarkInputs(agrees, closed, asserted))
    found = detectors.train(inputs, labels, outer_folds, SETTINGS, 0, "misled")
    reached = {name: auroc(labels, score) for name, score in found.scores.items()}
    assert reached[registry.OUTPUT_AND_AGREEMENT] > 0.85
    for name in (
        registry.SAME_PASS,
        registry.WITH_AGREEMENT,
        registry.CLOSED_BOOK_AND_CONTEXT,
        registry.WITH_CLOSED_BOOK,
    ):
        assert reached[name] > 0.7, name
    for name in (registry.DETECTOR, registry.OUTPUT_REGRESSION, registry.CLOSED_BOOK):
        assert abs(reached[name] - 0.5) < 0.2, name
    outputs = asserted.assign(id=range(len(labels)))
    support = representations.remark_support(outputs, agrees, ["r"] * len(labels))
    scored = outputs.assign(**{representations.REMARK_SUPPORT: support})
    assert auroc(labels, controls.untrained(registry.REMARK_LOGPROB, scored)) > 0.85
    assert list(representations.remark_features(scored)) == ["remark_logprob_sum"]


def test_a_planted_signal_is_found_where_it_was_planted() -> None:
    inputs, labels, outer_folds = made(3.0)
    found = detectors.train(inputs, labels, outer_folds, SETTINGS, 0, "planted")
    reached = {score_name: auroc(labels, score) for score_name, score in found.scores.items()}
    for score_name in (
        "ghosttrack",
        "raw_probe",
        "raw_probe_all",
        "centred_probe",
        "residual_probe",
        "bilinear_probe",
        "difference_of_means",
        "metrics_logistic",
        "metrics_forest",
        "metrics_boosting",
        "metrics_svm",
        "metrics_additive",
        "metrics_ensemble",
    ):
        assert reached[score_name] > 0.85, score_name
    for score_name in (
        "output_regression",
        "text_pair",
        "embedding_pair",
        "output_and_words",
        "metrics_forest.permuted",
        "metrics_logistic.permuted",
    ):
        assert abs(reached[score_name] - 0.5) < 0.2, score_name
    assert {choice.layer for choice in found.choices if choice.score == "raw_probe"} == {4}
    weights = (
        pd.DataFrame(found.weights)
        .query("score == 'metrics_forest'")
        .groupby("feature")["importance"]
        .mean()
    )
    assert weights.idxmax() == "a"


def test_noise_stays_at_chance_for_every_detector() -> None:
    inputs, labels, outer_folds = made(0.0, seed=3)
    found = detectors.train(inputs, labels, outer_folds, SETTINGS, 0, "noise")
    for score_name, score in found.scores.items():
        assert abs(auroc(labels, score) - 0.5) < 0.2, score_name
        assert ((score > 0) & (score < 1)).all(), score_name


def test_labels_of_a_test_fold_do_not_change_its_scores() -> None:
    inputs, labels, outer_folds = made(1.0)
    turned = labels.copy()
    turned[outer_folds[0].test] = 1 - turned[outer_folds[0].test]
    first, second = (
        detectors.train(inputs, each, outer_folds[:1], SETTINGS, 0, "x").scores
        for each in (labels, turned)
    )
    for score_name in first:
        np.testing.assert_array_equal(first[score_name], second[score_name])


def test_the_same_seed_gives_the_same_scores() -> None:
    inputs, labels, outer_folds = made(1.0)
    first, second = (
        detectors.train(inputs, labels, outer_folds[:1], SETTINGS, 7, "x").scores for _ in range(2)
    )
    assert all(
        np.array_equal(first[score_name], second[score_name], equal_nan=True)
        for score_name in first
    )


def test_without_tracks_the_detector_is_still_trained() -> None:
    inputs, labels, outer_folds = made(3.0)
    found = detectors.train(inputs._replace(metrics={}), labels, outer_folds[:1], SETTINGS, 0, "x")
    assert "ghosttrack.with_metrics" not in found.scores
    assert np.isfinite(found.scores["ghosttrack"][outer_folds[0].test]).all()


@pytest.mark.parametrize(
    ("score_name", "family"),
    [
        ("ghosttrack", "detector"),
        ("ghosttrack.without_sae", "detector"),
        ("raw_probe", "probe"),
        ("raw_probe_all", "probe"),
        ("embedding_probe", "control"),
        ("text_only", "control"),
        ("length", "control"),
        ("output_regression", "output"),
        ("perplexity", "output"),
        ("pmi", "output"),
        ("difference_of_means", "probe"),
        ("sae_max_probe", "probe"),
        ("metrics_forest", "tracking"),
        ("metrics_forest.permuted", "tracking_null"),
        ("ghosttrack.with_metrics", "detector"),
        ("ghosttrack.with_metrics.untracked", "tracking_null"),
    ],
)
def test_scores_have_families(score_name: str, family: str) -> None:
    assert registry.get(score_name).family == family
    assert pd.read_csv(io.StringIO(f"family\n{family}\n"))["family"].tolist() == [
        family
    ]  # no word for a missing value


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": ["a", "b"], "entropy_mean": [1.0, 2.0], "linkage_coasted": [0.0, 1.0], **columns}
    )


def test_only_the_26_metrics_are_read() -> None:
    assert list(detectors.read_metrics(table(), ["a", "b"], "signals.parquet").columns) == [
        "entropy_mean"
    ]


def test_foreign_or_damaged_metrics_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"signals\.parquet: its rows are not"):
        detectors.read_metrics(table(), ["b", "a"], "signals.parquet")
    with pytest.raises(UserError, match="churn_births holds NaN"):
        detectors.read_metrics(table(churn_births=[np.nan, 1.0]), ["a", "b"], "signals.parquet")
