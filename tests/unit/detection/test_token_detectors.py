"""Token detectors: exact folds, planted signals that are found, planted leaks that are caught."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ghosttrack import statistics
from ghosttrack.detection import controls, fold_ridge, splits, token_features
from ghosttrack.detection import token_detectors as detectors
from ghosttrack.detection.representations import context_support
from ghosttrack.errors import UserError
from ghosttrack.evaluation import token_tables
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import auroc, average_precision, bootstrap_auroc

FOLDS, ANSWERS, WORDS = 5, 120, 12


@pytest.fixture(autouse=True)
def _few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_features, "BUCKETS", 64)


def problem(rows: int = 400, width: int = 7) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, width)) * [1, 5, 0.1, 1, 2, 0, 1] + 3
    y = (x[:, 0] + generator.normal(size=rows) > 3).astype(np.int64)
    return x, y, generator.integers(FOLDS, size=rows)


def refit(x: Any, y: Any, training: Any, strength: float) -> Any:
    """Reference: standardise, and solve the ridge regression with an intercept."""
    mean, scale = x[training].mean(axis=0), x[training].std(axis=0)
    z = (x - mean) / np.where(scale > 1e-6, scale, np.inf)
    known, rate = z[training], y[training].mean()
    ridged = known.T @ known / len(known) + strength * np.eye(x.shape[1])
    weights = np.linalg.solve(ridged, known.T @ (y[training] - rate) / len(known))
    return z @ weights + rate


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_scores_are_those_of_fits_without_the_folds(form: Any) -> None:
    x, y, fold = problem()
    found = fold_ridge.leave_out(form(x), y, fold, [0.1])
    for outer in range(FOLDS):
        test = fold == outer
        np.testing.assert_allclose(
            found.test[test], refit(x, y, ~test, 0.1)[test], atol=1e-8, rtol=1e-6
        )
        for inner in set(range(FOLDS)) - {outer}:
            rows = fold == inner
            expected = refit(x, y, ~test & ~rows, 0.1)[rows]
            np.testing.assert_allclose(found.train[outer][rows], expected, atol=1e-8, rtol=1e-6)
    same = fold_ridge.leave_out_by_fold(lambda _: x, y, fold, [0.1])
    np.testing.assert_allclose(same.train, found.train, atol=1e-8)


def test_the_strength_is_the_best_of_the_training_folds() -> None:
    x, y, fold = problem()
    found = fold_ridge.leave_out(x, y, fold)
    for outer in range(FOLDS):
        known = fold != outer
        by_strength = {
            strength: auroc(
                y[known], fold_ridge.leave_out(x, y, fold, [strength]).train[outer][known]
            )
            for strength in fold_ridge.STRENGTHS
        }
        assert found.inner_auroc[outer] == max(by_strength.values())
        assert by_strength[found.strength[outer]] == max(by_strength.values())


def screened(x: Any, y: Any, fold: Any, widest: int) -> tuple[list[tuple[int, ...]], Any]:
    """The fits, and the columns of each, ranked one column at a time."""
    fits: list[tuple[int, ...]] = [(a,) for a in range(FOLDS)]
    fits += [(a, b) for a in range(FOLDS) for b in range(a + 1, FOLDS)]
    ranked = []
    for without in fits:
        rows = ~np.isin(fold, without)
        with np.errstate(invalid="ignore"):
            found = [abs(np.corrcoef(column[rows], y[rows])[0, 1]) for column in x.T]
        ranked.append(np.argsort(-np.nan_to_num(found), kind="stable"))
    size = max(
        size for size in range(x.shape[1]) if len({c for r in ranked for c in r[:size]}) <= widest
    )
    return fits, [np.sort(order[:size]) for order in ranked]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_each_fit_has_the_columns_that_correlate_in_its_own_rows(form: Any) -> None:
    _, y, fold = problem()
    x = np.random.default_rng(1).normal(size=(len(y), 60)).astype(np.float32)
    x[:, 7] += y
    x[:, 9] = 3.0
    found = fold_ridge.leave_out(form(x), y, fold, [0.1], widest=25)
    fits, columns = screened(x.astype(np.float64), y, fold, 25)
    assert 3 < len(columns[0]) < 25
    for without, chosen in zip(fits, columns, strict=True):
        assert 7 in chosen
        expected = refit(x[:, chosen].astype(np.float64), y, ~np.isin(fold, without), 0.1)
        for outer, inner in (without, without[::-1]) if len(without) == 2 else ():
            rows = fold == inner
            np.testing.assert_allclose(found.train[outer][rows], expected[rows], atol=1e-5)
        if len(without) == 1:
            rows = fold == without[0]
            np.testing.assert_allclose(found.test[rows], expected[rows], atol=1e-5)


def test_columns_chosen_by_the_label_of_noise_gain_nothing() -> None:
    generator = np.random.default_rng(2)
    y, fold = generator.integers(2, size=800), generator.integers(FOLDS, size=800)
    x = generator.normal(size=(800, 2000)).astype(np.float32)
    found = fold_ridge.leave_out(x, y, fold, widest=100)
    assert auroc(y, found.test) < 0.56
    assert (found.inner_auroc < 0.56).all()


def test_few_columns_are_all_used() -> None:
    x, y, fold = problem()
    found, every = (fold_ridge.leave_out(x, y, fold, widest=widest) for widest in (7, None))
    np.testing.assert_array_equal(found.train, every.train)


class Planted(NamedTuple):
    examples: pd.DataFrame
    tokens: pd.DataFrame
    audited: pd.DataFrame
    without: pd.DataFrame


def planted(hallucinated: Any, seed: int = 0) -> Planted:
    """Answers of words, one token each, where `hallucinated` (answers, words) marks tokens."""
    generator = np.random.default_rng(seed)
    vocabulary = [f"word{number}" for number in range(50)]
    examples, tokens = [], []
    for number in range(ANSWERS):
        words = [str(word) for word in generator.choice(vocabulary, WORDS)]
        answer, at, spans = " ".join(words), 0, []
        for place, word in enumerate(words):
            if hallucinated[number, place]:
                spans.append({"start": at, "end": at + len(word), "probability": 1.0})
            tokens.append(
                {
                    "example": number,
                    "position": place + 1,
                    "token": vocabulary.index(word),
                    "start": at - (place > 0),
                    "end": at + len(word),
                    "span": float(hallucinated[number, place]),
                    **{name: generator.normal() for name in ("logprob", "entropy", "margin")},
                    "rank": int(generator.integers(50)),
                }
            )
            at += len(word) + 1
        examples.append(
            {
                "id": f"a{number}",
                "answer": answer,
                "spans": spans,
                "context": " ".join(map(str, generator.choice(vocabulary, 30))),
                "generator": "xyz"[number % 3],
            }
        )
    table = pd.DataFrame(tokens)
    return Planted(
        pd.DataFrame(examples),
        table,
        pd.DataFrame(
            {
                "id": [f"a{number}" for number in range(ANSWERS)],
                "score": "text_only",
                "group": [f"g{number // 2}" for number in range(ANSWERS)],
                "fold": [number // 2 % FOLDS for number in range(ANSWERS)],
            }
        ),
        table[["example", "position", "token"]].assign(logprob=generator.normal(size=len(table))),
    )


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(ANSWERS * WORDS, 8)).astype(np.float32)


def evaluate(data: Planted, signal: Any, ratios: Any = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics by score, and claims by name, with activations of two layers."""
    inputs = detectors.read_inputs(
        "x",
        data.examples,
        data.tokens,
        data.audited,
        data.without,
        None if ratios is None else lambda _: ratios,
    )
    features = sparse.csr_array(np.maximum(signal, 0))
    layers = {
        3: lambda: (noise(1), sparse.csr_array(np.maximum(noise(2), 0))),
        7: lambda: (signal, features),
    }
    trained = detectors.train(inputs, layers)
    metrics, claims = token_tables.tables(
        trained.scores.assign(dataset="x"),
        trained.choices.assign(dataset="x"),
        EvaluationSettings(bootstrap=200, minimum_groups=10),
        0,
    )
    if (trained.choices["score"] == detectors.RAW).any() and signal[0, 0] > 50:
        assert set(trained.choices.query("score == 'token_raw_probe'")["layer"]) == {7}
    return metrics.set_index("score"), claims.set_index("claim")


def test_a_planted_signal_in_the_activations_is_found_and_established() -> None:
    marks = np.random.default_rng(3).random((ANSWERS, WORDS)) < 0.2
    signal = noise(4)
    signal[:, 2] += 3 * marks.ravel()
    metrics, claims = evaluate(planted(marks), signal)
    assert metrics.loc["token_raw_probe", "auroc"] > 0.95
    assert metrics.loc["token_detector", "auroc"] > 0.95
    assert metrics.loc["token_detector", "span_f1"] > 0.75
    assert (metrics.loc[["token_position", "token_words", "token_copy"], "auroc"] < 0.6).all()
    assert claims.loc["activations add to all token controls together", "verdict"] == "established"
    assert (
        claims.loc["the token detector beats its best single control", "verdict"] == "established"
    )


def test_a_planted_leak_of_the_position_is_caught_by_its_control() -> None:
    marks = np.zeros((ANSWERS, WORDS), dtype=bool)
    marks[:, 9:] = np.random.default_rng(5).random((ANSWERS, 3)) < 0.8
    place = np.tile(np.arange(WORDS), ANSWERS)
    signal = noise(6)
    signal[:, 2] += place >= 9  # the activations know the position, and nothing else
    signal[:, 3] += place
    metrics, claims = evaluate(planted(marks), signal)
    assert metrics.loc["token_raw_probe", "auroc"] > 0.8
    assert metrics.loc["token_position", "auroc"] > 0.9
    claim = claims.loc["the token probe on raw activations beats the best single control"]
    assert (claim["verdict"], claim["control"]) in (
        ("artefact", "token_position"),
        ("artefact", "token_controls"),
    )
    assert "token_position" in claim["reason"]


def test_a_generator_that_hallucinates_is_caught_by_its_name() -> None:
    marks = np.random.default_rng(7).random((ANSWERS, WORDS)) < 0.4
    writer = np.arange(ANSWERS) % 3
    marks[writer != 1] = False
    signal = noise(8)
    signal[:, 0] += 4 * np.repeat(writer == 1, WORDS)
    metrics, claims = evaluate(planted(marks), signal)
    assert metrics.loc["token_raw_probe", "answer_auroc"] > 0.9
    assert metrics.loc["token_generator", "answer_auroc"] > 0.95
    assert set(claims["verdict"]) <= {"artefact", "not established"}


def test_noise_is_not_established() -> None:
    for seed in range(8):
        marks = np.random.default_rng(seed).random((ANSWERS, WORDS)) < 0.2
        _, claims = evaluate(planted(marks, seed), noise(seed + 10))
        assert "established" not in set(claims["verdict"])


def test_support_is_the_gain_of_log_probability_by_the_context() -> None:
    data = planted(np.random.default_rng(9).random((ANSWERS, WORDS)) < 0.2)
    gain = 3.0 * (data.tokens["span"] < 0.5)
    data = data._replace(without=data.without.assign(logprob=data.tokens["logprob"] - gain))
    metrics, _ = evaluate(data, noise(11))
    assert metrics.loc["token_support", "auroc"] > 0.99
    assert metrics.loc["token_logprob", "auroc"] < 0.6


def test_attention_to_the_context_is_a_control() -> None:
    marks = np.random.default_rng(12).random((ANSWERS, WORDS)) < 0.2
    data = planted(marks)
    ratios = np.random.default_rng(13).random((ANSWERS * WORDS, 4)).astype(np.float16)
    ratios[:, 1] -= marks.ravel()
    signal = noise(14)
    signal[:, 0] += 2 * marks.ravel()
    metrics, claims = evaluate(data, signal, ratios)
    assert metrics.loc["token_lookback", "auroc"] > 0.95
    assert metrics.loc["token_lookback", "family"] == "attention"
    claim = claims.loc["the token probe on raw activations beats the best single control"]
    assert (claim["control"], claim["verdict"]) == ("token_lookback", "not established")


def test_only_the_answer_tokens_have_attention() -> None:
    data = planted(np.random.default_rng(15).random((ANSWERS, WORDS)) < 0.2)
    first = data.tokens["position"] == 1
    table = data.tokens.assign(span=data.tokens["span"].where(~first, np.nan), start=0)
    ratios = np.arange((~first).sum(), dtype=np.float16)[:, None]
    inputs = detectors.read_inputs("x", data.examples, table, data.audited, None, lambda _: ratios)
    np.testing.assert_array_equal(inputs.lookback, ratios)
    inputs = detectors.read_inputs(
        "x", data.examples, table, data.audited.iloc[2:], None, lambda _: ratios
    )
    np.testing.assert_array_equal(inputs.lookback, ratios[2 * (WORDS - 1) :])
    none = detectors.read_inputs(
        "x", data.examples, table, data.audited, None, lambda _: ratios[:, :0]
    )
    assert none.lookback is None


def test_copied_words_are_known_with_the_length_of_their_sequence() -> None:
    answer, context = "The big Fox ate 79 hens", "a fox ate the hens; big fox ate"
    words = [(0, 3), (4, 7), (8, 11), (12, 15), (16, 18), (19, 23)]
    starts, ends = np.array(words).T
    found = token_features.copy(np.zeros(6, dtype=np.int64), starts, ends, [answer], [context])
    assert found[:, 0].tolist() == [1, 1, 1, 1, 0, 1]
    assert found[:, 1].tolist() == [1, 3, 3, 3, 0, 1]
    assert found[:, 2].tolist() == [0, 0, 0, 0, 1, 0]  # a number that the context lacks


def test_accents_in_either_form_are_the_same_word() -> None:
    answer, context = "the caf\u00e9", "a cafe\u0301"
    for one, other in ((answer, context), (context, answer)):
        first = len(one.split()[0])
        starts, ends = np.array([0, first + 1]), np.array([first, len(one)])
        found = token_features.copy(np.zeros(2, np.int64), starts, ends, [one], [other])
        assert found[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("word", "other"), [("उसकी", "उसका"), ("שָׁלוֹם", "שלם"), ("مُدَرِّس", "مدر")], ids=str
)
def test_vowel_signs_and_points_divide_no_word(word: str, other: str) -> None:
    start, end = np.array([0]), np.array([len(word)])
    for context, copied in ((f"{word} x", 1), (other, 0)):
        found = token_features.copy(np.array([0]), start, end, [word], [context])
        assert found[0, :2].tolist() == [copied, copied]


@pytest.mark.parametrize(
    ("answer", "context"),
    [
        ("巴黎是法国的首都", "我们知道巴黎是法国的首都。"),
        ("กรุงเทพเป็นเมืองหลวง", "ว่ากรุงเทพเป็นเมืองหลวงของไทย"),
    ],
    ids=["Chinese", "Thai"],
)
def test_words_are_letters_in_scripts_without_spaces(answer: str, context: str) -> None:
    starts = np.arange(len(answer))
    rows = np.zeros(len(answer), dtype=np.int64)
    found = token_features.copy(rows, starts, starts + 1, [answer], [context])
    assert found[:, 1].tolist() == [token_features.LONGEST_COPY] * len(answer)
    other = token_features.copy(rows, starts, starts + 1, [answer], ["Paris"])
    assert not other[:, :2].any()


def test_every_character_counts_once_also_between_tokens_and_in_shared_ones() -> None:
    answer = "ab  🙂c"
    inputs = detectors.TokenInputs(
        np.arange(5),
        np.zeros(5, dtype=np.int64),
        np.zeros(5, dtype=np.int64),
        np.zeros(5, dtype=np.int64),
        pd.DataFrame({"start": [0, 4, 4, 4, 5], "end": [2, 5, 5, 5, 6]}),
        pd.DataFrame({"answer": [answer], "spans": [[{"start": 3, "end": 5, "probability": 1}]]}),
        None,
    )
    characters, marked = detectors.character_counts(inputs)
    assert characters.tolist() == [2, 3, 0, 0, 1]
    assert marked.tolist() == [0, 2, 0, 0, 0]


def test_the_threshold_has_the_best_f1_of_all_thresholds() -> None:
    generator = np.random.default_rng(12)
    scores = generator.integers(6, size=60) / 6
    characters = generator.integers(1, 9, size=60)
    marked = np.where(generator.random(60) < scores / 2, characters, 0)

    def f1(limit: float) -> float:
        chosen = scores >= limit
        return float(2 * marked[chosen].sum() / (characters[chosen].sum() + marked.sum()))

    best = detectors.best_threshold(scores, characters, marked)
    assert f1(best) == max(f1(limit) for limit in scores)
    assert detectors.best_threshold(scores, characters, 0 * marked) == np.inf


@pytest.mark.parametrize(
    ("columns", "pairs"), [(512, 250), (7, 250), (512, 0)], ids=["whole", "parts", "tokens"]
)
def test_draws_are_those_of_the_general_bootstrap(
    monkeypatch: pytest.MonkeyPatch, columns: int, pairs: int
) -> None:
    monkeypatch.setattr(token_tables, "_COLUMNS", columns)
    monkeypatch.setattr(token_tables, "_PAIRS", pairs)
    monkeypatch.setattr(statistics, "_BLOCK", 1000)
    generator = np.random.default_rng(13)
    y = generator.integers(2, size=300)
    scores = generator.integers(9, size=300) + y
    group = np.array([f"g{number}" for number in generator.integers(20, size=300)], dtype=object)
    drawn = token_tables._resample(group, 50, "x", 1)
    expected = bootstrap_auroc(y, np.array([scores], dtype=float), group, 50, [1, 2363233923])
    found = token_tables.auroc_draws(y, scores.astype(float), *drawn)
    np.testing.assert_allclose(found, expected[0], atol=1e-12)
    values = generator.random(300)
    row = token_tables._auprc(y, values, drawn, 0.95)
    weights = drawn.counts[:, drawn.code]
    from sklearn.metrics import average_precision_score

    whole = [average_precision_score(y, values, sample_weight=each) for each in weights]
    low, high = np.quantile(whole, [0.025, 0.975])
    np.testing.assert_allclose([row["auprc_low"], row["auprc_high"]], [low, high], atol=1e-9)
    assert row["auprc"] == average_precision(y, values)


def test_equal_scores_have_the_interval_of_any_order_of_rows() -> None:
    generator = np.random.default_rng(14)
    y = np.arange(400) % 5 == 0
    group = np.array([f"g{number // 10}" for number in range(400)], dtype=object)
    for scores in (np.zeros(400), generator.integers(4, size=400).astype(float)):
        rows = []
        for order in (np.arange(400), np.arange(400)[::-1], generator.permutation(400)):
            drawn = token_tables._resample(group[order], 200, "x", 1)
            rows.append(token_tables._auprc(y[order].astype(np.int64), scores[order], drawn, 0.95))
        for row in rows:
            assert row["auprc_low"] - 1e-9 <= row["auprc"] <= row["auprc_high"] + 1e-9
            assert row["auprc_high"] - row["auprc_low"] < 0.2
    assert rows[0]["auprc"] == pytest.approx(rows[1]["auprc"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data._replace(without=data.without.iloc[1:]),
            "activations.positions: answer",
        ),
        (
            lambda data: data._replace(tokens=data.tokens.drop(columns="span")),
            "no labels of tokens",
        ),
        (
            lambda data: data._replace(tokens=data.tokens.iloc[WORDS:], without=None),
            "lacks the tokens",
        ),
        (
            lambda data: data._replace(
                tokens=data.tokens[~data.tokens.duplicated("example", keep="last")], without=None
            ),
            "only the last tokens",
        ),
        (
            lambda data: data._replace(audited=data.audited.assign(fold=data.audited["fold"] % 2)),
            r"detection\.folds to 3",
        ),
    ],
)
def test_tables_of_other_texts_are_refused(change: Any, message: str) -> None:
    data = change(planted(np.zeros((ANSWERS, WORDS), dtype=bool)))
    with pytest.raises(UserError, match=message):
        detectors.read_inputs("x", data.examples, data.tokens, data.audited, data.without)


def test_the_support_of_answers_is_the_gain_of_their_log_probability() -> None:
    outputs = pd.DataFrame({"logprob_sum": [-3.0, -4.0]})
    plain = pd.DataFrame(
        {"example": [0, 0, 1], "logprob": [-4.0, -2.0, -3.0], "entropy": [1.0, 3.0, 5.0]}
    )
    found = context_support(outputs, plain, "x")
    assert found["support_sum"].tolist() == [3.0, -1.0]
    assert found["support_mean"].tolist() == [1.5, -1.0]
    assert found["plain_entropy_mean"].tolist() == [2.0, 5.0]
    with pytest.raises(UserError, match=r"x: without_context\.parquet has 1 answers"):
        context_support(outputs, plain[:2], "x")


def test_who_wrote_the_answers_is_a_control_where_it_is_known() -> None:
    labels = np.tile([0, 1], 60)
    examples = pd.DataFrame({"generator": np.where(labels == 1, "b", "a")})
    assert controls.audited(examples) == (*controls.AUDITED, "generator")
    assert controls.audited(examples.rename(columns={"generator": "x"})) == controls.AUDITED
    groups = np.array([f"g{number}" for number in range(120)], dtype=object)
    for outer in splits.outer_folds(labels, groups, np.arange(120) // 2 % 5, 3, 0):
        fit = controls.generator(examples, labels, outer)
        assert auroc(labels[outer.test], fit.test_log_odds) == 1.0
