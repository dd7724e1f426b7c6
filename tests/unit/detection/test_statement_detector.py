"""The detector of whole statements on planted kinds: what it decides is right, or it abstains."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ghosttrack.detection import left_out_kinds, saved_statements, statement_model
from ghosttrack.detection.abstention import CONFIDENCES, LEVEL, error_bound, thresholds
from ghosttrack.detection.left_out_kinds import StatementDetector
from ghosttrack.detection.statement_model import Statements
from ghosttrack.errors import UserError

POOLS, WIDTH, OUTPUTS = 3, 24, 5
BLOCK = 4


class Planted(NamedTuple):
    """Directions that all planted kinds share."""

    false_pair: np.ndarray  # (POOLS, WIDTH)
    negation: np.ndarray  # (POOLS, WIDTH)
    output: np.ndarray  # (OUTPUTS,)


def directions(rng: np.random.Generator) -> Planted:
    return Planted(
        rng.normal(size=(POOLS, WIDTH)), rng.normal(size=(POOLS, WIDTH)), rng.normal(size=OUTPUTS)
    )


def kind(
    planted: Planted,
    rng: np.random.Generator,
    code: int,
    *,
    texts: int = 48,
    strength: float = 1.0,
    negated: bool = False,
    offset: float = 1.0,
    facts: int | None = None,
) -> Statements:
    """Statements of one kind around an offset of its own; half of them are false in every block."""
    pair = np.tile([0, 0, 1, 1], texts // BLOCK)
    sign = strength * (2 * pair - 1)
    states = rng.normal(size=(texts, POOLS, WIDTH)) + offset * rng.normal(size=(POOLS, WIDTH))
    states += sign[:, None, None] * planted.false_pair
    states += (3.0 if negated else -3.0) * planted.negation
    outputs = rng.normal(size=(texts, OUTPUTS)) + sign[:, None] * planted.output
    return Statements(
        states.astype(np.float32),
        outputs,
        1 - pair if negated else pair,
        np.full(texts, negated),
        np.full(texts, code),
        np.full(texts, code % 3 if facts is None else facts),
        1000 * code + np.repeat(np.arange(texts // BLOCK), BLOCK),
        1000 * code + np.arange(texts),
    )


def joined(kinds: list[Statements]) -> Statements:
    return Statements(*(np.concatenate(values) for values in zip(*kinds, strict=True)))


def error_and_coverage(
    detector: StatementDetector, given: Statements, confidence: float
) -> tuple[float, float]:
    judged = detector.judge(given.states, given.outputs)
    decided = judged.reliability >= confidence
    wrong = (judged.log_odds > 0) != (given.label == 1)
    return float((wrong & decided).mean()), float(decided.mean())


@pytest.fixture(scope="module")
def trained() -> tuple[Planted, StatementDetector]:
    rng = np.random.default_rng(0)
    planted = directions(rng)
    kinds = [kind(planted, rng, code, negated=code % 2 == 1) for code in range(10)]
    return planted, left_out_kinds.fit(joined(kinds))


def test_a_signal_that_all_kinds_share_decides_new_affirmed_and_negated_kinds(
    trained: tuple[Planted, StatementDetector],
) -> None:
    planted, detector = trained
    rng = np.random.default_rng(1)
    for negated in (False, True):
        error, coverage = error_and_coverage(
            detector, kind(planted, rng, 20, negated=negated), 0.75
        )
        assert coverage > 0.5
        assert error < 0.05


def test_a_kind_far_from_all_others_is_unlike_even_where_the_signal_is_reversed(
    trained: tuple[Planted, StatementDetector],
) -> None:
    planted, detector = trained
    given = kind(planted, np.random.default_rng(2), 20, strength=-1.0, offset=30.0)
    judged = detector.judge(given.states, given.outputs)
    assert judged.unlike.all()
    assert not judged.reliability.any()


def test_kinds_without_a_signal_are_never_decided() -> None:
    rng = np.random.default_rng(3)
    planted = directions(rng)
    detector = left_out_kinds.fit(
        joined([kind(planted, rng, code, strength=0.0) for code in range(10)])
    )
    _, coverage = error_and_coverage(detector, kind(planted, rng, 20, strength=0.0), 0.75)
    assert coverage < 0.05


def test_the_stated_error_holds_on_new_kinds_over_fifty_seeds() -> None:
    errors, coverages, exceeded = [], [], 0
    for seed in range(50):
        rng = np.random.default_rng([7, seed])
        planted = directions(rng)
        # Some kinds show the signal, some hardly, some not at all: exchangeable, and not alike.
        strengths = rng.choice([0.0, 0.1, 0.4], size=22)
        kinds = [
            kind(planted, rng, code, texts=24, strength=strength, negated=bool(rng.integers(2)))
            for code, strength in enumerate(strengths)
        ]
        detector = left_out_kinds.fit(joined(kinds[:10]))
        error, coverage = error_and_coverage(detector, joined(kinds[10:]), 0.75)
        errors.append(error)
        coverages.append(coverage)
        exceeded += error > 0.25 * coverage
    assert sum(errors) <= 0.25 * sum(coverages)
    assert sum(coverages) > 0, "a detector that never decides passes no test"
    # Twelve new kinds are few: a bound that holds on average is exceeded now and then.
    assert exceeded <= 12


def test_thresholds_follow_the_error_of_whole_groups() -> None:
    # Ten groups are right on their best half; one group is wrong on everything, with high scores.
    right = np.tile(np.repeat([True, False], 10), 10)
    certainty = np.tile(np.linspace(1, 0, 20), 10)
    names = np.repeat(np.arange(10), 20)
    at = int(np.flatnonzero(CONFIDENCES == 0.75)[0])
    without = thresholds(certainty, right, names)
    # The best half is right, every further statement is wrong: 3 of 13 would be below a quarter.
    assert 10 / 20 <= (certainty >= without[at]).mean() <= 13 / 20
    spoiled = thresholds(
        np.concatenate([certainty, np.full(20, 2.0)]),
        np.concatenate([right, np.zeros(20, dtype=bool)]),
        np.concatenate([names, np.full(20, 10)]),
    )
    assert np.isinf(spoiled[at])
    nothing = thresholds(np.full(200, -np.inf), right, names)
    assert np.isinf(nothing).all()


def test_a_further_group_exceeds_the_bound_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(8)
    exceeded = []
    for _ in range(300):
        true = rng.beta(2, 8, size=25)
        decided = rng.integers(1, 40, size=24)
        wrong = rng.binomial(decided, true[:-1])
        bound = error_bound(wrong[None].astype(float), decided[None].astype(float))
        exceeded.append(true[-1] > bound[0])
    assert np.mean(exceeded) <= 1 - LEVEL + 0.05
    assert np.mean(exceeded) >= 0.1, "a bound that nothing exceeds decides too rarely"


def test_the_bound_of_equal_groups_is_wider_with_fewer_verdicts_and_with_unlike_groups() -> None:
    few, many = (np.full((1, 10), size) for size in (5.0, 50.0))
    same = error_bound(0.2 * many, many)[0]
    assert 0.2 < same < error_bound(0.2 * few, few)[0]
    unlike = np.tile([0.0, 0.4], 5)[None] * many
    assert error_bound(unlike, many)[0] > same + 0.1
    # One group alone says nothing about a further one.
    assert error_bound(np.array([[0.0, 0.0]]), np.array([[100.0, 0.0]]))[0] > 0.5


def scores_by_hand(columns: list[np.ndarray], train: Statements) -> statement_model.Scores:
    """Scores of the training rows by a fit on them, from centred rows and inverse matrices."""
    rows, x = len(train.label), columns[0]
    parts = train.kind * 1000 + train.facts
    label = 2.0 * train.pair_false - 1
    label -= means_by(label[:, None], train.group)[:, 0]
    base = []
    for each in columns:
        within = each - means_by(each, parts)
        scatter = within.T @ within
        weight = ridge_by_hand(scatter, label @ each, np.trace(scatter) / rows)
        weight /= np.sqrt(weight @ scatter @ weight / rows)
        base.append((each - each.mean(axis=0)) @ weight)
    negated = 2.0 * train.negated - 1
    centred = x - x.mean(axis=0)
    weight = ridge_by_hand(centred.T @ centred, centred.T @ negated, (x**2).sum() / rows)
    within = x - means_by(x, train.kind)
    covariance = within.T @ within / rows
    covariance = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
    kinds = np.unique(train.kind)
    away = x[:, None] - np.stack([x[train.kind == kind].mean(axis=0) for kind in kinds])
    squared = np.einsum("rki,ij,rkj->rk", away, np.linalg.inv(covariance), away) / x.shape[1]
    return statement_model.Scores(
        np.column_stack(base),
        np.asarray(centred @ weight + negated.mean() if len(set(negated)) == 2 else 3 * negated),
        np.sqrt(squared.min(axis=1)),
        kinds[squared.argmin(axis=1)],
    )


def means_by(x: np.ndarray, code: np.ndarray) -> np.ndarray:
    result = np.empty_like(x)
    for one in np.unique(code):
        result[code == one] = x[code == one].mean(axis=0)
    return result


def ridge_by_hand(scatter: np.ndarray, products: np.ndarray, unit: float) -> np.ndarray:
    penalty = statement_model.STRENGTH * unit * np.eye(len(scatter))
    return np.asarray(np.linalg.inv(scatter + penalty) @ products)


def test_fits_from_sums_of_parts_equal_fits_on_their_rows() -> None:
    rng = np.random.default_rng(4)
    planted = directions(rng)
    kinds = [
        kind(planted, rng, code, negated=code % 2 == 1, facts=facts, texts=20 + 8 * code)
        for code in range(4)
        for facts in range(3)
    ]
    given = joined([each._replace(group=1000 * n + each.group) for n, each in enumerate(kinds)])
    columns = [*given.states.astype(np.float64).transpose(1, 0, 2), given.outputs]
    parts = statement_model.parts(columns, given)
    assert parts.rows.sum() == len(given.label)
    chosen = rng.random((5, len(parts.rows))) < 0.6
    chosen[0] = True
    for used, fitted in zip(chosen, statement_model.fits(parts, chosen), strict=True):
        of_used = zip(parts.kind[used], parts.facts[used], strict=True)
        rows = np.any([(given.kind == k) & (given.facts == f) for k, f in of_used], axis=0)
        kept = [x[rows] for x in columns]
        expected, found = scores_by_hand(kept, given.rows(rows)), fitted.apply(kept)
        assert list(found.nearest) == list(expected.nearest)
        for name in ("base", "negated", "distance"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize(
    ("kind", "facts", "foreign"),
    [
        ([0, 0, 1, 1], [0, 1, 0, 1], [[3], [2], [1], [0]]),
        ([0, 1, 2], [0, 0, 0], [[1, 2], [0, 2], [0, 1]]),  # one kind of facts alone
        ([0, 0], [0, 1], [[0, 1], [0, 1]]),  # one kind alone
    ],
)
def test_a_part_is_tried_on_a_fit_without_its_kind_and_its_facts(
    kind: list[int], facts: list[int], foreign: list[list[int]]
) -> None:
    nothing = np.zeros(0)
    parts = statement_model.Parts(
        np.array(kind), np.array(facts), np.ones(len(kind), dtype=np.int64), [], [], [],
        nothing, nothing,
    )  # fmt: skip
    found = left_out_kinds._foreign(parts)
    assert [list(np.flatnonzero(row)) for row in found] == foreign


def test_evaluation_uses_nothing_of_what_is_left_out() -> None:
    rng = np.random.default_rng(4)
    planted = directions(rng)
    kinds = [kind(planted, rng, code, texts=24, negated=code >= 4) for code in range(6)]
    given = joined(kinds)
    names, facts = [f"kind {code}" for code in range(6)], ["a", "b", "c"]
    before = left_out_kinds.evaluate(given, names, facts)
    flipped = given._replace(label=np.where(given.kind == 2, 1 - given.label, given.label))
    after = left_out_kinds.evaluate(flipped, names, facts)
    same = ((before["name"] == "kind 2") | (before["name"] == "c")).to_numpy()
    assert before["row"].tolist() == after["row"].tolist()
    for column in ("log_odds", "reliability"):
        kept = (before["kind"] == 2).to_numpy() & same
        assert before.loc[kept, column].tolist() == after.loc[kept, column].tolist()
    assert not np.allclose(before.loc[~same, "log_odds"], after.loc[~same, "log_odds"])
    table = left_out_kinds.table(before)
    assert table["kind"].tolist() == [*names, "all", "all", *facts, "all"]
    assert table["left_out"].tolist() == [*["kind"] * 7, "negated kinds", *["facts"] * 4]
    assert table.loc[table["left_out"] == "kind", "auroc"].min() > 0.9


def test_a_text_of_several_sentences_is_evaluated_as_score_judges_it() -> None:
    rng = np.random.default_rng(9)
    planted = directions(rng)
    kinds = [kind(planted, rng, code, texts=24) for code in range(7)]
    # Two rows of the last kind are one text; it is false if one of them is.
    text = kinds[-1].text // 2 * 2
    false = kinds[-1].label.reshape(-1, 2).max(axis=1).repeat(2)
    given = joined([*kinds[:-1], kinds[-1]._replace(text=text, label=false)])
    judged = left_out_kinds.evaluate(given, [f"kind {code}" for code in range(7)], ["a", "b", "c"])
    several = judged[judged["name"] == "kind 6"]
    assert len(several) == 12
    assert (several["row"] % 2 == 0).all()
    assert ((several["log_odds"] > 0) == (several["label"] == 1)).mean() > 0.9
    # They are never fitted on: the other rows are those of a table without them.
    without = left_out_kinds.evaluate(
        joined(kinds[:-1]), [f"kind {code}" for code in range(6)], ["a", "b", "c"]
    )
    others = judged[judged["name"] != "kind 6"]
    np.testing.assert_allclose(others["log_odds"], without["log_odds"])


def test_sentences_make_the_verdict_of_their_text_at_every_confidence() -> None:
    from ghosttrack.detection.scored_texts import ScoredSentence, decisive
    from ghosttrack.detection.statement_scoring import Opinion, verdict_on_statement

    rng = np.random.default_rng(10)
    count = 60
    odds, reliability = rng.normal(size=count), rng.choice([0.0, 0.7, 0.8, 0.9], size=count)
    judged = left_out_kinds.Judged(
        odds, reliability, np.zeros(count, dtype=bool), np.abs(odds), np.zeros(count, dtype=int)
    )
    whole = judged.of_texts(np.arange(count) // 3)

    def verdict(of: left_out_kinds.Judged, row: int, confidence: float) -> tuple[float, str]:
        opinion = Opinion(of.probability[row], 0.0, of.reliability[row], unlike=False, kind="")
        return opinion.probability, verdict_on_statement(opinion, confidence)

    for confidence in (0.7, 0.75, 0.85, 0.95):
        for text in range(count // 3):
            found = decisive(
                [
                    ScoredSentence(0, 1, 0, 1, probability, 0.0, 0.0, one, [])
                    for probability, one in (
                        verdict(judged, row, confidence) for row in range(3 * text, 3 * text + 3)
                    )
                ]
            )
            assert verdict(whole, text, confidence)[1] == found.verdict


def test_a_statement_on_the_true_side_is_never_called_hallucinated() -> None:
    from ghosttrack.detection.statement_scoring import Opinion, verdict_on_statement

    # The log-odds that a verdict is right are below 0 where most such verdicts were wrong.
    odds = np.array([-0.3, -0.01, 0.3, -2.0])
    reliability = np.array([0.0, 0.5, 0.0, 0.6])
    selected = np.array([-1.0, -0.2, -1.0, 0.5])
    judged = left_out_kinds.Judged(
        odds, reliability, np.zeros(4, dtype=bool), selected, np.zeros(4, dtype=int)
    )
    assert ((judged.probability >= 0.5) == (odds > 0)).all()
    assert [
        verdict_on_statement(Opinion(p, o, r, unlike=False, kind=""), 0.5)
        for p, o, r in zip(judged.probability, odds, reliability, strict=True)
    ] == ["true", "true", "hallucinated", "true"]


def test_intervals_count_blocks_and_not_statements() -> None:
    wrong = np.repeat([True, False, False, False], 25)
    alone = left_out_kinds.error_interval(wrong, [np.arange(100)])
    assert alone == pytest.approx((0.175, 0.343), abs=0.002)
    blocks = left_out_kinds.error_interval(wrong, [np.repeat(np.arange(20), 5)])
    assert blocks[0] < alone[0]
    assert blocks[1] > alone[1] + 0.05
    # Ten blocks without an error are ten verdicts.
    assert left_out_kinds.error_interval(np.zeros(40, dtype=bool), [np.arange(40) // 4])[
        1
    ] == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-6)
    assert np.isnan(left_out_kinds.error_interval(np.zeros(0, dtype=bool), [np.zeros(0)])).all()


def test_too_few_kinds_give_a_reason() -> None:
    rng = np.random.default_rng(5)
    planted = directions(rng)
    few = joined([kind(planted, rng, code, texts=8) for code in range(4)])
    assert "4 kinds have" in left_out_kinds.infeasible_reason(few)
    assert not left_out_kinds.infeasible_reason(
        joined([kind(planted, rng, code, texts=8) for code in range(5)])
    )


def test_a_saved_detector_judges_as_before_and_damage_is_refused(
    tmp_path: Path, trained: tuple[Planted, StatementDetector]
) -> None:
    planted, detector = trained
    weights, about = (
        tmp_path / saved_statements.WEIGHTS_NAME,
        tmp_path / saved_statements.ABOUT_NAME,
    )
    saved_statements.save(detector, {"reason": "", "kinds": ["a"]}, weights, about)
    loaded = saved_statements.load(tmp_path).detector
    assert loaded is not None
    given = kind(planted, np.random.default_rng(6), 20)
    for one, other in zip(
        detector.judge(given.states, given.outputs),
        loaded.judge(given.states, given.outputs),
        strict=True,
    ):
        assert one.tolist() == other.tolist()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="was changed"):
        saved_statements.load(tmp_path)
    weights.write_bytes(whole)
    edited = json.loads(about.read_text())
    about.write_text(json.dumps({**edited, "kinds": ["b"]}))
    with pytest.raises(UserError, match="was changed"):
        saved_statements.load(tmp_path)
    about.write_text(json.dumps({**edited, "schema": 0}))
    with pytest.raises(UserError, match="another version"):
        saved_statements.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="has no detector of statements"):
        saved_statements.load(tmp_path)
