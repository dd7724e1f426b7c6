"""Recalibration on few labelled texts: its promise on further texts, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from ghosttrack.detection import calibration
from ghosttrack.detection.calibration import Calibration, Floats, Ints
from ghosttrack.detection.scored_texts import ScoredText, ScoredToken
from ghosttrack.errors import UserError


def draw(rng: np.random.Generator, count: int, strength: float) -> tuple[Floats, Ints]:
    """Columns of texts of a kind on which the detector is shifted, and their labels."""
    labels = np.arange(count) % 2
    columns = rng.normal(size=(count, 4))
    columns[:, 0] += strength * (2 * labels - 1) - 1
    columns[:, 1] += 0.5 * strength * (2 * labels - 1)
    return columns * [2, 1, 1, 3], labels.astype(np.int64)


def alone(count: int) -> np.ndarray:
    return np.array([str(row) for row in range(count)], dtype=object)


@pytest.fixture(scope="module")
def made() -> Calibration:
    columns, labels = draw(np.random.default_rng(0), 80, 1.0)
    return calibration.fit(columns, labels, alone(80))


@pytest.mark.parametrize(("count", "strength"), [(40, 1.0), (60, 1.0), (60, 0.7)])
def test_at_confidence_c_the_error_on_further_decided_texts_is_at_most_1_minus_c(
    count: int, strength: float
) -> None:
    decided, wrong, total = (
        dict.fromkeys((0.75, 0.8, 0.9), 0),
        dict.fromkeys((0.75, 0.8, 0.9), 0),
        0,
    )
    for seed in range(12):
        rng = np.random.default_rng([seed, count])
        made = calibration.fit(*draw(rng, count, strength), alone(count))
        columns, labels = draw(rng, 500, strength)
        probability = made.probability(columns)
        certainty = np.maximum(probability, 1 - probability)
        total += len(labels)
        for confidence in decided:
            sure = certainty >= made.threshold(confidence)
            decided[confidence] += int(sure.sum())
            wrong[confidence] += int((((probability >= 0.5) != (labels == 1)) & sure).sum())
    for confidence, count_ in decided.items():
        assert wrong[confidence] <= (1 - confidence) * max(count_, 1)
    assert decided[0.75] > 0.3 * total  # it does not hold by silence


def test_numbers_without_any_information_lead_to_almost_no_verdict() -> None:
    decided = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        made = calibration.fit(*draw(rng, 60, 0.0), alone(60))
        probability = made.probability(draw(rng, 500, 0.0)[0])
        decided += int((np.maximum(probability, 1 - probability) >= made.threshold(0.75)).sum())
    assert decided < 0.02 * 12 * 500


def test_scores_are_never_turned_around_and_chance_is_rarely_informative() -> None:
    informative, seeds = 0, 40
    for seed in range(seeds):
        rng = np.random.default_rng([5, seed])
        informative += calibration.fit(*draw(rng, 60, 0.0), alone(60)).informative
        columns, labels = draw(rng, 60, 0.3)
        weak = calibration.fit(columns, labels, alone(60))
        logit = ((columns - weak.mean) / weak.scale) @ weak.weight
        assert logit[labels == 1].mean() >= logit[labels == 0].mean() - 1e-9
    assert informative <= 0.2 * seeds


def test_a_confidence_that_the_texts_cannot_support_gives_no_verdict(made: Calibration) -> None:
    assert made.threshold(0.5) == 0.5
    assert 0.75 <= made.threshold(0.75) <= made.threshold(0.9)
    assert made.threshold(0.999) == float("inf")
    assert made._replace(informative=False).threshold(0.6) == float("inf")


def test_texts_of_one_group_count_as_one(made: Calibration) -> None:
    columns, labels = draw(np.random.default_rng(0), 80, 1.0)
    groups = np.array([str(row // 4) for row in range(80)], dtype=object)
    grouped = calibration.fit(columns, labels, groups)
    assert grouped.independent == 0.25
    assert grouped.threshold(0.95) == float("inf") > made.threshold(0.95)


def test_nested_results_do_not_reward_memorised_groups() -> None:
    rng = np.random.default_rng(3)
    # Each group repeats one point; the numbers say nothing about the label of other groups.
    points, labels = draw(rng, 30, 0.0)
    columns, repeated = np.repeat(points, 4, axis=0), np.repeat(labels, 4)
    groups = np.repeat(alone(30), 4)
    found = calibration.reached(columns, repeated, groups)
    assert calibration.auroc(repeated, found.probability) < 0.75
    assert not found.decided[0.9].any()


def test_the_risk_coverage_curve_counts_errors_among_the_most_certain_texts() -> None:
    labels, probability = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.6, 0.45])
    curve = calibration.risk_coverage(labels, probability, alone(4))
    assert [(point.decided, point.errors) for point in curve] == [(1, 0), (2, 1), (3, 1), (4, 1)]
    assert [point.certainty for point in curve] == [0.9, 0.8, 0.6, 0.55]
    assert curve[-1].coverage == 1
    assert all(point.low <= point.error <= point.high for point in curve)
    assert calibration.error_interval(0, 0, 0) == (0, 1)
    low, high = calibration.error_interval(5, 50, 50)  # Wilson: 0.0435 to 0.2136
    assert (round(low, 4), round(high, 4)) == (0.0435, 0.2136)


def test_copies_of_texts_do_not_narrow_the_interval_of_an_error() -> None:
    labels, probability = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.6, 0.45])
    once = calibration.risk_coverage(labels, probability, alone(4))
    copied = calibration.risk_coverage(*(np.repeat(x, 5) for x in (labels, probability, alone(4))))
    assert copied[-1].decided == 20
    assert (copied[-1].low, copied[-1].high) == pytest.approx((once[-1].low, once[-1].high))
    assert calibration.error_interval(25, 250, 50) == calibration.error_interval(5, 50, 50)


def score(log_odds: float) -> ScoredText:
    tokens = [ScoredToken(6, 8, 2.0, log_odds / 2)]
    return ScoredText("1", "It is so", 6, 8, 0.99, log_odds, log_odds / 2, "true", tokens, [])


def test_a_score_takes_probability_and_verdict_and_names_the_calibration(made: Calibration) -> None:
    named = made._replace(name="mine.json")
    found = [named.apply(score(value), 0.75) for value in (-9.0, -2.0, 5.0)]
    assert [each.verdict for each in found] == ["true", "abstain: unsure", "hallucinated"]
    assert [each.calibration for each in found] == ["mine.json"] * 3
    assert [each.log_odds for each in found] == [-9.0, -2.0, 5.0]  # the detector's own
    assert found[0].probability < 0.25 < found[1].probability < found[2].probability
    assert named.apply(score(-2.0), 0.5).verdict in ("true", "hallucinated")


def test_a_written_calibration_is_read_again_and_gives_the_same_scores(
    made: Calibration, tmp_path: Path
) -> None:
    about = {"detector_sha256": "a", "layers": [1]}
    path = tmp_path / "mine.json"
    calibration.save(made, {"detector": calibration.detector_of(about), "run": "tiny"}, path)
    again = calibration.load(path, about)
    assert again.name == "mine.json"
    for value in (-9.0, -2.0, 5.0):
        expected = made._replace(name="mine.json").apply(score(value), 0.8)
        assert again.apply(score(value), 0.8) == expected


def test_a_calibration_of_another_detector_or_a_changed_file_is_refused(
    made: Calibration, tmp_path: Path
) -> None:
    about = {"detector_sha256": "a", "layers": [1]}
    path = tmp_path / "mine.json"
    calibration.save(made, {"detector": calibration.detector_of(about), "run": "tiny"}, path)
    with pytest.raises(UserError, match=r"another detector \(run tiny\).*has changed since"):
        calibration.load(path, {**about, "detector_sha256": "b"})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "intercept": 9.0}))
    with pytest.raises(UserError, match="was changed after make calibrate wrote it"):
        calibration.load(path, about)
    for other in ("[]", "{}", "coverage,decided\n"):
        path.write_text(other)
        with pytest.raises(UserError, match="is not a calibration"):
            calibration.load(path, about)
    with pytest.raises(UserError, match="there is no file"):
        calibration.load(tmp_path / "no.json", about)


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 1] * 19, None, "38 labelled texts, at least 40 are needed"),
        ([0] * 50, None, "no text has the label hallucinated"),
        ([1] * 50, None, "no text has the label true"),
        ([0] * 45 + [1] * 5, None, "5 of 50 texts are hallucinated, in 5 groups"),
        ([0, 1] * 25, 4, "in 2 groups: .* label more texts of other groups"),
    ],
)
def test_too_few_texts_labels_or_groups_are_refused(
    labels: list[int], groups: int | None, message: str
) -> None:
    names = alone(len(labels))
    if groups:
        names = np.array([str(row % groups) for row in range(len(labels))], dtype=object)
    with pytest.raises(UserError, match=f"texts: mine.csv: .*{message}"):
        calibration.require_enough(np.array(labels), names, "texts: mine.csv")
