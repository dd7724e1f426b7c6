"""Demonstrations before a text: the same for a whole relation, and never evaluated facts."""

import pytest

from ghosttrack.facts import contexts, statements


@pytest.mark.parametrize("relation", contexts.DEMONSTRATIONS)
def test_no_demonstration_is_evaluated_in_either_direction(relation: str) -> None:
    evaluated = {
        frozenset((fact.subject.casefold(), answer.casefold()))
        for table in statements.list_tables()
        for fact in statements.load_table(table)
        if fact.role == "evaluated" and fact.relation == relation
        for answer in fact.gold
    }
    shown = {
        frozenset((subject.casefold(), answer.casefold()))
        for subject, answer in contexts.DEMONSTRATIONS[relation]
    }
    assert len(shown) == len(contexts.DEMONSTRATIONS[relation])
    assert not shown & evaluated


def test_every_evaluated_relation_of_the_default_sets_has_demonstrations() -> None:
    for table in (
        "cities",
        "capitals",
        "capitals_hard",
        "continents",
        "languages",
        "borders_hard",
        "us_cities",
    ):
        for relation in statements.build_statements(table, 0)["relation"].unique():
            assert contexts.context_of(relation).count("\n") >= 5


def test_a_context_reads_as_the_statements_do_in_both_directions() -> None:
    assert contexts.context_of("capital").startswith(
        "The capital of Japan is Tokyo.\nThe capital of Egypt is Cairo.\n"
    )
    assert contexts.context_of("capital_reverse").startswith("Tokyo is the capital of Japan.\n")


@pytest.mark.parametrize("relation", ["", "larger", "French", "border_reverse", "my own"])
def test_other_relations_have_no_context(relation: str) -> None:
    assert contexts.context_of(relation) == ""
