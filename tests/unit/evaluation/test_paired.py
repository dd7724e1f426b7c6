from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.evaluation import paired
from ghosttrack.evaluation.paired import RunScores
from ghosttrack.settings import EvaluationSettings

SETTINGS = EvaluationSettings(bootstrap=400)


def scored(
    scores: Mapping[str, np.ndarray], label: np.ndarray, mode: str = "given", text: str = "Text"
) -> RunScores:
    """A run with these detector scores by data set; groups of two texts."""
    parts = [
        pd.DataFrame(
            {
                "dataset": name,
                "mode": mode,
                "id": [f"{name}-{number}" for number in range(len(label))],
                "group": [f"g{number // 2}" for number in range(len(label))],
                "label": label,
                "score": registry.DETECTOR,
                "value": values,
            }
        )
        for name, values in scores.items()
    ]
    table = pd.concat(parts)
    return RunScores(
        table, table[["dataset", "id"]].assign(text=[f"{text} {each}" for each in table["id"]])
    )


@pytest.fixture
def noise() -> np.random.Generator:
    return np.random.default_rng(0)


LABEL = np.arange(300) // 2 % 2


def only(table: pd.DataFrame, dataset: str = "a") -> pd.Series:
    found = table[table["dataset"] == dataset]
    assert len(found) == 1
    return found.iloc[0]


def test_a_model_does_not_differ_from_itself(noise: np.random.Generator) -> None:
    same = scored({"a": LABEL + noise.normal(0, 1, 300)}, LABEL)
    found = only(paired.differences({"one": same, "two": same}, [], SETTINGS, 0))
    assert (found["difference"], found["difference_low"], found["difference_high"]) == (0, 0, 0)
    assert found["verdict"] == registry.NOT_ESTABLISHED


def test_a_better_model_is_found_better_and_the_other_way_round_worse(
    noise: np.random.Generator,
) -> None:
    shared = noise.normal(0, 1, 300)
    weak, strong = (scored({"a": shift * LABEL + shared}, LABEL) for shift in (0.6, 1.0))
    up = only(paired.differences({"weak": weak, "strong": strong}, [], SETTINGS, 0))
    down = only(paired.differences({"strong": strong, "weak": weak}, [], SETTINGS, 0))
    assert up["verdict"] == down["verdict"] == registry.ESTABLISHED
    assert up["difference_low"] > 0
    assert down["difference"] == -up["difference"]
    assert down["difference_high"] == pytest.approx(-up["difference_low"])
    expected = statistics.auroc(LABEL, LABEL + shared) - statistics.auroc(
        LABEL, 0.6 * LABEL + shared
    )
    assert up["difference"] == pytest.approx(expected)


def test_a_difference_without_an_interval_is_no_interval_that_covers_0(
    noise: np.random.Generator,
) -> None:
    """One group of 150 holds the hallucinated texts: a third of the resamples lack it."""
    label = np.arange(300) // 2 == 0
    first, second = (scored({"a": label + noise.normal(0, 1, 300)}, label * 1) for _ in "12")
    row = only(paired.differences({"x": first, "y": second}, [], SETTINGS, 0))
    assert np.isfinite(row["difference"])
    assert np.isnan(row["difference_low"])
    assert (row["verdict"], row["reason"]) == (registry.NOT_ESTABLISHED, registry.NO_INTERVAL)


def test_one_group_is_named_as_the_reason(noise: np.random.Generator) -> None:
    runs = {name: scored({"a": noise.normal(0, 1, 2)}, np.arange(2)) for name in "xy"}
    row = only(paired.differences(runs, [], SETTINGS, 0))
    reason = registry.too_few_groups(1, SETTINGS.minimum_groups)
    assert (row["verdict"], row["reason"]) == (registry.NOT_ESTABLISHED, reason)


def test_pairing_makes_the_interval_narrower_than_two_intervals_apart(
    noise: np.random.Generator,
) -> None:
    shared = noise.normal(0, 1, 300)
    weak, strong = (
        scored({"a": LABEL + shared + 0.2 * noise.normal(0, 1, 300)}, LABEL) for _ in range(2)
    )
    found = only(paired.differences({"weak": weak, "strong": strong}, [], SETTINGS, 0))
    apart = [scored({"a": LABEL + noise.normal(0, 1, 300)}, LABEL) for _ in range(2)]
    other = only(paired.differences(dict(zip("ab", apart, strict=True)), [], SETTINGS, 0))
    widths = [each["difference_high"] - each["difference_low"] for each in (found, other)]
    assert widths[0] < widths[1] / 2


def test_only_the_same_text_with_the_same_label_is_paired(noise: np.random.Generator) -> None:
    one = scored({"a": LABEL + noise.normal(0, 1, 300)}, LABEL)
    texts = one.texts.copy()
    texts.loc[texts.index[:60], "text"] = "another text"
    label = one.scores["label"].copy()
    label.iloc[60:90] = 1 - label.iloc[60:90]
    two = RunScores(one.scores.assign(label=label), texts)
    found = only(paired.differences({"one": one, "two": two}, [], SETTINGS, 0))
    assert found["n"] == 210
    assert found["share"] == pytest.approx(0.7)


def test_generated_answers_and_foreign_texts_are_never_paired(noise: np.random.Generator) -> None:
    scores = {"a": LABEL + noise.normal(0, 1, 300)}
    own = scored(scores, LABEL, mode="generated")
    assert paired.differences({"one": own, "two": own}, [], SETTINGS, 0).empty
    found = paired.differences(
        {"one": scored(scores, LABEL), "two": scored(scores, LABEL, text="Other")}, [], SETTINGS, 0
    )
    assert found.empty
    assert list(found.columns) == list(paired.COLUMNS)


def test_the_mean_leaves_positive_controls_out(noise: np.random.Generator) -> None:
    one, two = (
        scored({name: LABEL + noise.normal(0, 1, 300) for name in "abc"}, LABEL) for _ in range(2)
    )
    table = paired.differences({"one": one, "two": two}, ["c"], SETTINGS, 0)
    mean = only(table, registry.ALL_GIVEN)
    members = [only(table, name)["difference"] for name in "ab"]
    assert mean["difference"] == pytest.approx(np.mean(members))
    assert mean["n"] == 600


def test_texts_after_remarks_have_a_mean_of_their_own(noise: np.random.Generator) -> None:
    one, two = (
        scored({name: LABEL + noise.normal(0, 1, 300) for name in "abcd"}, LABEL) for _ in range(2)
    )
    one, two = (
        each._replace(
            scores=pd.concat(
                [
                    each.scores,
                    each.scores[each.scores["dataset"].isin(["c", "d"])].assign(
                        score=registry.AGREEMENT
                    ),
                ]
            )
        )
        for each in (one, two)
    )
    table = paired.differences({"one": one, "two": two}, [], SETTINGS, 0)
    for pool, names in ((registry.ALL_GIVEN, "ab"), (registry.ALL_MISLED, "cd")):
        members = [only(table, name)["difference"] for name in names]
        assert only(table, pool)["difference"] == pytest.approx(np.mean(members))
        assert only(table, pool)["n"] == 600


def test_models_that_are_equally_good_are_called_different_in_about_one_of_twenty_samples() -> None:
    called = 0
    for seed in range(100):
        noise = np.random.default_rng(seed)
        shared = noise.normal(0, 1, 300)
        one, two = (
            scored({"a": LABEL + shared + noise.normal(0, 1, 300)}, LABEL) for _ in range(2)
        )
        found = only(
            paired.differences(
                {"one": one, "two": two}, [], EvaluationSettings(bootstrap=200), seed
            )
        )
        called += found["verdict"] == registry.ESTABLISHED
    assert called <= 12
