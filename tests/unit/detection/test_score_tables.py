"""Tables of scores: read, joined by id, refused with counts and examples."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ghosttrack.detection import score_tables
from ghosttrack.errors import UserError

IDS = {"cities": [f"c{n}" for n in range(6)], "rivers": [f"r{n}" for n in range(4)]}


def texts() -> pd.DataFrame:
    """The scored texts of a run with two data sets."""
    return pd.DataFrame(
        [
            {
                "dataset": dataset,
                "mode": "given",
                "id": identity,
                "group": f"g{row // 2}",
                "label": row % 2,
                "fold": row // 2 % 2,
            }
            for dataset, ids in IDS.items()
            for row, identity in enumerate(ids)
        ]
    )


def table(**changed: str) -> pd.DataFrame:
    """A complete table for `cities`, with some scores changed."""
    scores = {identity: f"{n}.5" for n, identity in enumerate(IDS["cities"])} | changed
    return pd.DataFrame({"id": list(scores), "score": list(scores.values())})


def read(folder: Path, rows: pd.DataFrame, **options: object) -> pd.DataFrame:
    path = folder / "mine.csv"
    rows.to_csv(path, index=False)
    return score_tables.read(path, "mine", **options)  # type: ignore[arg-type]


def join(rows: pd.DataFrame, *, subset: bool = False) -> score_tables.Joined:
    return score_tables.join(rows, texts(), IDS, "mine.csv", subset=subset)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "tsv"])
def test_rows_in_any_order_and_format_are_aligned_with_the_texts(tmp_path: Path, kind: str) -> None:
    given = table().assign(score=[float(n) for n in range(6)]).sample(frac=1, random_state=1)
    path = tmp_path / f"mine.{kind}"
    if kind == "parquet":
        given.to_parquet(path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in given.to_dict("records")))
    else:
        given.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    joined = join(score_tables.read(path, "mine"))
    assert joined.datasets == ["cities"]
    assert list(joined.scores["id"]) == IDS["cities"]
    assert list(joined.scores["value"]) == [0, 1, 2, 3, 4, 5]
    assert set(joined.scores["score"]) == {"table.mine"}
    assert set(joined.scores["family"]) == {"external"}
    assert list(joined.scores["label"]) == [0, 1] * 3


def test_a_low_score_that_means_hallucinated_is_negated_only_on_request(tmp_path: Path) -> None:
    as_given, negated = read(tmp_path, table()), read(tmp_path, table(), lower=True)
    assert list(as_given["value"]) == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert list(negated["value"]) == [-value for value in as_given["value"]]


def test_token_scores_become_the_score_of_the_text(tmp_path: Path) -> None:
    rows = pd.DataFrame({"id": ["c0", "c0", "c1"], "token": [0, 1, 0], "score": [1.0, 3.0, 5.0]})
    assert list(read(tmp_path, rows)["value"]) == [2.0, 5.0]
    assert list(read(tmp_path, rows, tokens="max")["value"]) == [3.0, 5.0]
    assert list(read(tmp_path, rows, tokens="max", lower=True)["value"]) == [-1.0, -5.0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_mean_over_tokens_that_overflows_is_refused(tmp_path: Path, dtype: str) -> None:
    large = float(np.finfo(dtype).max)
    rows = pd.DataFrame({"id": ["c0", "c0", "c1"], "token": [0, 1, 0], "score": [large, large, 5]})
    path = tmp_path / "mine.parquet"
    rows.astype({"score": dtype}).to_parquet(path)
    if dtype == "float32":
        assert list(score_tables.read(path, "mine")["value"]) == [large, 5.0]
        return
    with pytest.raises(
        UserError, match=r"the mean over the tokens is no finite number for 1 texts: id 'c0';"
    ):
        score_tables.read(path, "mine")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"c0", r"column id: 2 of 2 cells are bytes \(row 1: b'c0', row 2: b'c0'\)"),
        ([1, 2], r"column id: 2 of 2 cells are (list|ndarray) \(row 1: .*1, +2.*expected text"),
        ({"a": 1}, r"column id: 2 of 2 cells are dict \(row 1: \{'a': 1\}.*convert the column"),
    ],
    ids=["bytes", "list", "dict"],
)
def test_ids_that_are_no_text_are_named_as_what_they_are(
    tmp_path: Path, value: object, message: str
) -> None:
    path = tmp_path / "mine.parquet"
    pd.DataFrame({"id": [value, value], "score": [0.5, 1.5]}).to_parquet(path)
    with pytest.raises(UserError, match=message) as raised:
        score_tables.read(path, "mine")
    assert "\n" not in str(raised.value)


def test_a_message_keeps_the_capitals_of_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Take the ids from datasets/NAME/examples\.parquet"):
        join(read(tmp_path, table().assign(id=[f"x{n}" for n in range(6)])))


def test_the_column_name_separates_several_scores(tmp_path: Path) -> None:
    both = pd.concat([table().assign(name="one"), table(c0="9").assign(name="two")])
    joined = join(read(tmp_path, both)).scores
    assert list(dict.fromkeys(joined["score"])) == ["table.mine.one", "table.mine.two"]
    assert joined.loc[joined["score"] == "table.mine.two", "value"].iloc[0] == 9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table(c1="nan", c4=""), r"2 of 6 scores are no finite number \(row 2: 'nan', row 5: ''\)"),
        (table(c1="high"), "1 of 6 scores are no finite number .row 2: 'high'"),
        (table(c2="inf"), "1 of 6 scores are no finite number"),
        (pd.concat([table(), table()]), r"id as in an earlier row in 6 rows: row 7 \(id 'c0'\)"),
        (
            pd.concat([table(), table()]).assign(token=" the"),
            "id and token as in an earlier row in 6 rows: .* number the tokens of each text",
        ),
        (table().rename(columns={"id": "key"}), "has no column 'id'"),
        (table().rename(columns={"score": "p"}), "has no column 'score'"),
        (table().assign(id=["", *IDS["cities"][1:]]), "no id in 1 rows: row 1"),
        (table().assign(Name="a"), "has the column 'Name', which would not be read; rename it"),
        (table().assign(name="a b"), "'a b' cannot be the name of a score"),
    ],
    ids=[
        "nan",
        "text",
        "infinity",
        "twice",
        "words",
        "no id",
        "no score",
        "empty id",
        "capital",
        "odd name",
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_counts(
    tmp_path: Path, rows: pd.DataFrame, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, rows)


def test_missing_and_unknown_ids_are_refused_together_with_counts(tmp_path: Path) -> None:
    rows = read(tmp_path, pd.concat([table().iloc[2:], table().iloc[:1].assign(id="c99")]))
    with pytest.raises(UserError) as raised:
        join(rows)
    message = str(raised.value)
    assert "2 texts of the data sets that it scores have no score: 'c0', 'c1'" in message
    assert "1 of 5 scores have an id that the run does not know: 'c99'" in message
    assert "\n" not in message


def test_a_table_without_any_text_of_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="6 of 6 scores have an id that the run does not know"):
        join(read(tmp_path, table().assign(id=[f"x{n}" for n in range(6)])))


def test_equal_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 6 scores of mine \(table\) on cities are 1;"):
        join(read(tmp_path, table().assign(score=1.0)))


def test_a_part_of_a_data_set_is_judged_only_on_request(tmp_path: Path) -> None:
    rows = read(tmp_path, table().iloc[:4])
    with pytest.raises(UserError, match="--subset"):
        join(rows)
    assert list(join(rows, subset=True).scores["id"]) == ["c0", "c1", "c2", "c3"]


def test_ids_that_two_data_sets_share_need_the_column_dataset(tmp_path: Path) -> None:
    shared = {"cities": IDS["cities"], "rivers": IDS["cities"]}
    own = texts()
    own = pd.concat(
        [part.iloc[:4].assign(id=IDS["cities"][:4]) for _, part in own.groupby("dataset")]
    )
    rows = read(tmp_path, table().iloc[:4])
    with pytest.raises(UserError, match=r"4 ids are in several data sets: 'c0 \(cities, rivers\)'"):
        score_tables.join(rows, own, shared, "mine.csv")
    named = read(tmp_path, table().iloc[:4].assign(dataset="rivers"))
    assert score_tables.join(named, own, shared, "mine.csv").datasets == ["rivers"]


def test_texts_that_the_run_did_not_sample_are_no_unknown_ids(tmp_path: Path) -> None:
    sampled = texts()
    sampled = sampled[sampled["id"] != "c5"]
    joined = score_tables.join(read(tmp_path, table()), sampled, IDS, "mine.csv")
    assert list(joined.scores["id"]) == IDS["cities"][:5]
    assert np.isfinite(joined.scores["value"]).all()
