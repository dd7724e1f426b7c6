"""A detector fitted on chat answers gives an answer with its question the score of the data set."""

import shutil
from pathlib import Path

import chat_models
import numpy as np
import pandas as pd
import pytest
import run_fakes
import small_models
from chat_models import FAMILIES

from ghosttrack import Detector, Text
from ghosttrack.errors import UserError
from ghosttrack.inputs import chat, models
from ghosttrack.runtime import files


@pytest.fixture(scope="module", params=["chatml", "mistral"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = chat_models.make_tokenizer(FAMILIES[request.param])
        patch.setattr(small_models, "make_tokenizer", lambda: tokenizer)
        run_fakes.make(folder)
    for name in ("facts", "others"):
        _ask_in_chat(folder, name)
        audit = run_fakes.text_only(name, mode="generated", control=name == "others")
        audit.to_csv(folder / "audits" / f"{name}.csv", index=False)
    run_fakes.save(folder)
    return folder


def _ask_in_chat(run: Path, name: str) -> None:
    """Make generated answers in the chat template of a data set's statements."""
    path = run / "datasets" / name / "examples.parquet"
    given, tokenizer = pd.read_parquet(path), models.load_tokenizer(run / "model")
    frame = chat.ask(given, [[f"{prompt}?"] for prompt in given["prompt"]], tokenizer)
    behind = chat.answer_lead(tokenizer) + frame["answer"]
    frame = frame.assign(
        question=given["prompt"] + "?", mode="generated", text=frame["prompt"] + behind
    )
    frame["answer_end"] = frame["text"].str.len()
    frame["answer_start"] = frame["answer_end"] - frame["answer"].str.len()
    frame.to_parquet(path)
    shutil.rmtree(run / "examples" / name)
    run_fakes.extract(run, name)


def test_an_answer_with_its_question_has_the_scores_of_the_data_set(run: Path) -> None:
    assert files.read_json(run / "detection" / "detector.json")["prompt"] == "chat"
    examples = pd.read_parquet(run / "datasets" / "others" / "examples.parquet")
    tokens = pd.read_parquet(run / "detection" / "token_scores.parquet")
    expected = tokens.loc[tokens["dataset"] == "others", "probe"].to_numpy()
    surprise = -pd.read_parquet(run / "examples" / "others" / "tokens.parquet")[
        "logprob"
    ].to_numpy()
    asked = [Text(row.answer, row.answer, question=row.question) for row in examples.itertuples()]
    found = Detector.load(run).score(asked)
    np.testing.assert_allclose(
        [token.probe for each in found for token in each.tokens], expected, atol=2e-3
    )
    np.testing.assert_allclose(
        [token.surprise for each in found for token in each.tokens], surprise, atol=2e-4
    )
    for each in found:
        assert (
            "".join(each.text[token.start : token.end] for token in each.tokens).strip()
            == each.text
        )


def test_texts_with_and_without_a_question_keep_their_order(run: Path) -> None:
    detector = Detector.load(run)
    texts = [
        Text("Q facts 3 is Paris."),
        Text("Ada", question="Who?"),
        Text("It is gold"),
        Text("79", question="It?"),
    ]
    together = detector.score(texts)
    alone = [detector.score([each])[0] for each in texts]
    assert [each.text for each in together] == [each.text for each in texts]
    for one, other in zip(together, alone, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-3)
        assert [(token.start, token.end) for token in one.tokens] == [
            (each.start, each.end) for each in other.tokens
        ]
    assert detector.score([Text("Ada", question="Q facts?")])[0].log_odds != together[1].log_odds


def test_a_context_is_the_beginning_of_the_user_s_message(run: Path) -> None:
    detector = Detector.load(run)
    beside, within, without = detector.score(
        [
            Text("Ada", question="Who?", context="It is so."),
            Text("Ada", question="It is so.\nWho?"),
            Text("Ada", question="Who?"),
        ]
    )
    assert beside.log_odds == within.log_odds != without.log_odds
    assert [(token.start, token.end) for token in beside.tokens] == [
        (token.start, token.end) for token in without.tokens
    ]


def test_a_question_for_a_detector_of_plain_texts_is_refused(tmp_path: Path) -> None:
    run_fakes.make(tmp_path)
    run_fakes.save(tmp_path)
    assert files.read_json(tmp_path / "detection" / "detector.json")["prompt"] == "plain"
    with pytest.raises(
        UserError, match=r"text 1: question: the detector of .* leave out the question"
    ):
        Detector.load(tmp_path).score([Text("Ada", question="Who?")])
