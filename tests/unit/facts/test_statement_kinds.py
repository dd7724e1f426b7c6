"""Statements of many kinds: balanced in every block, true to their tables, silent about labels."""

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ghosttrack.activations.statement_reading import by_sentence
from ghosttrack.detection import controls, probes, splits
from ghosttrack.errors import UserError
from ghosttrack.facts.examples import OPTIONAL, Example
from ghosttrack.facts.kind_wordings import COMPARISONS, WORDINGS
from ghosttrack.facts.statement_kinds import (
    KIND_COLUMNS,
    KINDS,
    NAMED,
    NUMBERS,
    PLAIN,
    SUBJECTS,
    blocks_of,
    build_kinds,
    fill,
    subject_matter,
)
from ghosttrack.facts.statements import DATA, build_statements, fold, load_table
from ghosttrack.statistics import auroc


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return build_kinds(seed=0, texts_per_kind=300)


def test_every_relation_is_about_one_thing(frame: pd.DataFrame) -> None:
    members = [relation for relations in SUBJECTS.values() for relation in relations]
    assert len(members) == len(set(members))
    assert set(members) == set(frame["relation"])
    about = pd.Series(subject_matter(frame["relation"]))
    assert set(about) == set(SUBJECTS)
    # So no fit without the facts about something sees a fact of them.
    assert (about.groupby(frame["group"]).nunique() == 1).all()
    with pytest.raises(KeyError):
        subject_matter(["no such relation"])


def test_only_texts_of_several_sentences_are_divided(frame: pd.DataFrame) -> None:
    found = by_sentence(frame)
    counts = found.groupby("id", sort=False)["text"].size()
    several = set(frame.loc[frame["kind"] == "two_sentences", "id"])
    assert counts[counts > 1].index.tolist() == [each for each in frame["id"] if each in several]
    assert (counts[list(several)] == 2).all()
    together = found.groupby("id", sort=False)["text"].agg(" ".join)
    assert together.tolist() == frame["text"].tolist()
    assert found["label"].tolist() == frame["label"].repeat(counts.to_numpy()).tolist()


def blocks(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of four: the texts of one block follow each other within a kind."""
    return [
        rows.iloc[start : start + 4]
        for _, rows in frame.groupby("kind", sort=False)
        for start in range(0, len(rows), 4)
    ]


def test_rows_have_the_columns_and_spans_of_an_example(frame: pd.DataFrame) -> None:
    fields = tuple(name for name in Example._fields if name not in OPTIONAL)
    assert tuple(frame.columns) == (*fields, *KIND_COLUMNS)
    assert frame["id"].is_unique
    assert frame["text"].is_unique
    assert set(frame["polarity"]) == {"affirmed", "negated"}
    for row in frame.itertuples():
        assert (row.answer_start, row.answer_end) == (0, len(row.text) - 1)
        assert row.text == f"{row.answer}."
        changed = row.text[row.changed_start : row.changed_end]
        assert changed
        assert changed == changed.strip()
        assert row.text[0].isupper() or row.text[0].isdigit()
        assert not re.search(
            r"  |\{|\}|\.\.|\b[Aa] (?!uni|use|one)[aeiou]|\b[Tt]he the\b", row.text
        ), row.text


def test_every_kind_is_large_and_half_of_it_is_false(frame: pd.DataFrame) -> None:
    assert list(frame["kind"].drop_duplicates()) == list(KINDS)
    for kind, rows in frame.groupby("kind"):
        assert 250 <= len(rows) <= 300, kind
        assert rows["label"].mean() == 0.5, kind
        assert rows["group"].nunique() >= 60, kind


def test_all_words_of_a_block_are_as_often_true_as_false(frame: pd.DataFrame) -> None:
    for rows in blocks(frame):
        assert rows["group"].nunique() == 1
        balance: Counter[str] = Counter()
        for row in rows.itertuples():
            for word in re.findall(r"\w+|[^\w\s]", row.text.casefold()):
                balance[word] += 1 if row.label else -1
        assert set(balance.values()) == {0}, list(rows["text"])


def test_forms_and_polarities_occur_in_every_relation_that_has_them(frame: pd.DataFrame) -> None:
    singles = frame[frame["kind"].str.startswith(("affirmed", "negated"))]
    assert {"end", "front", "middle"} == set(singles["form"])
    for relation in NAMED:
        rows = singles[singles["relation"] == relation]
        assert set(zip(rows["form"], rows["polarity"], strict=True)) == {
            (wording.form, polarity)
            for wording in WORDINGS[relation]
            for polarity in ("affirmed", "negated")
        }, relation
    for kind, relations in {"number": NUMBERS, "plain": PLAIN}.items():
        rows = frame[frame["kind"].isin([kind, f"{kind}_negated"])]
        assert set(rows["relation"]) == set(relations)
        assert set(rows["polarity"]) == {"affirmed", "negated"}


def sizes() -> dict[str, dict[str, float]]:
    from ghosttrack.facts.statement_kinds import _rows

    tables = {
        "area": ("countries", "area"),
        "population": ("countries", "population"),
        "mass": ("elements", "mass"),
        "place": ("places", "population"),
    }
    return {
        name: {row["name"]: float(row[column].replace(",", "")) for row in _rows(table)}
        for name, (table, column) in tables.items()
    }


def test_the_labels_of_comparisons_follow_from_the_tables(frame: pd.DataFrame) -> None:
    """An independent reading of each text, with the sizes of the tables."""
    size = sizes()
    rows = frame[frame["kind"].str.startswith("comparison")]
    assert set(rows["relation"]) == {f"{name}_compared" for name in COMPARISONS}
    for row in rows.itertuples():
        values = size[row.relation.removesuffix("_compared")]
        names = sorted((name for name in values if fold(name) in fold(row.text)), key=len)
        first = max(
            (name for name in names if fold(row.text).find(fold(name)) < row.changed_start), key=len
        )
        second = row.text[row.changed_start : row.changed_end]
        more = bool(re.search(r"\b(larger|[Mm]ore|heavier|bigger)\b", row.text))
        negated = bool(re.search(r"\bnot\b", row.text))
        true = (values[first] > values[second]) == more
        assert row.label == int(true == negated), row.text


def test_every_name_is_compared_once_in_a_kind(frame: pd.DataFrame) -> None:
    for _, rows in frame[frame["kind"].str.startswith("comparison")].groupby("kind"):
        groups = defaultdict(set)
        for row in rows.itertuples():
            groups[row.text[row.changed_start : row.changed_end], row.relation].add(row.group)
        assert set(map(len, groups.values())) == {1}


@pytest.mark.parametrize("relation", [*NAMED, *NUMBERS, *PLAIN, "is_a", "gloss"])
def test_exchanged_answers_are_wrong(relation: str) -> None:
    found = blocks_of(relation, 0)
    assert found
    for block in found:
        first, second = block.facts
        assert first.subject != second.subject
        for fact, wrong in ((first, second.answer), (second, first.answer)):
            assert wrong not in (*fact.gold, *fact.excluded_distractors)


def _common() -> dict[str, Any]:
    return dict(yaml.safe_load((DATA / "common_facts.yaml").read_text(encoding="utf-8")))


def test_every_exception_names_a_subject_and_answers_of_its_relation() -> None:
    common = _common()
    for relation, exceptions in common["excluded"].items():
        facts = common["facts"][relation]
        assert {*exceptions} <= {re.sub("^an? ", "", subject) for subject in facts}
        for subject, answers in exceptions.items():
            assert {*answers} <= {*facts.values()}, (relation, subject)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("measured_in", "an angle in geometry", "degrees"),
        ("measured_in", "the weight of a diamond", "newtons"),
        ("opposite", "noisy", "quiet"),
        ("opposite", "old", "modern"),
        ("young", "goose", "chick"),
        ("young", "deer", "calf"),
        ("made_from", "chocolate", "milk"),
        ("painter", "The Starry Night", "Edvard Munch"),
        ("painter", "Las Meninas", "Pablo Picasso"),
        ("has_parts", "year", "366 days"),
    ],
)
def test_an_answer_that_is_also_right_is_never_exchanged(
    relation: str, subject: str, answer: str, seed: int
) -> None:
    exchanged = {
        (fact.subject, other.answer)
        for block in blocks_of(relation, seed)
        for fact, other in (block.facts, block.facts[::-1])
    }
    assert len(exchanged) > 5
    assert (subject, answer) not in exchanged


def test_no_member_of_a_class_has_a_second_meaning_in_another() -> None:
    # A triangle is also an instrument, a square a number, a screwdriver a drink.
    members = {member for line in _common()["classes"].values() for member in line}
    assert not members & {
        *("triangle", "square", "screwdriver", "grasshopper", "drill", "saw", "bat", "Latin"),
        *("coffee", "beetle", "cricket", "pentagon"),
    }


def test_only_counties_are_called_counties() -> None:
    for block in blocks_of("county", 0):
        assert all(fact.subject.endswith(" County") for fact in block.facts)


@pytest.mark.parametrize("relation", ["population", "area", "mass"])
def test_a_rounded_number_is_about_right_in_both_polarities(relation: str) -> None:
    for wording in WORDINGS[relation]:
        assert "about {a}" in wording.affirmed.lower()
        assert "about {a}" in wording.negated.lower()


def test_sums_are_right() -> None:
    for block in blocks_of("sum", 0):
        for fact in block.facts:
            one, other = fact.subject.split(" plus ")
            assert int(one) + int(other) == int(fact.answer)


def test_numbers_that_are_exchanged_differ_clearly() -> None:
    for relation in ("mass", "area", "population"):
        for block in blocks_of(relation, 0):
            low, high = sorted(float(fact.answer.replace(",", "")) for fact in block.facts)
            assert high / low >= 1.5


def test_negation_turns_the_label(frame: pd.DataFrame) -> None:
    """A statement is true if it says of a subject what the table says, or denies another answer."""
    rows = frame[
        frame["kind"].str.fullmatch(
            "(affirmed|negated)(_reversed|_middle)?|(plain|definition|number)(_negated)?"
        )
    ]
    assert len(rows) > 2500
    for row in rows.itertuples():
        negated = bool(re.search(r"\b(not|no|cannot)\b", row.text.casefold()))
        assert negated == (row.polarity == "negated"), row.text
        stated = row.text[row.changed_start : row.changed_end].casefold() == row.gold[0].casefold()
        assert row.label == int(stated == negated), row.text


def test_the_groups_are_those_of_the_strict_sets(frame: pd.DataFrame) -> None:
    """The same two facts have one group, so that no fold divides them."""
    for table in ("capitals", "cities", "languages", "currencies"):
        strict = {
            group: set(rows["subject"]) | set(rows["answer"])
            for group, rows in build_statements(table, seed=0).groupby("group")
        }
        rows = frame[frame["group"].isin(strict)]
        assert len(rows) >= 20, table
        for row in rows.itertuples():
            assert row.subject in strict[row.group]
        prefixed = frame[frame["group"].str.fullmatch(rf"{table}-\d+")]
        assert set(prefixed["group"]) <= set(strict)


def test_demonstrations_are_not_used(frame: pd.DataFrame) -> None:
    shown = {
        (fact.relation, fact.subject)
        for table in ("capitals", "languages", "cities")
        for fact in load_table(table)
        if fact.role == "demonstration"
    }
    assert not shown & set(zip(frame["relation"], frame["subject"], strict=True))


def test_the_same_seed_gives_the_same_statements(frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(build_kinds(seed=0, texts_per_kind=300), frame)
    assert set(build_kinds(1, 20)["text"]) != set(build_kinds(0, 20)["text"])
    assert all(len(rows) == 20 for _, rows in build_kinds(0, 20).groupby("kind"))


def test_less_than_a_block_is_an_error() -> None:
    with pytest.raises(UserError, match=r"texts_per_kind: 3 is less than one block"):
        build_kinds(0, 3)


def test_a_wording_takes_the_article_of_its_noun() -> None:
    assert fill("a {s} has {a}", "hour", "60 minutes") == ("An hour has 60 minutes", 12, 22)
    assert fill("{a} is what {s} is", "a tool", "an axe")[0] == "An axe is what a tool is"
    assert fill("A {a} grows up to be a {s}", "owl", "owlet")[0] == "An owlet grows up to be an owl"


def out_of_fold(rows: pd.DataFrame) -> np.ndarray:
    """Scores of the text-only control of the audit."""
    labels = rows["label"].to_numpy(dtype=np.int64)
    cv_groups = splits.make_cv_groups(list(rows["group"]), list(rows["text"]))
    folds = splits.assign_folds(labels, cv_groups, 3, seed=0)
    score = np.empty(len(rows))
    for outer in splits.outer_folds(labels, cv_groups, folds, 2, seed=0):
        score[outer.test] = probes.probability(
            controls.text_only(rows, labels, outer).test_log_odds
        )
    return score


def test_text_alone_does_not_tell_true_from_false(frame: pd.DataFrame) -> None:
    """Pooled, and in every kind by the model of all kinds."""
    few = frame.groupby("kind", sort=False).head(160).reset_index(drop=True)
    score = out_of_fold(few)
    labels = few["label"].to_numpy()
    assert abs(auroc(labels, score) - 0.5) < 0.03
    for kind, rows in few.groupby("kind"):
        assert abs(auroc(labels[rows.index], score[rows.index]) - 0.5) < 0.09, kind


@pytest.mark.parametrize("kind", list(KINDS))
def test_text_alone_does_not_tell_true_from_false_within_a_kind(
    kind: str, frame: pd.DataFrame
) -> None:
    rows = frame[frame["kind"] == kind].reset_index(drop=True)
    assert abs(auroc(rows["label"].to_numpy(), out_of_fold(rows)) - 0.5) < 0.06
