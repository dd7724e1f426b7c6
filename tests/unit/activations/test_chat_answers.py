"""Answers in a chat template: their ends, their token ids, and unchanged plain prompts."""

from pathlib import Path
from typing import Any

import chat_models
import numpy as np
import pandas as pd
import pytest
import small_models
import torch
from chat_models import FAMILIES

from extract import extract_examples, generate_answers
from fetch import fetch_questions
from ghosttrack.activations import example_tokens, p_true, pmi_baseline
from ghosttrack.activations.decoding import complete
from ghosttrack.activations.generation import judge_answers
from ghosttrack.errors import UserError
from ghosttrack.inputs import chat, datasets, models
from ghosttrack.report.explorer import texts
from ghosttrack.settings import DatasetSettings, GenerationSettings

ANSWERS = ["Paris", " Ada Lovelace", "São 79", "x"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(family: str) -> Any:
    return chat_models.make_tokenizer(FAMILIES[family])


def questions(tokenizer: Any) -> pd.DataFrame:
    """Four questions; one contains the text of a special token."""
    asked = ["Who wrote it?", "What is it?", f"Is {tokenizer.eos_token} gold?", "Is it 79?"]
    frame = pd.DataFrame(
        {
            "id": [f"q{number}" for number in range(4)],
            "group": asked,
            "relation": "r",
            "subject": "",
            "question": asked,
            "prompt": asked,
            "gold": [[answer.strip()] for answer in ANSWERS],
            "arguable": [[]] * 4,
        }
    )
    return chat.ask(frame, [["Who?", "Ada", question] for question in asked], tokenizer)


def examples(tokenizer: Any) -> pd.DataFrame:
    return judge_answers(questions(tokenizer), ANSWERS, "x").examples


def scripted(tokenizer: Any, prompt: list[int], script: list[int]) -> Any:
    """A model that writes the script after the prompt."""
    model = chat_models.make_model(tokenizer)
    own = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = own(self, *args, **kwargs)
        place = max(result.past_key_values.get_seq_length() - len(prompt), 0)
        result.logits[:, -1] = -10.0
        result.logits[:, -1, script[min(place, len(script) - 1)]] = 10.0
        return result

    model.forward = forward.__get__(model)
    return model


def test_an_answer_ends_with_its_turn_and_holds_no_token_of_the_template(
    tokenizer: Any, family: str
) -> None:
    prompt = chat.render(tokenizer, ["Who?"], "x").ids
    (said,) = chat.continuations(tokenizer, ["Ada it"])
    for name in {
        FAMILIES[family].closes,
        *FAMILIES[family].special,
        *FAMILIES[family].added,
        "</s>",
    }:
        end = tokenizer.convert_tokens_to_ids(name)
        model = scripted(tokenizer, prompt, [*said.ids, end, *said.ids])
        stops = chat.answer_ends(tokenizer, model.generation_config)
        (found,) = complete(
            model,
            tokenizer,
            [prompt],
            max_new_tokens=20,
            batch=1,
            dataset="x",
            stops=stops,
            limits=small_models.exact(4096),
        )
        assert found.text == "Ada it"
        assert found.ends[-1] == len("Ada it")
        assert len(found.logprobs) == len(said.ids) + 1


def test_a_special_token_ends_an_answer_to_a_plain_prompt_and_is_no_part_of_it(
    tokenizer: Any, family: str
) -> None:
    """Also one that is not the end-of-sequence token, as instruct models write them."""
    prompt = [
        models.separator(tokenizer),
        *tokenizer("Who?", add_special_tokens=False)["input_ids"],
    ]
    (said,) = chat.continuations(tokenizer, ["Ada it"])
    for name in {*FAMILIES[family].special, "<s>", "</s>"}:
        special = tokenizer.convert_tokens_to_ids(name)
        model = scripted(tokenizer, prompt, [*said.ids, special, *said.ids])
        (found,) = complete(
            model,
            tokenizer,
            ["Who?"],
            max_new_tokens=20,
            batch=1,
            dataset="x",
            limits=small_models.exact(4096),
        )
        assert found.text.strip() == "Ada it"
        assert len(found.logprobs) == len(said.ids) + 1


def test_the_model_answers_after_exactly_the_ids_of_the_template(tokenizer: Any) -> None:
    model, asked = chat_models.make_model(tokenizer), questions(tokenizer)
    stops = chat.answer_ends(tokenizer, model.generation_config)
    found = complete(
        model,
        tokenizer,
        asked["prompt_ids"].tolist(),
        max_new_tokens=4,
        batch=3,
        dataset="x",
        stops=stops,
        limits=small_models.exact(4096),
    )
    for one, ids in zip(found, asked["prompt_ids"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        assert one.logprobs[0] == pytest.approx(float(torch.log_softmax(logits, 0).max()), abs=1e-4)


def test_answers_are_encoded_after_exactly_the_ids_of_the_template(tokenizer: Any) -> None:
    frame = examples(tokenizer)
    assert len(frame) == len(ANSWERS)
    stops = set(chat.answer_ends(tokenizer, None))
    encoded = example_tokens.encode(frame, tokenizer, 1024, "x", positions="all")
    for one, prompt, text, answer in zip(
        encoded, frame["prompt_ids"], frame["text"], frame["answer"], strict=True
    ):
        ids = [*one.prefix.tolist(), *one.ids.tolist()]
        assert ids[: len(prompt)] == list(prompt)
        assert not set(ids[len(prompt) :]) & stops
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(one.ids[one.answer].tolist()).strip() == answer
        assert (one.read + one.shift).tolist() == list(range(1, len(ids) - len(prompt) + 1))


def test_pmi_pairs_have_exactly_the_ids_of_other_prompts(tokenizer: Any) -> None:
    frame = examples(tokenizer)
    pairs = pmi_baseline.choose_pairs(frame, 2, seed=0)
    every = pd.concat([frame, pairs], ignore_index=True)
    encoded = example_tokens.encode(every, tokenizer, 1024, "x")[len(frame) :]
    prompts = [tuple(ids) for ids in frame["prompt_ids"]]
    assert len(encoded) >= 2 * len(frame)
    for one, pair in zip(encoded, pairs.to_dict("records"), strict=True):
        ids = (*one.prefix.tolist(), *one.ids.tolist())
        assert any(ids[: len(prompt)] == prompt for prompt in prompts)
        assert tokenizer.decode(ids) == pair["text"]
        assert not set(one.ids[one.answer].tolist()) & set(chat.answer_ends(tokenizer, None))


def test_the_explorer_finds_an_answer_s_tokens_in_its_text(tokenizer: Any) -> None:
    frame = examples(tokenizer)
    encoded = example_tokens.encode(frame, tokenizer, 1024, "x")
    for one, offsets, text, answer in zip(
        encoded,
        texts.offsets_of_examples(frame, tokenizer),
        frame["text"],
        frame["answer"],
        strict=True,
    ):
        positions = (one.answer + one.shift).tolist()
        texts.require_positions(positions, offsets, "x")
        parts = texts.part(text, [offsets[position - 1] for position in positions])
        assert "".join(parts.pieces).strip() == answer
        assert parts.before + "".join(parts.pieces) + parts.after == text


def test_answers_in_chat_beside_given_texts_are_found_in_their_own_set(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "examples.parquet"
    examples(tokenizer).to_parquet(path)
    asked, plain = (
        pd.read_parquet(path),
        pd.DataFrame({"text": ["It is Ada."], "prompt": ["It is"]}),
    )
    every = pd.concat(
        [asked.assign(dataset="asked"), plain.assign(dataset="plain")], ignore_index=True
    )
    parts = {
        str(name): texts.offsets_of_examples(part, tokenizer)
        for name, part in every.groupby("dataset")
    }
    assert parts["asked"] == texts.offsets_of_examples(asked, tokenizer)
    assert parts["plain"] == texts.offsets_of(["It is Ada."], tokenizer)


def test_p_true_uses_the_chat_template(tokenizer: Any) -> None:
    frame, model = examples(tokenizer), chat_models.make_model(tokenizer)
    found = p_true.measure(model, tokenizer, frame, limit=1024, batch=2, packed=1024)
    lead = chat.answer_lead(tokenizer)
    words = [each.ids for each in chat.continuations(tokenizer, [f"{lead}True", f"{lead}False"])]
    place = next(
        place for place, (one, other) in enumerate(zip(*words, strict=False)) if one != other
    )
    lines = [
        line.rsplit(" ", 1) for line in p_true.demonstrations("r", with_question=True).splitlines()
    ]
    earlier = [turn for line in lines for turn in line]
    for row, text in enumerate(p_true.shown_texts(frame)):
        odds = []
        for shown in (text, p_true.NOTHING):
            prompt = chat.render(tokenizer, [*earlier, f"{shown} {p_true.ASK}"], "x")
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt.ids, *words[0][:place]]])).logits[0, -1]
            odds.append(float(logits[words[0][place]] - logits[words[1][place]]))
        assert found[row] == pytest.approx(odds[0] - odds[1], abs=1e-4)


def fetched(folder: Path, template: str | None) -> Path:
    """A small model with a chat template in the folder of a run; returns its weights file."""
    tokenizer = chat_models.make_tokenizer(FAMILIES["chatml"])
    tokenizer.chat_template = template
    model = chat_models.make_model(tokenizer, 4096)
    small_models.save(model, tokenizer, folder)
    return folder / "model.safetensors"


def answered(folder: Path, weights: Path, prompt: str, seed: int = 0) -> Path:
    """Run the jobs from the questions to the activations of the examples."""
    folder.mkdir(parents=True, exist_ok=True)
    generation = GenerationSettings(prompt=prompt, max_new_tokens=4, questions=8, samples=1)
    fetch_questions.main(
        tokenizer=[weights.with_name("tokenizer.json")] if prompt == "chat" else [],
        questions=folder / "questions.parquet",
        dataset="facts",
        model="tiny",
        generation=generation,
        seed=seed,
        dataset_settings=DatasetSettings(source="facts", mode="generated"),
    )
    generate_answers.main(
        questions=folder / "questions.parquet",
        weights=weights,
        check=small_models.save_check(folder),
        examples=folder / "examples.parquet",
        labels=folder / "labels.json",
        samples=folder / "samples.parquet",
        generation=generation,
        dataset="facts",
        batch=4,
        threads=1,
        seed=seed,
    )
    extract_examples.main(
        examples=folder / "examples.parquet",
        weights=weights,
        check=folder / "model_check.json",
        stores=[folder / "layer_01.zarr"],
        manifests=[folder / "layer_01.json"],
        embedding=folder / "embedding.zarr",
        embedding_manifest=folder / "embedding.json",
        counterfactual_mean=folder / "background.npz",
        prompt_states=folder / "prompts.npz",
        tokens=folder / "tokens.parquet",
        outputs=folder / "outputs.parquet",
        site="resid_post",
        positions="answer",
        prompts=2,
        whether_true=True,
        dataset="facts",
        batch=4,
        threads=1,
        seed=seed,
    )
    return folder


def test_a_run_in_chat_reads_the_template_s_ids_from_the_questions_to_the_activations(
    tmp_path: Path,
) -> None:
    weights = fetched(tmp_path / "model", chat_models.CHATML)
    folder = answered(tmp_path / "chat", weights, "chat")
    tokenizer = models.load_tokenizer(weights.parent)
    asked = pd.read_parquet(folder / "questions.parquet")
    generated = DatasetSettings(source="facts", mode="generated")
    turns = datasets.load_questions(generated, 0, 8, chat=True)["turns"]
    for ids, text, own, question in zip(
        asked["prompt_ids"], asked["prompt"], turns, asked["question"], strict=True
    ):
        messages = [
            {"role": ("user", "assistant")[place % 2], "content": turn}
            for place, turn in enumerate(own)
        ]
        assert messages[-1]["content"] == question
        assert list(ids) == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert text == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    found, tokens = (
        pd.read_parquet(folder / "examples.parquet"),
        pd.read_parquet(folder / "tokens.parquet"),
    )
    outputs = pd.read_parquet(folder / "outputs.parquet")
    special = set(tokenizer.all_special_ids)
    assert not special & set(tokens["token"])
    assert not any(
        name in answer for name in tokenizer.all_special_tokens for answer in found["answer"]
    )
    for prompt, text, start, answer in (
        found[["prompt", "text", "answer_start", "answer"]].to_numpy().tolist()
    ):
        assert text.startswith(prompt)
        assert text[start:] == answer
    model = models.load_model(weights.parent)
    first = tokens.iloc[outputs["row_start"]]["token"].tolist()
    for ids, token, expected in zip(
        found["prompt_ids"], first, outputs["logprob_first"], strict=True
    ):
        with torch.inference_mode():
            logits = model(torch.tensor([ids.tolist()])).logits[0, -1]
        assert expected == pytest.approx(float(torch.log_softmax(logits, 0)[token]), abs=1e-4)
    assert np.isfinite(outputs["p_true"]).all()


def test_greedy_and_sampled_answers_follow_the_template_s_ids_and_end_with_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = fetched(tmp_path / "model", chat_models.CHATML)
    calls: list[tuple[list[list[int]], list[int] | None]] = []

    def noted(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        calls.append(([list(prompt) for prompt in prompts], options["stops"]))
        return complete(model, tokenizer, prompts, **options)

    monkeypatch.setattr(generate_answers, "complete", noted)
    folder = answered(tmp_path / "chat", weights, "chat")
    ids = [list(each) for each in pd.read_parquet(folder / "questions.parquet")["prompt_ids"]]
    assert [prompts for prompts, _ in calls] == [ids, ids]
    tokenizer = models.load_tokenizer(weights.parent)
    for _, stops in calls:
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops or [])


def test_a_model_without_a_template_is_refused_before_its_first_answer(tmp_path: Path) -> None:
    weights = fetched(tmp_path / "model", None)
    with pytest.raises(
        UserError, match=r"tokenizer of tiny has none; set generation\.prompt: plain"
    ):
        answered(tmp_path / "chat", weights, "chat")
    assert not (tmp_path / "chat" / "questions.parquet").exists()


def test_a_plain_run_is_the_same_whether_or_not_its_tokenizer_has_a_template(
    tmp_path: Path,
) -> None:
    folders = [
        answered(tmp_path / name, fetched(tmp_path / name / "model", template), "plain")
        for name, template in (("without", None), ("with", chat_models.CHATML))
    ]
    for name in ("questions", "examples", "samples", "tokens", "outputs"):
        first, second = (pd.read_parquet(folder / f"{name}.parquet") for folder in folders)
        pd.testing.assert_frame_equal(first, second)
        assert "prompt_ids" not in first
    assert (folders[0] / "questions.parquet").read_bytes() == (
        folders[1] / "questions.parquet"
    ).read_bytes()
    assert (folders[0] / "examples.parquet").read_bytes() == (
        folders[1] / "examples.parquet"
    ).read_bytes()
