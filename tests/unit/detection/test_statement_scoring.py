"""Whole statements of users: read as the training statements were, judged, or abstained on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import run_fakes
import small_models
import torch

from ghosttrack import Text
from ghosttrack.activations import pooled_statements
from ghosttrack.activations.pooled_statements import TokenScore
from ghosttrack.activations.statement_reading import is_statement, pool, token_scores
from ghosttrack.api import Detector
from ghosttrack.detection import saved_statements
from ghosttrack.detection.statement_scoring import Opinion, verdict_on_answer, verdict_on_statement
from ghosttrack.errors import UserError

UNSURE, UNLIKE = "abstain: unsure", "abstain: unlike anything it was tested on"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run") / "results" / "fake"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_models, "CONTEXT", 512)  # the statements take more than 64 tokens
        run_fakes.make(made)
    run_fakes.save(made)
    run_fakes.with_statements(made)
    return made


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run)


def test_a_whole_statement_is_read_as_in_training_in_any_company(
    run: Path, detector: Detector
) -> None:
    frame = pd.read_parquet(run / "statements" / "statements.parquet")
    read, about = pooled_statements.load(
        run / "statements" / "pooled.safetensors",
        run / "statements" / "pooled.json",
        run / "statements" / "statements.parquet",
    )
    assert about["layers"] == run_fakes.LAYERS
    saved = saved_statements.load(run / "detection").detector
    assert saved is not None
    expected = saved.judge(pooled_statements.flat(read.states), read.outputs)
    chosen = [0, 40, 90]
    texts = [frame["text"][row] for row in chosen]
    alone = [detector.score([text])[0] for text in texts]
    for together, one, row in zip(detector.score(texts), alone, chosen, strict=True):
        assert together.probability == pytest.approx(one.probability, abs=2e-4)
        assert together.probability == pytest.approx(expected.probability[row], abs=2e-2)
        assert (together.start, together.end) == (0, len(together.text) - 1)
        assert not together.reasons
        assert together.unexplained == 1


def test_questions_and_single_words_get_no_verdict(detector: Detector) -> None:
    nothing_stated = ["Rome", "Rome.", "\u201cGold!\u201d", "3.14", "...", "Is a dog a mammal?"]
    nothing_stated += [
        "Is it (the dog) a mammal?)",
        "\u6771\u4eac\u306f\u9996\u90fd\u3067\u3059\u304b\uff1f",
    ]
    assert {each.verdict for each in detector.score(nothing_stated)} == {UNLIKE}
    stated = [
        "Rome fell.",
        "A dog is a mammal!",
        "\u6771\u4eac\u306f\u9996\u90fd\u3067\u3059\u3002",
        "Dogs? No, cats.",
    ]
    assert not any(map(is_statement, nothing_stated))
    assert all(map(is_statement, stated))


def test_a_missing_full_stop_and_outer_spaces_change_nothing(detector: Detector) -> None:
    (plain, bare) = detector.score(["A dog is a mammal.", "  A dog is a mammal "])
    assert bare.probability == pytest.approx(plain.probability, abs=2e-4)
    assert bare.text[bare.start : bare.end] == "A dog is a mammal"


def test_a_confidence_of_a_half_always_decides(detector: Detector) -> None:
    texts = ["A dog is a mammal.", "zzz 9 9 9 \u2603 \u2603 \u2603 qqq"]
    assert all(
        each.verdict in ("true", "hallucinated") for each in detector.score(texts, confidence=0.5)
    )


def test_a_verdict_needs_the_reliability_that_was_asked_for() -> None:
    sure = Opinion(0.95, 3.0, 0.8, unlike=False, kind="affirmed")
    assert verdict_on_statement(sure, 0.75) == "hallucinated"
    assert verdict_on_statement(sure, 0.9) == UNSURE
    assert verdict_on_statement(sure._replace(probability=0.05), 0.75) == "true"
    assert verdict_on_statement(sure._replace(unlike=True, reliability=0.0), 0.75) == UNLIKE


def test_an_answer_is_judged_only_at_the_end_of_an_affirmed_statement() -> None:
    like = Opinion(0.5, 0.0, 0.0, unlike=False, kind="affirmed")
    assert verdict_on_answer(0.9, 0.75, like, at_end=True) == "hallucinated"
    assert verdict_on_answer(0.1, 0.75, like, at_end=True) == "true"
    assert verdict_on_answer(0.6, 0.75, like, at_end=True) == UNSURE
    for opinion, at_end in (
        (like, False),
        (like._replace(kind="negated"), True),
        (like._replace(unlike=True), True),
        (None, True),
    ):
        assert verdict_on_answer(0.99, 0.75, opinion, at_end=at_end) == UNLIKE
        assert verdict_on_answer(0.99, 0.5, opinion, at_end=at_end) == "hallucinated"


def test_a_changed_file_of_pooled_statements_is_refused(run: Path, tmp_path: Path) -> None:
    names = ("pooled.safetensors", "pooled.json", "statements.parquet")
    for name in names:
        (tmp_path / name).write_bytes((run / "statements" / name).read_bytes())
    pooled, manifest, statements = (tmp_path / name for name in names)
    whole = pooled.read_bytes()
    pooled.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file"):
        pooled_statements.load(pooled, manifest, statements)
    pooled.write_bytes(whole)
    statements.write_bytes(statements.read_bytes() + b"x")
    with pytest.raises(UserError, match="is not the file"):
        pooled_statements.load(pooled, manifest, statements)


def test_stored_states_keep_half_precision_at_any_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(5, 2, 3, 4)).astype(np.float32)
    states[:, 1] *= 1e6
    given = pooled_statements.PooledTexts(states, rng.normal(size=(5, 2)))
    statements = tmp_path / "s"
    statements.write_bytes(b"texts")
    paths = tmp_path / "a", tmp_path / "b"
    from ghosttrack.runtime import files

    pooled_statements.write(given, *paths, {"statements_sha256": files.sha256_file(statements)})
    read, _ = pooled_statements.load(*paths, statements)
    error = np.abs(read.states - states).max(axis=(0, 2, 3))
    assert (error < 1e-3 * np.abs(states).max(axis=(0, 2, 3))).all()
    assert (read.outputs == given.outputs).all()


PARTS = ["A dog is a mammal.", "Pi is 3.14.", "Rome is the capital of Chad."]


def test_every_sentence_is_judged_as_it_is_alone(detector: Detector) -> None:
    text = " ".join(PARTS)
    (found,) = detector.score([text], confidence=0.5)
    alone = detector.score(PARTS, confidence=0.5)
    assert [text[each.start : each.end] for each in found.sentences] == [
        part[:-1] for part in PARTS
    ]
    for sentence, single in zip(found.sentences, alone, strict=True):
        assert sentence.probability == pytest.approx(single.probability, abs=2e-4)
        assert sentence.verdict == single.verdict
    assert (found.start, found.end) == (0, len(text) - 1)
    worst = max(found.sentences, key=lambda each: each.probability)
    assert (found.probability, found.verdict) == (worst.probability, worst.verdict)


def test_tokens_of_a_whole_text_are_those_of_its_sentences(detector: Detector) -> None:
    text = " ".join(PARTS)
    (found,) = detector.score([text])
    alone = detector.score(PARTS)
    np.testing.assert_allclose(
        [[token.probe, token.surprise] for token in found.tokens],
        [[token.probe, token.surprise] for each in alone for token in each.tokens],
        atol=5e-4,
    )
    assert [text[token.start : token.end] for token in found.tokens] == [
        each.text[token.start : token.end] for each in alone for token in each.tokens
    ]
    assert [text[each.window_start : each.window_end].rstrip() for each in found.sentences] == PARTS


@pytest.mark.parametrize("text", ["  A dog is a mammal ", "A dog is a mammal.", "नमस्ते दुनिया।"])
def test_token_scores_of_a_statement_have_the_mean_that_its_detector_scores(
    run: Path, detector: Detector, text: str
) -> None:
    saved = saved_statements.load(run / "detection").detector
    assert saved is not None
    assert detector._judge._reader is not None
    read, (tokens,) = detector._judge._reader.read([text])
    scores = saved.scores(pooled_statements.flat(read.states), read.outputs)
    assert tokens.score.mean() == pytest.approx(scores.base[0, 0], abs=1e-3)
    (found,) = detector.score([text])
    in_text = tokens.score[: len(found.tokens)] * scores.polarity[0]
    np.testing.assert_allclose([token.probe for token in found.tokens], in_text, atol=1e-3)
    assert (found.tokens[0].start, found.tokens[-1].end) == (found.start, found.end)
    assert found.sentences[0].output == pytest.approx(
        scores.base[0, -1] * scores.polarity[0], abs=1e-3
    )


def test_a_layer_ignores_its_attention_sinks_in_the_scores_of_tokens() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    sink = x.clone()
    sink[0] *= 1000
    weight = np.arange(8.0).reshape(2, 4)
    by = TokenScore(weight, np.array([0.5, -0.25]), 2.0)
    scores = token_scores([x, sink], by)
    pooled = [pool(layer)[0].astype(np.float64) for layer in (x, sink)]
    expected = 2.0 + sum(
        mean @ one - shift for mean, one, shift in zip(pooled, weight, by.shift, strict=True)
    )
    assert scores.mean() == pytest.approx(expected, abs=1e-4)
    assert scores[0] == pytest.approx(2.0 + x[0].numpy() @ weight[0] - 0.5, abs=1e-4)


def test_a_context_changes_nothing_without_an_answer(detector: Detector) -> None:
    text = " ".join(PARTS)
    plain, behind = (
        detector.score([Text(text, context=context)])[0]
        for context in ("", "word " * 2 * detector._scorer.limit)
    )
    assert plain == behind


def test_a_rule_behind_the_last_sentence_is_no_part_of_it() -> None:
    given: Any = SimpleNamespace(_scorer=SimpleNamespace(limit=512), _is_whole=lambda _: True)
    for text in ("Rome is in Italy.\n\n---\n", "Rome is in Italy. ...", "Rome is in Italy.\n***"):
        (span,) = Detector._spans(given, Text(text))
        assert text[span.first : span.stop] == "Rome is in Italy."


def test_the_score_of_a_sentence_does_not_depend_on_other_texts(detector: Detector) -> None:
    text = " ".join(PARTS)
    for given in (Text(text), Text(text, context="Oslo is in Norway. Rome is in Italy.")):
        (alone,) = detector.score([given])
        among = detector.score([f"{PARTS[0]} Pi", given, "Pi is 3"])[1]
        assert [each[4:7] for each in among.sentences] == [
            pytest.approx(each[4:7], abs=3e-4) for each in alone.sentences
        ]


def test_a_context_without_an_answer_is_noted_once(
    detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    context = "Oslo is in Norway."
    detector.score([Text("Rome is in Italy."), Text("Pi is 3.", "3", context=context)])
    note = "a context is not read for texts without `answer`"
    assert not any(note in message for message in caplog.messages)
    detector.score([Text(PARTS[0], context=context), *[Text(PARTS[1], context=context)] * 20])
    assert sum(note in message for message in caplog.messages) == 1


def test_a_text_longer_than_the_model_reads_is_judged_in_windows(detector: Detector) -> None:
    limit = detector._scorer.limit
    count = limit // 3
    long = " ".join(f"Pi number {number} is Paris." for number in range(count))
    (found,) = detector.score([long])
    assert [long[each.start : each.end] for each in found.sentences] == [
        f"Pi number {number} is Paris" for number in range(count)
    ]
    starts = [each.window_start for each in found.sentences]
    assert starts[0] == 0
    assert starts[-1] > 0
    assert starts == sorted(starts)
    for each in found.sentences:
        assert each.window_start <= each.start < each.end <= each.window_end
    (answered,) = detector.score([Text(f"{long} Rome is Ada 79.", "Ada 79")])
    assert answered.text[answered.start : answered.end] == "Ada 79"
    assert 0 < answered.sentences[0].window_start < answered.start
    (parts,) = detector.score(["word " * (2 * limit)])
    assert len(parts.sentences) > 1
    spans = [(each.start, each.end) for each in parts.sentences]
    assert spans == sorted(spans)
    assert " ".join(parts.text[start:end] for start, end in spans).split() == parts.text.split()


def test_one_hallucinated_sentence_makes_the_text_hallucinated() -> None:
    from ghosttrack.detection.scored_texts import ScoredSentence, decisive

    def sentence(probability: float, verdict: str) -> ScoredSentence:
        return ScoredSentence(0, 1, 0, 1, probability, 0.0, 0.0, verdict, [])

    false, true = sentence(0.9, "hallucinated"), sentence(0.1, "true")
    unlike, unsure = sentence(0.99, UNLIKE), sentence(0.4, UNSURE)
    assert decisive([true, unlike, false, sentence(0.8, "hallucinated")]) is false
    assert decisive([true, unsure, unlike]) is unlike
    assert decisive([true, unsure]) is unsure
    assert decisive([sentence(0.05, "true"), true]) is true


def test_the_opinion_on_an_answer_is_that_on_its_sentence(detector: Detector) -> None:
    rows = [
        (
            Text("Pi is 3. A dog is a mammal. Go.", "mammal"),
            detector._spans(Text("Pi is 3. A dog is a mammal. Go.", "mammal"))[0],
        )
    ]
    (opinion,) = detector._opinions(rows, 0.75)
    (alone,) = detector.score(["A dog is a mammal."])
    assert opinion is not None
    assert opinion.probability == pytest.approx(alone.probability, abs=2e-4)


def test_words_of_any_script_are_whole_in_a_scored_text(detector: Detector) -> None:
    text = "नमस्ते दुनिया cafe\u0301 3.14 东京."
    (found,) = detector.score([text])
    words = [text[word.start : word.end] for word in found.words]
    assert words == ["नमस्ते", "दुनिया", "cafe\u0301", "3.14", "东", "京"]
    assert sum(word.surprise for word in found.words) == pytest.approx(
        sum(token.surprise for token in found.tokens), abs=0.01
    )
