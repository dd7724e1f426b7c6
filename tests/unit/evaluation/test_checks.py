import json
from collections.abc import Callable
from pathlib import Path

import fake_results
import numpy as np
import pandas as pd
import pytest

from evaluate import check_results
from ghosttrack.errors import UserError
from ghosttrack.evaluation import checks, scoreboard
from ghosttrack.settings import EvaluationSettings

PATH = Path("metrics.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fake_results.Run:
    return fake_results.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def metrics(run: fake_results.Run) -> pd.DataFrame:
    return pd.read_csv(run.metrics)


@pytest.fixture(scope="module")
def scores(run: fake_results.Run) -> pd.DataFrame:
    table = pd.read_parquet(run.scores[0])
    return table[table["dataset"] == "us_cities"].reset_index(drop=True)


def ids(scores: pd.DataFrame) -> dict[str, set[str]]:
    return {"us_cities": set(scores["id"])}


def test_a_sound_run_passes_and_is_counted(run: fake_results.Run, tmp_path: Path) -> None:
    check_results.main(
        metrics=run.metrics,
        scores=run.scores,
        quality=run.quality,
        answers=run.answers,
        layers=fake_results.LAYERS,
        examples=run.examples,
        checks=tmp_path / "checks.json",
        datasets=list(fake_results.SETS),
        controls=fake_results.CONTROLS,
    )
    found = json.loads((tmp_path / "checks.json").read_text())
    assert found["examples"]["cities"] == 800
    assert found["saes"] == len(fake_results.LAYERS)
    assert found["sae_gates"]["10"] == dict.fromkeys(
        ("l0", "dead_fraction", "ce_loss_score", "fvu_token_median"), True
    )
    assert found["metrics_rows"] == len(pd.read_csv(run.metrics))
    assert found["shared_texts"] == []


def test_texts_in_two_data_sets_are_counted_once_per_pair() -> None:
    texts = {
        "mine": ["Rome is in Italy.", "rome is  in italy", "Oslo is in Peru."],
        "cities": ["Rome is in Italy", "Paris is in France."],
        "other": ["Lima is in Chad."],
    }
    assert checks.shared_texts(texts) == [{"datasets": ["mine", "cities"], "texts": 1}]


def change(column: str, value: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[(table["dataset"] == "cities") & (table["score"] == "ghosttrack"), column] = value
        return table

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            change("auroc", 1.2),
            r"data set cities, score ghosttrack: found auroc = 1\.2, expected a number from 0 to 1",
        ),
        (change("auroc_low", 0.95), "outside its interval 0.95"),
        (change("auroc", float("nan")), "found no auroc"),
        (change("groups", 900), "groups = 900 with n = 800"),
        (change("ece", -0.1), r"ece = -0\.1"),
        (
            lambda table: table[table["score"] != "text_only"],
            "data set cities: found no row for text_only",
        ),
        (
            lambda table: pd.concat([table, table.head(1)]),
            "found two rows, expected one row per data set, mode and score",
        ),
    ],
)
def test_a_damaged_metrics_table_is_named_with_its_row_and_value(
    metrics: pd.DataFrame, damage: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        checks.check_metrics(PATH, damage(metrics.copy()), list(fake_results.SETS))
    assert str(caught.value).startswith("metrics.csv: ")


def test_an_interval_that_resampled_pairs_of_a_group_shift_is_no_damage() -> None:
    """The group decides the score, and within each group the hallucinated text is above."""
    rng = np.random.default_rng(0)
    groups, labels = 60, np.tile([0, 1], 60)
    head = pd.DataFrame(
        {
            "dataset": "pairs",
            "mode": "given",
            "id": [f"t{row}" for row in range(2 * groups)],
            "group": np.repeat([f"g{number}" for number in range(groups)], 2),
            "label": labels,
            "family": "",
            "reason": "",
        }
    )
    values = {name: rng.random(len(labels)) for name in (*fake_results.SHOWN, "embedding_probe")}
    values["answer_logprob_mean"] = np.repeat(rng.permutation(groups), 2) + 0.1 * labels
    scores = pd.concat([head.assign(score=name, value=each) for name, each in values.items()])
    scope = scoreboard.of_dataset(scores, False, EvaluationSettings(bootstrap=200), 0)
    mean = scoreboard.pool("all_given", [scope, scope], 0.95)
    table = scoreboard.metrics_table([scope, mean])
    shifted = table[table["score"] == "answer_logprob_mean"]
    assert (shifted["auroc"] < shifted["auroc_low"]).all()
    assert checks.check_metrics(PATH, table, ["pairs"]) == len(table)


def test_a_score_that_was_not_computed_may_lack_its_numbers(metrics: pd.DataFrame) -> None:
    table = metrics.copy()
    chosen = table["dataset"] == "cities"
    table.loc[chosen, ["auroc", "auroc_low", "auroc_high", "auprc", "ece"]] = np.nan
    table["reason"] = np.where(chosen, "too few groups", "")
    assert checks.check_metrics(PATH, table, list(fake_results.SETS)) == len(table)


def test_scores_match_the_examples_and_the_metrics(
    scores: pd.DataFrame, metrics: pd.DataFrame
) -> None:
    assert checks.check_scores(PATH, scores, metrics, ids(scores)) == len(scores)
    first = (scores["id"] == "us_cities-0") & (scores["score"] == "entropy")
    with pytest.raises(UserError, match=r"391 scores, expected n = 392"):
        checks.check_scores(PATH, scores[~first], metrics, ids(scores))
    with pytest.raises(UserError, match=r"id us_cities-\d+: found no example with this id"):
        checks.check_scores(PATH, scores, metrics, {"us_cities": {"us_cities-0"}})
    with pytest.raises(UserError, match="found two scores, expected one"):
        checks.check_scores(PATH, pd.concat([scores, scores.head(1)]), metrics, ids(scores))
    with pytest.raises(UserError, match="label: found 2, expected 0"):
        checks.check_scores(PATH, scores.assign(label=2), metrics, ids(scores))
    with pytest.raises(UserError, match="no column fold"):
        checks.check_scores(PATH, scores.drop(columns="fold"), metrics, ids(scores))


def test_one_missing_value_fails_but_a_score_that_was_not_computed_does_not(
    scores: pd.DataFrame, metrics: pd.DataFrame
) -> None:
    table = scores.copy()
    chosen = table["score"] == "entropy"
    table.loc[chosen & (table["id"] == "us_cities-7"), "value"] = np.nan
    with pytest.raises(UserError, match="score entropy, id us_cities-7: found value = nan"):
        checks.check_scores(PATH, table, metrics, ids(scores))
    table.loc[chosen, "value"] = np.nan
    checks.check_scores(PATH, table, metrics, ids(scores))


QUALITY = {
    "k": 64,
    "l0": 64.0,
    "fvu": 0.1,
    "fvu_token_median": 0.12,
    "explained_variance": 0.9,
    "dead_fraction": 0.0,
    "ce_loss_score": -3.0,  # random weights: ablation may help
    "delta_ce": -0.01,
    "kl_div_with_sae": 0.1,
    "site": "resid_post",
}


@pytest.mark.parametrize("l0", [32.0, 64.0, 128.0])
def test_active_features_within_a_factor_of_two_pass(l0: float) -> None:
    checks.check_quality(PATH, {**QUALITY, "l0": l0})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("l0", 31.0, r"l0: found 31\.0, expected 32 to 128 for k = 64"),
        ("l0", 129.0, "l0: found 129"),
        ("fvu", float("nan"), "fvu: found nan"),
        ("pca_fvu", float("inf"), "pca_fvu: found inf"),
        ("fvu_token_median", None, "fvu_token_median: found None"),
        ("dead_fraction", 1.5, "dead_fraction"),
        ("fvu", -0.1, "fvu: found -0.1"),
        ("ce_loss_score", None, "ce_loss_score: found None"),
        ("delta_ce", float("nan"), "delta_ce: found nan"),
        ("kl_div_with_sae", -0.1, "kl_div_with_sae: found -0.1"),
    ],
)
def test_an_autoencoder_that_did_not_train_is_named(
    key: str, value: float | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        checks.check_quality(PATH, {**QUALITY, key: value})


def test_a_layer_that_was_not_measured_on_answers_is_named(run: fake_results.Run) -> None:
    table = pd.read_csv(run.answers)
    datasets = list(fake_results.SETS)
    checks.check_answers(PATH, table, datasets, fake_results.LAYERS)
    short = table[(table["layer"] != 14) | (table["dataset"] != "cities")]
    with pytest.raises(UserError, match="layer 14: found no row for cities"):
        checks.check_answers(PATH, short, datasets, fake_results.LAYERS)
    with pytest.raises(UserError, match="data set cities: found l0 = nan"):
        checks.check_answers(
            PATH,
            table.assign(l0=table["l0"].where(table["layer"] != 14)),
            datasets,
            fake_results.LAYERS,
        )
