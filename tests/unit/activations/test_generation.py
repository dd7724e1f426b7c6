"""Generation: greedy and sampled continuations, cut to answers, judged and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import decoding, generation, packed_texts
from ghosttrack.activations.decoding import Continuation, complete
from ghosttrack.activations.generation import (
    choose_questions,
    judge_answers,
    sample_table,
    uniform_numbers,
)
from ghosttrack.errors import UserError
from ghosttrack.facts import remarks
from ghosttrack.runtime.files import read_json

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


def slowly(
    model: Any,
    tokenizer: Any,
    prompt: str,
    count: int,
    draws: np.ndarray | None = None,
    temperature: float = 1.0,
) -> tuple[str, list[float]]:
    """Reference: one prompt without padding or cache; text and log-probability of each token."""
    start = [0, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ids, logprobs = list(start), []
    before = len(tokenizer.decode(start[1:]))
    for step in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        if draws is None:
            token = int(logits.argmax())
        else:
            summed = np.cumsum(torch.softmax(logits / temperature, 0).numpy())
            token = int(np.flatnonzero(summed > draws[step] * summed[-1])[0])
        ids.append(token)
        logprobs.append(float(torch.log_softmax(logits, 0)[token]))
        text = tokenizer.decode(ids[1:], skip_special_tokens=True)[before:]
        if token == tokenizer.eos_token_id or (text.strip() and "\n" in tokenizer.decode([token])):
            break
    return tokenizer.decode(ids[1:], skip_special_tokens=True)[before:], logprobs


def assert_same(found: Continuation, expected: tuple[str, list[float]]) -> None:
    assert found.text == expected[0]
    assert found.logprobs == pytest.approx(expected[1], abs=1e-4)
    assert len(found.ends) == len(found.logprobs)
    assert found.ends[-1] == len(found.text)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batched_generation_equals_one_prompt_at_a_time_without_a_cache(
    model: Any, tokenizer: Any, batch: int
) -> None:
    # The last three share a prefix with the first, as questions share their demonstrations.
    prompts = [*PROMPTS, *(f"{PROMPTS[1]} {end}" for end in ("Ada", "gold", "Is it Paris"))]
    for found, prompt in zip(
        complete(
            model,
            tokenizer,
            prompts,
            max_new_tokens=6,
            batch=batch,
            dataset="x",
            limits=small_models.exact(),
        ),
        prompts,
        strict=True,
    ):
        assert_same(found, slowly(model, tokenizer, prompt, 6))
        assert found.text


class Elsewhere:
    """Logits on another device than the tokens: nothing can be done with them before a copy."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def to(self, device: torch.device) -> torch.Tensor:
        return self._logits.to(device)


def test_logits_of_a_model_that_is_spread_over_devices_come_to_the_tokens(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_of = packed_texts.logits_of
    monkeypatch.setattr(decoding, "logits_of", lambda *given: Elsewhere(logits_of(*given)))
    limits = small_models.exact()._replace(padded=0, cached=0)
    found = complete(
        model, tokenizer, PROMPTS, max_new_tokens=4, batch=2, dataset="x", limits=limits
    )
    for each, prompt in zip(found, PROMPTS, strict=True):
        assert_same(each, slowly(model, tokenizer, prompt, 4))


@pytest.mark.parametrize("batch", [2, 8])
def test_sampled_answers_depend_on_their_own_random_numbers_alone(
    model: Any, tokenizer: Any, batch: int
) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    draws = uniform_numbers(PROMPTS, 3, 6, seed=5)
    found = complete(
        model,
        tokenizer,
        prompts,
        max_new_tokens=6,
        batch=batch,
        dataset="x",
        limits=small_models.exact(),
        draws=draws,
        temperature=0.7,
    )
    for each, prompt, numbers in zip(found, prompts, draws, strict=True):
        assert_same(each, slowly(model, tokenizer, prompt, 6, numbers, 0.7))
    assert len({each.text for each in found}) > len(PROMPTS)


def test_the_random_numbers_of_a_question_do_not_depend_on_other_questions_or_samples() -> None:
    few, more = uniform_numbers(["a", "b"], 2, 4, seed=1), uniform_numbers(["b", "c"], 3, 4, seed=1)
    assert few[2:].tolist() == more[:2].tolist()
    assert few.tolist() != uniform_numbers(["a", "b"], 2, 4, seed=2).tolist()


def test_sampled_tokens_have_the_model_s_probabilities(model: Any, tokenizer: Any) -> None:
    numbers = (np.arange(2000) + 0.5)[:, None] / 2000
    found = complete(
        model,
        tokenizer,
        [PROMPTS[0]] * 2000,
        max_new_tokens=1,
        batch=500,
        dataset="x",
        limits=small_models.exact(),
        draws=numbers,
        temperature=2.0,
    )
    ids = [0, *tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    expected, plain = torch.softmax(logits / 2, 0), torch.log_softmax(logits, 0)
    # The log-probabilities are those at temperature 1, the frequencies those at temperature 2.
    counted = pd.Series([round(each.logprobs[0], 4) for each in found]).value_counts(normalize=True)
    for token in expected.topk(5).indices.tolist():
        alike = (plain - plain[token]).abs() < 1e-4
        assert counted[round(float(plain[token]), 4)] == pytest.approx(
            float(expected[alike].sum()), abs=2e-3
        )


def test_an_answer_ends_with_its_first_line(tokenizer: Any) -> None:
    model = small_models.make_model("gpt2")
    script = tokenizer("\n\nParis it\nand more", add_special_tokens=False)["input_ids"]
    start = len(tokenizer("Is it", add_special_tokens=False)["input_ids"]) + 1
    own = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = own(self, *args, **kwargs)
        place = result.past_key_values.get_seq_length() - start
        result.logits[:, -1] = -10.0
        result.logits[:, -1, script[max(place, 0)]] = 10.0
        return result

    model.forward = forward.__get__(model)
    (found,) = complete(
        model,
        tokenizer,
        ["Is it"],
        max_new_tokens=30,
        batch=1,
        dataset="x",
        limits=small_models.exact(),
    )
    assert found.text == "\n\nParis it\n"


def test_the_sampling_defaults_of_a_model_are_ignored(model: Any, tokenizer: Any) -> None:
    expected = complete(
        model,
        tokenizer,
        PROMPTS,
        max_new_tokens=6,
        batch=2,
        dataset="x",
        limits=small_models.exact(),
    )
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    assert (
        complete(
            model,
            tokenizer,
            PROMPTS,
            max_new_tokens=6,
            batch=2,
            dataset="x",
            limits=small_models.exact(),
        )
        == expected
    )


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tokenizer: Any) -> None:
    model = small_models.make_model("gpt2")
    with pytest.raises(
        UserError,
        match=r"data set trivia: a prompt of \d+ tokens and generation\.max_new_tokens 60 exceed the 64",
    ):
        complete(
            model,
            tokenizer,
            PROMPTS,
            max_new_tokens=60,
            batch=2,
            dataset="trivia",
            limits=small_models.exact(),
        )


def questions(count: int = 1) -> pd.DataFrame:
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Chad": "N'Djamena"}
    rows = [
        {
            "id": f"q{number}{subject}",
            "group": subject,
            "relation": "capital",
            "subject": subject,
            "question": f"What is the capital of {subject}?",
            "prompt": f"The capital of {subject} is",
            "gold": [city],
            "arguable": [],
        }
        for number in range(count)
        for subject, city in capitals.items()
    ]
    return pd.DataFrame(rows)


def test_answers_that_follow_true_and_false_remarks_are_counted() -> None:
    asked = questions().assign(
        remark="Some say so. ",
        remark_answer=["Paris", "Lima", "Lima", "Lima"],
        other="Lima",
        wording="hearsay",
    )
    found = judge_answers(asked, [" Paris.", " Lima.", " Rome.", " Lima or Paris."], "x")
    assert found.counts["remarks"] == {
        "true": {"asked": 1, "followed": 1},
        "false": {"asked": 3, "followed": 1},
    }
    assert set(found.examples["wording"]) == {"hearsay"}
    plain = judge_answers(questions(), [" Paris.", " Lima.", " Rome.", " Lima."], "x")
    assert "remarks" not in plain.counts
    assert set(plain.examples["remark"]) == {""}


def test_an_answer_that_repeats_its_remark_may_hold_a_full_stop() -> None:
    asked = questions().assign(
        remark="Some say so. ",
        remark_answer=["St. Paul v. Rome", "Paris! Texas", "Lima", "Lima"],
        other=["St. Paul v. Rome", "Paris! Texas", "Lima", "Lima"],
        wording="hearsay",
    )
    texts = [" St. Paul v. Rome.", " Paris! Texas. It", " Lima.", " Rome."]
    found = judge_answers(asked, texts, "x")
    assert found.examples["answer"].tolist() == ["St. Paul v. Rome", "Paris! Texas", "Lima", "Rome"]
    assert found.counts["remarks"]["false"] == {"asked": 4, "followed": 3}
    assert remarks.agreement(found.examples) == [True, True, True, False]
    greedy = [Continuation(text, (len(text),), (0.0,)) for text in texts]
    assert sample_table(asked, greedy, [])["answer"].tolist() == found.examples["answer"].tolist()


def test_the_false_answer_of_a_remark_is_wrong_though_it_holds_an_accepted_one() -> None:
    asked = (
        questions()
        .iloc[:1]
        .assign(
            gold=[["South Korea", "Korea"]],
            remark="Some say so. ",
            remark_answer="North Korea",
            other="North Korea",
            wording="hearsay",
        )
    )
    found = judge_answers(asked, [" North Korea."], "x")
    assert found.examples["label"].tolist() == [1]


def test_the_other_answer_is_that_of_the_remark_whatever_the_label() -> None:
    asked = questions().assign(
        remark="Some say so. ", remark_answer="Lima", other="Lima", wording="hearsay"
    )
    continuations = [" Paris.", " Lima.", " Rome.", " Madrid."]
    found = judge_answers(asked, continuations, "x").examples
    assert set(found["label"]) == {0, 1}
    for answer, other in zip(found["answer"], found["other"], strict=True):
        assert other == ("" if answer == "Lima" else "Lima")
    # The same answers with other gold answers, so with other labels.
    gold = asked["gold"].tolist()
    turned = judge_answers(asked.assign(gold=gold[1:] + gold[:1]), continuations, "x").examples
    assert turned["label"].tolist() != found["label"].tolist()
    assert turned["other"].tolist() == found["other"].tolist()


def test_answers_are_cut_judged_and_counted() -> None:
    found = judge_answers(
        questions(), [" Paris.\nThe capital of", " Madrid.\n", "", " Paris or N'Djamena."], "x"
    )
    assert found.examples.columns.tolist() == generation.EXAMPLE_COLUMNS
    labels = dict(zip(found.examples["subject"], found.examples["label"], strict=True))
    assert labels["France"] == 0
    assert labels["Italy"] == 1
    assert "Spain" not in labels
    assert found.counts["correct"] >= 1
    assert found.counts["wrong"] >= 1
    assert found.counts["empty"] == 1
    assert sum(found.counts[name] for name in ("correct", "wrong", "ambiguous", "empty")) == 4
    assert found.counts["by_relation"] == {
        "capital": {k: v for k, v in found.counts.items() if k != "by_relation"}
    }
    assert len(found.examples) == found.counts["correct"] + found.counts["wrong"]


def test_the_answer_span_is_the_cut_answer_and_ends_the_text() -> None:
    row = judge_answers(
        questions().head(1), [" Paris.\nThe capital of Italy is Rome."], "x"
    ).examples.iloc[0]
    assert row["text"][row["answer_start"] : row["answer_end"]] == row["answer"] == "Paris"
    assert row["text"] == "The capital of France is Paris"
    assert row["prompt"] == "The capital of France is"
    assert row["mode"] == "generated"
    assert list(row["gold"]) == ["Paris"]


def test_no_answer_at_all_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(
        UserError,
        match=r"data set x: none of 4 answers could be judged .*'empty': 4.*max_new_tokens",
    ):
        judge_answers(questions(), [""] * 4, "x")


def test_chosen_questions_are_spread_evenly_over_relations_and_keep_their_order() -> None:
    frame = pd.DataFrame({"relation": ["a"] * 50 + ["b"] * 3 + ["c"] * 20, "id": range(73)})
    chosen = choose_questions(frame, 23, seed=0)
    assert chosen["relation"].value_counts().to_dict() == {"a": 10, "c": 10, "b": 3}
    assert chosen["id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(chosen, choose_questions(frame, 23, seed=0))
    assert chosen["id"].tolist() != choose_questions(frame, 23, seed=1)["id"].tolist()
    assert choose_questions(frame, 100, seed=0) is frame


def test_every_answer_is_in_the_table_with_its_cluster_and_verdict() -> None:
    def said(text: str, *logprobs: float) -> Continuation:
        ends = np.linspace(0, len(text), len(logprobs) + 1).round().astype(int)[1:]
        return Continuation(text, tuple(ends.tolist()), logprobs)

    france, chad = questions().iloc[[0]], questions().iloc[[3]]
    table = sample_table(
        pd.concat([france, chad]),
        [said(" Paris.\n", -1.0, -2.0), said(" the N'Djamena", -0.5)],
        [
            said(" PARIS", -3.0),
            said(" Lyon", -4.0),
            said(" Paris or N'Djamena", -1.0, -1.0, -1.0),
            said(""),
            said(" N\u2019Djamena\n", -0.25, -0.25),
            said(" none", -1.0),
        ],
    )
    assert table["id"].tolist() == ["q0France"] * 4 + ["q0Chad"] * 4
    assert table["sample"].tolist() == [0, 1, 2, 3] * 2
    assert table["cluster"].tolist() == [0, 0, 1, 2, 0, 1, 0, 2]
    assert table["verdict"].tolist() == [
        "correct",
        "correct",
        "wrong",
        "ambiguous",
        "correct",
        "empty",
        "correct",
        "empty",
    ]
    assert table["correct"].tolist()[:3] == [True, True, False]
    assert table["correct"].isna().tolist() == [False, False, False, True, False, True, False, True]
    assert table["logprob_sum"].tolist() == [-3.0, -3.0, -4.0, -3.0, -0.5, 0.0, -0.5, -1.0]
    assert table["tokens"].tolist() == [2, 1, 1, 3, 1, 0, 2, 1]


def test_all_tokens_of_the_last_character_belong_to_an_answer(tokenizer: Any) -> None:
    none = torch.zeros(0, dtype=torch.bool)
    decoder = decoding._Decoder(tokenizer, 1.0, none, none, [])
    prompt, new, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("A:", " Caf\xe9", "\n")
    )
    assert tokenizer.decode(new[:-1]).endswith("\ufffd")  # the last character has two tokens
    found = decoding._continuation(decoder, prompt, new + after, [-1.0] * (len(new) + len(after)))
    assert found.ends[len(new) - 2 :] == (4, 5, 6)
    row = sample_table(questions().head(1), [found], []).iloc[0]
    assert (row["answer"], row["tokens"]) == ("Caf\xe9", len(new))
    assert row["logprob_sum"] == -len(new)


def test_clusters_do_not_know_the_gold_answers() -> None:
    same = [Continuation(text, (len(text),), (-1.0,)) for text in (" Burma", " Myanmar")]
    row = {"id": "q", "relation": "r", "gold": ["Myanmar", "Burma"], "arguable": []}
    asked = pd.DataFrame([row])
    table = sample_table(asked, same[:1], same[1:])
    assert table["correct"].tolist() == [True, True]
    assert table["cluster"].tolist() == [0, 1]


def test_the_script_writes_examples_and_counts_the_same_twice(
    tmp_path: Path, tokenizer: Any
) -> None:
    from extract import generate_answers
    from ghosttrack.settings import GenerationSettings

    small_models.save(small_models.make_model("gpt2"), tokenizer, tmp_path / "model")
    questions(3).to_parquet(tmp_path / "questions.parquet")
    for name in "xy":
        generate_answers.main(
            questions=tmp_path / "questions.parquet",
            weights=tmp_path / "model" / "model.safetensors",
            check=small_models.save_check(tmp_path),
            examples=tmp_path / f"{name}.parquet",
            labels=tmp_path / f"{name}.json",
            dataset="facts",
            batch=4,
            samples=tmp_path / f"{name}.samples.parquet",
            threads=1,
            seed=0,
            generation=GenerationSettings(max_new_tokens=5, questions=8, samples=2),
        )
    assert (tmp_path / "x.samples.parquet").read_bytes() == (
        tmp_path / "y.samples.parquet"
    ).read_bytes()
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
    samples = pd.read_parquet(tmp_path / "x.samples.parquet")
    assert len(samples) == 8 * 3
    first = samples[samples["sample"] == 0].set_index("id")
    assert first.loc[examples["id"], "answer"].tolist() == examples["answer"].tolist()
    assert (
        first.loc[examples["id"], "correct"].to_numpy(bool) == (examples["label"] == 0).to_numpy()
    ).all()
