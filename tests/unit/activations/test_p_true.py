"""P(True): the question, its demonstrations, and the log-odds after it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import p_true
from ghosttrack.errors import UserError
from ghosttrack.facts import contexts
from ghosttrack.facts.statements import list_tables, load_table
from ghosttrack.inputs import models


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


def examples(rows: list[tuple[str, str, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["relation", "mode", "text", "question", "answer"])


ROWS = examples(
    [
        ("capital", "given", "The capital of Chad is Rome.", "", "Rome"),
        ("", "given", "Ice is warm.", "", "warm"),
        ("capital", "given", "The capital of Cuba is Havana.", "", "Havana"),
        (
            "capital",
            "generated",
            "The capital of Chad is Rome",
            "What is the capital of Chad?",
            " Rome",
        ),
    ]
)


def test_a_text_is_shown_after_its_context() -> None:
    shown = p_true.shown_texts(ROWS.assign(context=["A passage.", *[""] * (len(ROWS) - 1)]))
    assert shown[0] == "A passage.\nThe capital of Chad is Rome."
    assert shown[1:] == p_true.shown_texts(ROWS)[1:]


def test_log_odds_equal_those_after_each_whole_text(tokenizer: Any) -> None:
    model = small_models.make_model("llama")
    model.eval()
    found = p_true.measure(model, tokenizer, ROWS, limit=512, batch=2, packed=512)
    for row, text in enumerate(p_true.shown_texts(ROWS)):
        head = p_true.demonstrations(ROWS["relation"][row], ROWS["mode"][row] == "generated")
        odds = []
        for shown in (text, p_true.NOTHING):
            options = {"add_special_tokens": False}
            words = [
                tokenizer(f"{head}{shown} {p_true.ASK}{word}", **options)["input_ids"]
                for word in (" True", " False")
            ]
            place = next(
                place
                for place, (one, other) in enumerate(zip(*words, strict=False))
                if one != other
            )
            with torch.inference_mode():
                ids = torch.tensor([[models.separator(tokenizer), *words[0][:place]]])
                logits = model(input_ids=ids).logits[0, -1]
            odds.append(float(logits[words[0][place]] - logits[words[1][place]]))
        assert found[row] == pytest.approx(odds[0] - odds[1], abs=1e-4)


def test_a_tokenizer_that_does_not_tell_true_from_false_is_refused() -> None:
    prompt = p_true._up_to_difference([1], [2, 3], [2, 4])
    assert (prompt.ids.tolist(), prompt[1:]) == ([1, 2], (3, 4))
    with pytest.raises(UserError, match=r"does not tell 'True' from 'False'.*p_true to none"):
        p_true._up_to_difference([1], [2, 3], [2, 3])


def test_a_text_that_does_not_fit_has_no_score(tokenizer: Any) -> None:
    model = small_models.make_model("llama")
    long = pd.concat([ROWS, ROWS.iloc[1:2].assign(text="Ice is warm. " * 200)], ignore_index=True)
    found = p_true.measure(model, tokenizer, long, limit=512, batch=4, packed=512)
    assert np.isnan(found).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("with_question", [False, True])
@pytest.mark.parametrize(
    "relation", ["", "unknown", *contexts.DEMONSTRATIONS, "capital_reverse", "symbol_reverse"]
)
def test_demonstrations_are_balanced_and_all_different(relation: str, with_question: bool) -> None:
    lines = p_true.demonstrations(relation, with_question).splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["True", "False", "False", "True"]
    assert len({line.split(p_true.ASK)[0] for line in lines}) == 4


def test_no_demonstration_is_an_evaluated_fact() -> None:
    pairs = {
        (fact.subject, answer)
        for table in list_tables()
        for fact in load_table(table)
        if fact.role == "evaluated"
        for answer in fact.gold
    }
    assert not pairs & {pair for found in contexts.DEMONSTRATIONS.values() for pair in found}
    statement = p_true.demonstrations("capital", with_question=False)
    assert "The capital of Japan is Tokyo. True or false? True" in statement
    assert "The capital of Egypt is Tokyo. True or false? False" in statement
    assert "Lima is the capital of Peru" in p_true.demonstrations(
        "capital_reverse", with_question=False
    ) or "Paris is the capital of Peru" in p_true.demonstrations(
        "capital_reverse", with_question=False
    )
