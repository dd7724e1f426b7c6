"""Generation: plain greedy completions, cut and marked, with nothing lost unseen."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import generation
from ghosttrack.activations.generation import choose_questions, complete, mark
from ghosttrack.errors import UserError
from ghosttrack.files import read_json

PROMPTS = [
    "The capital of France is",
    "Q: Who? A: Ada Lovelace\nQ: Who? A:",
    "Is it 79",
    "The atomic number of gold is",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_models.make_tokenizer()


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return small_models.make_model(request.param)


def slowly(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    """The obvious way: one prompt, no padding, no cache."""
    start = [0, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ids = list(start)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    whole: str = tokenizer.decode(ids[1:], skip_special_tokens=True)
    return whole[len(tokenizer.decode(start[1:])) :]


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batched_generation_equals_one_prompt_at_a_time_without_a_cache(model: Any, tokenizer: Any, batch: int) -> None:
    found = complete(model, tokenizer, PROMPTS, max_new_tokens=6, batch=batch, dataset="x")
    assert found == [slowly(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    assert all(found)


def test_the_sampling_defaults_of_a_model_are_ignored(model: Any, tokenizer: Any) -> None:
    expected = complete(model, tokenizer, PROMPTS, max_new_tokens=6, batch=2, dataset="x")
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    assert complete(model, tokenizer, PROMPTS, max_new_tokens=6, batch=2, dataset="x") == expected


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tokenizer: Any) -> None:
    model = small_models.make_model("gpt2")
    with pytest.raises(
        UserError, match=r"data set trivia: a prompt of \d+ tokens and generation\.max_new_tokens 60 exceed the 64"
    ):
        complete(model, tokenizer, PROMPTS, max_new_tokens=60, batch=2, dataset="trivia")


def questions(count: int = 1) -> pd.DataFrame:
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Chad": "N'Djamena"}
    rows = [
        {
            "id": f"q{number}{subject}", "group": subject, "relation": "capital", "subject": subject,
            "question": f"What is the capital of {subject}?", "prompt": f"The capital of {subject} is", "gold": [city],
        }
        for number in range(count) for subject, city in capitals.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_answers_are_cut_marked_and_counted() -> None:
    found = mark(questions(), [" Paris.\nThe capital of", " Madrid.\n", "", " Paris or N'Djamena."], "x")
    assert found.examples.columns.tolist() == generation.EXAMPLE_COLUMNS
    labels = dict(zip(found.examples["subject"], found.examples["label"], strict=True))
    assert labels["France"] == 0
    assert labels["Italy"] == 1
    assert "Spain" not in labels
    assert found.counts["correct"] >= 1
    assert found.counts["wrong"] >= 1
    assert found.counts["empty"] == 1
    assert sum(found.counts[name] for name in ("correct", "wrong", "ambiguous", "empty")) == 4
    assert found.counts["by_relation"] == {"capital": {k: v for k, v in found.counts.items() if k != "by_relation"}}
    assert len(found.examples) == found.counts["correct"] + found.counts["wrong"]


def test_the_answer_span_is_the_cut_answer_and_ends_the_text() -> None:
    row = mark(questions().head(1), [" Paris.\nThe capital of Italy is Rome."], "x").examples.iloc[0]
    assert row["text"][row["answer_start"] : row["answer_end"]] == row["answer"] == "Paris"
    assert row["text"] == "The capital of France is Paris"
    assert row["prompt"] == "The capital of France is"
    assert row["mode"] == "generated"
    assert list(row["gold"]) == ["Paris"]


def test_no_answer_at_all_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(UserError, match=r"data set x: none of 4 answers could be marked .*'empty': 4.*max_new_tokens"):
        mark(questions(), [""] * 4, "x")


def test_chosen_questions_are_spread_evenly_over_relations_and_keep_their_order() -> None:
    frame = pd.DataFrame({"relation": ["a"] * 50 + ["b"] * 3 + ["c"] * 20, "id": range(73)})
    chosen = choose_questions(frame, 23, seed=0)
    assert chosen["relation"].value_counts().to_dict() == {"a": 10, "c": 10, "b": 3}
    assert chosen["id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(chosen, choose_questions(frame, 23, seed=0))
    assert chosen["id"].tolist() != choose_questions(frame, 23, seed=1)["id"].tolist()
    assert choose_questions(frame, 100, seed=0) is frame


def test_the_script_writes_examples_and_counts_the_same_twice(tmp_path: Path, tokenizer: Any) -> None:
    import generate_answers
    from ghosttrack.settings import GenerationSettings

    small_models.save(small_models.make_model("gpt2"), tokenizer, tmp_path / "model")
    questions(3).to_parquet(tmp_path / "questions.parquet")
    for name in "xy":
        generate_answers.main(
            questions=tmp_path / "questions.parquet", weights=tmp_path / "model" / "model.safetensors",
            examples=tmp_path / f"{name}.parquet", labels=tmp_path / f"{name}.json", dataset="facts", batch=4,
            generation=GenerationSettings(max_new_tokens=5, questions=8), threads=1, seed=0,
        )  # fmt: skip
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    counts = read_json(tmp_path / "x.json")
    assert counts == read_json(tmp_path / "y.json")
    assert sum(counts[name] for name in ("correct", "wrong", "ambiguous", "empty")) == 8
    examples = pd.read_parquet(tmp_path / "x.parquet")
    assert examples["id"].is_unique
    assert set(examples["label"]) <= {0, 1}
    spans = zip(examples["text"], examples["answer_start"], examples["answer_end"], strict=True)
    assert [text[start:end] for text, start, end in spans] == examples["answer"].tolist()
    assert np.isin(examples["group"], ["France", "Italy", "Spain", "Chad"]).all()
