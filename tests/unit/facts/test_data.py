"""The shipped files: small, well-formed, and without evaluated answers in the training text."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ghosttrack.facts.fact_text import (
    PairFinder,
    corpus_documents,
    pair_finder,
    statement_documents,
)
from ghosttrack.facts.statements import (
    CONTROL_SETS,
    DATA,
    known_pairs,
    list_tables,
    load_table,
    swappable,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def glosses() -> list[str]:
    return list(corpus_documents(seed=0))


@pytest.fixture(scope="module")
def statements() -> list[str]:
    return list(statement_documents(seed=0))


def test_no_document_names_an_evaluated_subject_with_its_answer(
    glosses: list[str], statements: list[str]
) -> None:
    finder = pair_finder()
    assert [text for text in (*glosses, *statements) if finder.find(text)] == []


def test_the_finder_sees_whole_names_only_in_any_case_accent_and_order() -> None:
    finder = PairFinder([("Chad", "N'Djamena"), ("Colombia", "Bogotá"), ("carbon", "6")])
    assert finder.find("The capital of Chad is N'Djamena.")
    assert finder.find("BOGOTA, in colombia")
    assert finder.find("6 is the number of carbon")
    assert not finder.find("Chadian N'Djamena")
    assert not finder.find("carbon 16")
    assert not finder.find("Chad and Colombia")


def test_the_finder_agrees_with_a_plain_search(statements: list[str]) -> None:
    """Differential test against a search for every pair in every text, with and without pairs."""
    import re

    from ghosttrack.facts.statements import fold

    pairs = list(known_pairs())[::40]
    finder = PairFinder(pairs)
    flat = [
        (
            " " + " ".join(re.findall(r"\w+", fold(one))) + " ",
            " " + " ".join(re.findall(r"\w+", fold(other))) + " ",
        )
        for one, other in pairs
    ]
    texts = [*statements[:300], *(f"{one} goes with {other}" for one, other in pairs[:100])]
    for text in texts:
        line = " " + " ".join(re.findall(r"\w+", fold(text))) + " "
        plain = any(one in line and other in line and one != other for one, other in flat)
        assert (finder.find(text) is not None) == plain, text


def test_the_corpus_is_large_and_its_order_depends_on_the_seed_only(glosses: list[str]) -> None:
    assert len(glosses) > 100_000
    assert sum(map(len, glosses)) > 9_000_000
    assert len(set(glosses)) == len(glosses)
    assert all(document.strip() == document and document for document in glosses)
    assert next(corpus_documents(seed=0)) == glosses[0]
    assert next(corpus_documents(seed=1)) != glosses[0]


def test_there_are_statements_for_more_than_40000_tokens(statements: list[str]) -> None:
    # A token of English is at most five characters long on average, so this is a safe lower bound.
    assert sum(map(len, statements)) > 5 * 40_000
    assert list(statement_documents(seed=0)) == statements
    assert next(statement_documents(seed=1)) != statements[0]
    assert all(document[0].isupper() or document[0].isdigit() for document in statements)
    assert not any("{" in document for document in statements)


def test_the_data_folder_stays_under_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 4_000_000


def test_every_shipped_file_is_attributed() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for path in DATA.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert path.name in readme, path


def test_every_licence_of_the_shipped_data_is_in_the_same_file() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in readme.splitlines() if line.startswith("| `")]
    named = {one.strip() for row in rows if len(row) == 4 for one in row[3].strip(" |").split(";")}
    free = {"MIT", "public domain"}  # the project's own licence, and none
    text = {"CC BY 4.0": "creativecommons.org/licenses/by/4.0", "WordNet 3.0 license, below": ""}
    for licence in named - free:
        heading = f"## {licence.removesuffix(', below')}"
        assert heading in readme or text.get(licence, heading) in readme, licence
    assert "Unicode License v3" in named
    assert "PERMISSION NOTICE" in readme


@pytest.mark.parametrize("table", list_tables())
def test_tables_hold_clean_names_and_no_fact_twice(table: str) -> None:
    facts = load_table(table)
    assert len({(fact.relation, fact.subject, fact.answer) for fact in facts}) == len(facts)
    for fact in facts:
        for name in (fact.subject, *fact.gold, *fact.excluded_distractors, *fact.distractors):
            assert name == name.strip() != ""
            assert not set(name) & set('"|\t\n&()')
        assert not set(fact.gold) & set(fact.distractors)
        assert fact.role in ("evaluated", "demonstration")


def test_every_table_has_its_data_set_file() -> None:
    folder = ROOT / "config" / "datasets"
    for table in list_tables():
        config = yaml.safe_load((folder / f"{table}.yaml").read_text(encoding="utf-8"))
        assert config["source"] == "facts"
        assert config["table"] == table
        assert config.get("control", False) == (table in CONTROL_SETS)
    questions = yaml.safe_load((folder / "questions.yaml").read_text(encoding="utf-8"))
    assert questions == {"source": "facts", "mode": "generated"}


def test_a_part_of_a_country_is_accepted_only_for_its_own_cities() -> None:
    parts = _choices()["parts_of_countries"]["GB"].values()
    cities = [fact for fact in load_table("cities") if fact.answer == "the United Kingdom"]
    assert cities
    for fact in cities:
        assert len(set(parts) & set(fact.gold)) == 1, fact.subject


def test_a_border_overseas_or_in_dispute_is_neither_true_nor_false() -> None:
    disputed = {("the United States", "Cuba"), ("Brazil", "France"), ("Spain", "Morocco")}
    for fact in load_table("borders_hard"):
        for one, other in disputed | {pair[::-1] for pair in disputed}:
            if fact.subject == one:
                assert other != fact.answer
                assert other not in fact.distractors


def test_another_name_of_a_currency_is_no_false_answer() -> None:
    facts = {fact.subject: fact for fact in load_table("currencies")}
    for country, name in (("Lebanon", "lira"), ("Syria", "lira"), ("Venezuela", "dollar")):
        assert not swappable(
            facts[country],
            facts[country]._replace(subject="elsewhere", answer=name, aliases=()),
            strict=True,
        )


def test_every_official_language_is_accepted_by_each_of_its_names() -> None:
    choices = _choices()
    facts = {fact.subject: fact for fact in load_table("languages")}
    for subject, code in (("South Africa", "ZA"), ("Morocco", "MA"), ("Iraq", "IQ")):
        assert {*choices["official_languages"][code]} <= {*facts[subject].gold}
    for fact in facts.values():
        for name, others in choices["language_aliases"].items():
            assert name not in fact.gold or {*others} <= {*fact.gold}, (fact.subject, name)
            assert not {*fact.gold} & {*fact.excluded_distractors}


@pytest.mark.parametrize(
    ("subject", "language"),
    [
        ("Morocco", "French"),
        ("Algeria", "French"),
        ("Tunisia", "French"),
        ("Madagascar", "English"),
        ("Nigeria", "Yoruba"),
        ("Senegal", "Wolof"),
    ],
)
def test_a_language_in_wide_use_is_neither_accepted_nor_a_false_answer(
    subject: str, language: str
) -> None:
    (fact,) = [fact for fact in load_table("languages") if fact.subject == subject]
    assert language not in fact.gold
    assert language in fact.excluded_distractors


def _choices() -> dict[str, Any]:
    return dict(yaml.safe_load((DATA / "choices.yaml").read_text(encoding="utf-8")))
