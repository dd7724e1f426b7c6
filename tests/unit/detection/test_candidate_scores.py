"""Detectors on candidate answers: their columns, their names, the remark, and other examples."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_detectors import SETTINGS, made

from ghosttrack import scores as registry
from ghosttrack.detection import candidate_scores, detectors
from ghosttrack.detection.candidate_scores import CandidateInputs
from ghosttrack.errors import UserError
from ghosttrack.statistics import auroc
from ghosttrack.tracks import candidate_run

IDS = [f"e{row}" for row in range(6)]


def write(folder: Path, compared: bool = True) -> tuple[Path, Path]:
    """Tables of six texts and two variants; layer 3 has no logit lens."""
    rows = np.arange(6.0)
    controls = pd.DataFrame(
        {"id": IDS, "compared": compared, "difference": rows, "lens_03": np.nan, "gradient_03": 1.0}
    )
    metrics = pd.concat(
        [
            pd.DataFrame(
                {"id": IDS, "variant": name, "layer_03_sum": rows + step, "track_lead": -rows}
            )
            for step, name in enumerate(("default", "untracked"))
        ]
    )
    paths = folder / "controls.parquet", folder / "metrics.parquet"
    controls.to_parquet(paths[0])
    metrics.to_parquet(paths[1])
    return paths


def examples() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": IDS,
            "mode": "given",
            "answer": list("ababab"),
            "remark": ["r", "r", "", "r", "", "r"],
            "remark_answer": ["a", "a", "", "b", "", "a"],
        }
    )


def test_rows_and_columns_are_those_of_the_chosen_examples(tmp_path: Path) -> None:
    found = candidate_scores.read_inputs(*write(tmp_path), examples(), np.array([4, 1, 0]))
    assert found is not None
    assert found.controls.columns.tolist() == ["difference", "gradient_03"]
    assert found.controls["difference"].tolist() == [4, 1, 0]
    assert found.metrics["untracked"]["layer_03_sum"].tolist() == [5, 2, 1]
    assert found.agreement.tolist() == [0, -1, 1]


def test_a_data_set_without_comparisons_has_no_scores(tmp_path: Path) -> None:
    paths = write(tmp_path, compared=False)
    assert candidate_scores.read_inputs(*paths, examples(), np.arange(6)) is None


def test_tables_of_other_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"controls\.parquet: its rows are not the data set's"):
        candidate_scores.read_inputs(*write(tmp_path), examples().iloc[::-1], np.arange(6))


def inputs(seed: int, rows: int, agreement: np.ndarray) -> CandidateInputs:
    rng = np.random.default_rng(seed)

    def drawn(*names: str) -> pd.DataFrame:
        return pd.DataFrame(rng.standard_normal((rows, len(names))), columns=list(names))

    metrics = {
        variant: drawn("layer_03_sum", "track_lead", "track_crossings")
        for variant in candidate_run.VARIANTS
    }
    return CandidateInputs(drawn("difference", "gradient_03"), metrics, agreement)


def test_the_names_of_the_scores_are_those_of_their_columns() -> None:
    tables = candidate_scores.columns(inputs(0, 5, np.zeros(5, dtype=np.int64)))
    assert list(tables) == candidate_scores.score_names(candidate_run.VARIANTS)
    assert tables["candidate_all.random"].columns.tolist() == [
        "difference",
        "gradient_03",
        "layer_03_sum",
        "track_lead",
        "track_crossings",
    ]
    assert tables["candidate_attribution.decoders"].columns.tolist() == ["layer_03_sum"]
    assert "candidate_attribution.random" not in tables


def test_agreement_with_a_remark_interacts_with_every_column() -> None:
    agreement = np.array([1, -1, 0, 1])
    table = candidate_scores.with_agreement(pd.DataFrame({"a": [2.0, 3.0, 4.0, 5.0]}), agreement)
    assert table["a.agreement"].tolist() == [2, -3, 0, 5]
    assert table["agreement"].tolist() == agreement.tolist()
    same = pd.DataFrame({"a": [1.0]})
    assert candidate_scores.with_agreement(same, np.zeros(1, dtype=np.int64)) is same


def test_a_planted_track_metric_reaches_the_detector_and_not_its_null() -> None:
    plain, labels, outer_folds = made(0.0)
    compared = inputs(1, len(labels), np.zeros(len(labels), dtype=np.int64))
    compared.metrics["default"]["track_lead"] -= 3 * labels
    found = detectors.train(
        plain._replace(candidates=compared), labels, outer_folds, SETTINGS, 0, "planted"
    )
    reached = {name: auroc(labels, score) for name, score in found.scores.items()}
    for name in (registry.CANDIDATE_TRACKS, registry.CANDIDATE_ALL, registry.WITH_CANDIDATES):
        assert reached[name] > 0.85, name
        assert abs(reached[f"{name}.untracked"] - 0.5) < 0.2, name
    assert abs(reached[registry.DETECTOR] - 0.5) < 0.2
    assert np.isfinite(list(reached.values())).all()
    assert {registry.get(name).family for name in reached} <= {
        "detector",
        "output",
        "probe",
        "control",
        "tracking",
        "tracking_null",
    }


def test_generated_answers_without_a_remark_have_no_agreement() -> None:
    table = pd.DataFrame(
        {
            "mode": "generated",
            "remark": ["", "They say Rome. ", "They say Rome. "],
            "answer": ["Rome", "Rome", "Paris"],
            "remark_answer": ["", "Rome", "Rome"],
        }
    )
    assert candidate_scores.agreement_of(table).tolist() == [0, 1, -1]


@pytest.mark.parametrize("remarks", [True, False])
def test_the_control_of_the_detector_with_gradients_knows_what_the_remark_and_the_logits_tell(
    remarks: bool,
) -> None:
    plain, labels, outer_folds = made(0.0)
    agreement = np.tile([1, -1], len(labels) // 2) * int(remarks)
    compared = inputs(1, len(labels), agreement)
    compared.controls["difference"] += 3 * labels * (agreement if remarks else 1)
    found = detectors.train(
        plain._replace(candidates=compared), labels, outer_folds, SETTINGS, 0, "remarks"
    )
    reached = {name: auroc(labels, score) for name, score in found.scores.items()}
    assert abs(reached[registry.DETECTOR] - 0.5) < 0.2
    for name in (registry.WITH_CANDIDATE_LOGIT, registry.WITH_GRADIENTS):
        assert reached[name] > 0.85, name
    assert abs(reached[registry.WITH_GRADIENTS] - reached[registry.WITH_CANDIDATE_LOGIT]) < 0.05


def test_random_decoders_replace_the_run_s_saes_in_the_null_of_the_detector() -> None:
    plain, labels, outer_folds = made(0.0)
    null = {layer: blocks._replace() for layer, blocks in plain.layers.items()}
    rng = np.random.default_rng(7)
    planted = rng.standard_normal((len(labels), 20)).astype(np.float32)
    planted[:, 0] += 3 * labels
    null[4] = null[4]._replace(residual=planted)
    inputs_with = plain._replace(null_layers=null)
    found = detectors.train(inputs_with, labels, outer_folds, SETTINGS, 0, "null").scores
    assert auroc(labels, found[registry.NULL_DETECTOR]) > 0.85
    assert auroc(labels, found[registry.NULL_RESIDUAL_PROBE]) > 0.85
    assert abs(auroc(labels, found[registry.DETECTOR]) - 0.5) < 0.2
    np.testing.assert_array_equal(found[registry.NULL_SAE_PROBE], found["sae_probe"])


def test_without_candidates_the_scores_are_those_of_a_run_without_them() -> None:
    plain, labels, outer_folds = made(1.0)
    before = detectors.train(plain, labels, outer_folds, SETTINGS, 0, "plain").scores
    compared = inputs(1, len(labels), np.zeros(len(labels), dtype=np.int64))
    with_them = plain._replace(candidates=compared)
    after = detectors.train(with_them, labels, outer_folds, SETTINGS, 0, "plain").scores
    assert before.keys() < after.keys()
    for name, score in before.items():
        np.testing.assert_array_equal(after[name], score)
