"""Transfer: shared signals are found on other relations, others are not; labels do not leak."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ghosttrack import sae, statistics
from ghosttrack import scores as registry
from ghosttrack.activations import store
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.detection import misled_transfer, probes, transfer
from ghosttrack.detection.misled_transfer import PROBES, MisledPool
from ghosttrack.detection.transfer import Pool
from ghosttrack.errors import UserError
from ghosttrack.evaluation import transfer_tables
from ghosttrack.facts import remarks, statements
from ghosttrack.report import figures, transfer_figure
from ghosttrack.sae import model as sae_model
from ghosttrack.settings import EvaluationSettings
from ghosttrack.statistics import auroc

SETS, GROUPS, WIDTH = (
    {"one": "capital", "two": "capital_reverse", "three": "city", "four": "border"},
    30,
    12,
)


def made(signal: float, seed: int = 0, own: float = 0.0) -> Pool:
    """Four sets of three parts.

    `signal` shifts channel 0 of all sets, `own` another channel in each.
    """
    rng, n = np.random.default_rng(seed), 4 * GROUPS
    labels = np.tile([0, 0, 1, 1], GROUPS * len(SETS))
    dataset = np.repeat(list(SETS), n).astype(object)
    groups = np.array([f"g{row // 4:02d}" for row in range(n)] * len(SETS), dtype=object)
    blocks = {}
    for layer in (2, 4):
        kinds = {}
        for kind in transfer.PROBES.values():
            x = rng.standard_normal((len(labels), WIDTH)).astype(np.float32)
            x[:, 0] += signal * labels
            for place, name in enumerate(SETS):
                x[dataset == name, 1 + place] += own * labels[dataset == name]
                x[dataset == name] *= 1 + place  # another scale in each set
            kinds[kind] = x
        blocks[layer] = kinds
    outputs = pd.DataFrame(
        rng.standard_normal((len(labels), 4)), columns=list(transfer.OUTPUT_SCORES)
    )
    lens = pd.DataFrame(rng.standard_normal((len(labels), 2)), columns=["lens_lead", "lens_rank"])
    relation = np.array([SETS[name] for name in dataset], dtype=object)
    cv_groups = np.array(
        [f"{name} {group}" for name, group in zip(dataset, groups, strict=True)], dtype=object
    )
    return Pool(labels, relation, dataset, groups, cv_groups, outputs, lens, blocks)


def after_remarks(pool: Pool, signal: float) -> MisledPool:
    """The same texts after remarks of three wordings; entropy shows the label if told agreement."""
    rows = np.arange(len(pool.labels))
    wording = np.array(["hearsay", "belief", "passage"], dtype=object)[rows // 4 % 3]
    agrees = rows % 2 == 0
    shift = signal * pool.labels * np.where(agrees, 1, -1)
    outputs = pool.outputs.assign(entropy_mean=pool.outputs["entropy_mean"] + shift)
    blocks = {layer: {**kinds, "code_max": kinds["raw"]} for layer, kinds in pool.blocks.items()}
    strata = np.array([f"{a} after {b}" for a, b in zip(pool.relation, wording, strict=True)])
    closed = pd.DataFrame({"logprob_sum": outputs["logprob_sum"] + signal * pool.labels})
    return MisledPool(
        pool._replace(outputs=outputs, blocks=blocks, relation=strata.astype(object)),
        pool.relation,
        wording,
        agrees,
        closed,
        pd.DataFrame({"remark_logprob_sum": np.random.default_rng(5).standard_normal(len(rows))}),
        pool.cv_groups,
    )


def with_candidates(misled: MisledPool) -> MisledPool:
    """Candidates whose tracks show the label where the text agrees with its remark."""
    rng, rows = np.random.default_rng(3), len(misled.agrees)
    tables = {
        name: pd.DataFrame(rng.standard_normal((rows, 2)), columns=["difference", "track_lead"])
        for name in misled_transfer.CANDIDATES
    }
    shown = 3 * misled.pool.labels * np.where(misled.agrees, 1, -1)
    tables["candidate_all"]["track_lead"] += shown
    return misled._replace(candidates=tables)


def test_candidates_are_tested_on_other_relations_with_agreement_as_an_interaction() -> None:
    misled = with_candidates(after_remarks(made(0.0), 0.0))
    trainings = misled_transfer.trainings(misled)
    scored = {kind: misled_transfer.scores(misled, each) for kind, each in trainings.items()}
    table = transfer_tables.judge_misled(misled, scored, EvaluationSettings(bootstrap=200), 0)
    rows = table[table["dataset"] == registry.ALL_MISLED].set_index(["left_out", "ours", "control"])
    for kind in ("relation", "wording"):
        gain = rows.loc[f"each {kind} in turn", "candidate_all", "candidate_all.untracked"]
        assert gain["auroc_ours"] > 0.85
        assert gain["difference_low"] > 0.2
        noise = rows.loc[f"each {kind} in turn", "candidate_gradients", "candidate_logit"]
        assert abs(noise["difference"]) < 0.1


def test_pairs_of_scores_are_corrected_within_a_left_out_part() -> None:
    misled = with_candidates(after_remarks(made(0.0), 0.0))
    trainings = misled_transfer.trainings(misled)
    scored = {kind: misled_transfer.scores(misled, each) for kind, each in trainings.items()}
    settings = EvaluationSettings(bootstrap=200)
    plain = transfer_tables.judge_misled(misled._replace(candidates={}), scored, settings, 0)
    fair, unfair = (
        transfer_tables.judge_misled(misled, scored, settings, 0, null_rows_differ=differ)
        for differ in (False, True)
    )
    # Candidates off: pairs without them are judged by the same rules.
    without = transfer_tables.judge_misled(
        misled._replace(candidates={}),
        {
            kind: {
                training: {
                    name: value
                    for name, value in by_score.items()
                    if name not in misled_transfer.CANDIDATES
                }
                for training, by_score in by_training.items()
            }
            for kind, by_training in scored.items()
        },
        settings,
        0,
    )
    assert plain.equals(fair)
    assert 0 < len(without) < len(fair)
    for table in (fair, without):
        assert list(table.columns) == list(registry.MISLED_LEFT_OUT)
        for _, rows in table.groupby("left_out"):
            assert rows["p_holm"].tolist() == statistics.holm(rows["p"].tolist())
        enough = table["groups"] >= settings.minimum_groups
        above, significant = table["difference_low"] > 0, table["p_holm"] < 1 - settings.confidence
        established = table["verdict"] == registry.ESTABLISHED
        at_chance = table["reason"] == registry.NOT_ABOVE_CHANCE
        assert (table["auroc_ours"][at_chance] < 0.6).all()
        assert (established == (above & enough & significant & ~at_chance)).all()
        reason = np.select(
            [above & ~enough, above & enough & ~significant],
            [
                table["groups"].map(
                    lambda groups: registry.too_few_groups(groups, settings.minimum_groups)
                ),
                registry.NOT_AFTER_CORRECTION,
            ],
            "",
        )
        assert (at_chance | (table["reason"] == reason)).all()
    assert (fair["verdict"] == registry.ESTABLISHED).any()
    over_null = unfair["control"].str.endswith(".decoders")
    assert (fair["verdict"][over_null] == registry.ESTABLISHED).any()
    assert (unfair["verdict"][over_null] == registry.NOT_ESTABLISHED).all()
    assert (unfair["reason"][over_null] == registry.NULL_ROWS_DIFFER).all()
    assert unfair["p_holm"][over_null].isna().all()


def test_both_scores_of_a_pair_know_the_candidates_or_neither_does() -> None:
    for ours, control in transfer_tables.MISLED_PAIRS:
        known = {name in misled_transfer.CANDIDATES for name in (ours, control)}
        assert len(known) == 1, (ours, control)


def test_a_gain_that_is_not_significant_after_correction_is_not_established() -> None:
    p_values = [0.001, 0.03, 0.2]
    rows = [
        {"control": "c", "p": p, "verdict": verdict, "difference_low": 0.1, "groups": 99}
        for p, verdict in zip(
            p_values,
            [registry.ESTABLISHED, registry.ESTABLISHED, registry.NOT_ESTABLISHED],
            strict=True,
        )
    ]
    found = transfer_tables._corrected(rows, EvaluationSettings(), null_rows_differ=False)
    assert [row["p_holm"] for row in found] == pytest.approx([0.003, 0.06, 0.2])
    assert [row["verdict"] == registry.ESTABLISHED for row in found] == [True, False, False]
    assert [row["reason"] for row in found] == [
        "",
        registry.NOT_AFTER_CORRECTION,
        registry.NOT_ABOVE_CHANCE,
    ]


def test_conflict_sets_are_tested_without_each_relation_and_each_wording() -> None:
    misled = after_remarks(made(2.0), 2.0)
    trainings = misled_transfer.trainings(misled)
    assert {kind: len(each) for kind, each in trainings.items()} == {"relation": 3, "wording": 3}
    for training in trainings["wording"]:
        held = set(misled.wording[training.inner_fold < 0])
        assert training.name == f"without {held.pop()}"
        assert not held
    scored = {kind: misled_transfer.scores(misled, each) for kind, each in trainings.items()}
    for kind, each in trainings.items():
        for training in each:
            for score in scored[kind][training.name].values():
                assert (np.isnan(score) == (training.inner_fold >= 0)).all()
    table = transfer_tables.judge_misled(misled, scored, EvaluationSettings(bootstrap=200), 0)
    assert {f"without {name}" for name in ("hearsay", "belief", "passage")} < set(table["left_out"])
    pooled = table[table["dataset"] == registry.ALL_MISLED].set_index(
        ["left_out", "ours", "control"]
    )
    for kind in ("relation", "wording"):
        row = pooled.loc[(f"each {kind} in turn", registry.WITH_AGREEMENT, registry.SAME_PASS)]
        assert row["auroc_control"] > 0.85
        assert row["difference_low"] > 0
        row = pooled.loc[(f"each {kind} in turn", registry.DETECTOR, registry.OUTPUT_REGRESSION)]
        assert abs(row["auroc_control"] - 0.5) < 0.1
        assert row["auroc_ours"] > 0.85


def test_a_statement_is_not_tested_if_it_is_in_training_after_another_remark() -> None:
    plain = statements.build_statements("cities", 0, 96)
    after = {
        wording: remarks.with_remarks(plain, [wording], {})
        for wording in ("hearsay", "belief", "passage")
    }
    other = statements.build_statements("us_cities", 0, 96)
    after["us"] = remarks.with_remarks(other, list(after), {})
    names = ("logprob_sum", "logprob_mean", "logprob_first", "entropy_first", "entropy_mean")
    rng = np.random.default_rng(0)
    measured = {
        name: pd.DataFrame(
            -rng.random((len(table), 2 * len(names))),
            columns=[*names, *(f"remark_{each}" for each in names)],
        ).assign(rank_first=1.0, id=table["id"])
        for name, table in after.items()
    }
    rows = sum(map(len, after.values()))
    kinds = {kind: rng.random((rows, 4)).astype(np.float32) for kind in PROBES.values()}
    misled = misled_transfer.pool(after, measured, measured, {2: kinds})
    trainings = misled_transfer.trainings(misled)["wording"]
    found = misled_transfer.scores(misled, trainings)
    for training in trainings:
        held = (misled.pool.dataset == "us") & (training.inner_fold < 0)
        assert held.any()
        for score in found[training.name].values():
            assert (np.isfinite(score) == held).all()


def test_the_remarks_own_answer_is_known_to_the_controls_under_shift() -> None:
    misled = after_remarks(made(0.0), 0.0)
    shown = 3 * misled.pool.labels * np.where(misled.agrees, -1, 1)
    misled = misled._replace(asserted=misled.asserted + shown[:, None])
    (training, *_) = misled_transfer.trainings(misled)["relation"]
    found = misled_transfer.scores(misled, [training])[training.name]
    test = training.inner_fold < 0
    reached = {name: auroc(misled.pool.labels[test], score[test]) for name, score in found.items()}
    for name in (registry.SAME_PASS, registry.CLOSED_BOOK_AND_CONTEXT, registry.WITH_AGREEMENT):
        assert reached[name] > 0.85, name
    for name in (registry.OUTPUT_REGRESSION, registry.CLOSED_BOOK, registry.DETECTOR):
        assert abs(reached[name] - 0.5) < 0.15, name


def test_one_wording_of_two_relations_gives_no_shift() -> None:
    misled = after_remarks(made(1.0), 1.0)
    two = misled._replace(
        relation=np.where(misled.relation == "border", "city", misled.relation),
        wording=np.array(["hearsay"] * len(misled.wording), dtype=object),
    )
    assert misled_transfer.trainings(two) == {}


def reached(pool: Pool, score_name: str) -> list[float]:
    trainings = transfer.left_out(transfer.parts(pool))
    found = transfer.scores(pool, trainings)
    return [
        auroc(pool.labels[each.inner_fold < 0], found[each.name][score_name][each.inner_fold < 0])
        for each in trainings
    ]


def test_sets_of_one_relation_or_of_shared_groups_are_left_out_together() -> None:
    pool = made(1.0)
    part = transfer.parts(pool)
    assert len(set(part)) == 3
    assert set(part[pool.dataset == "one"]) == set(part[pool.dataset == "two"])
    pool.cv_groups[pool.dataset == "four"] = pool.cv_groups[pool.dataset == "three"]
    assert len(set(transfer.parts(pool))) == 2
    with pytest.raises(
        UserError,
        match="2 groups of relations that share no relation and no group, expected at least 3: "
        r".* source: file count as one relation",
    ):
        transfer.left_out(transfer.parts(pool))


def test_a_shared_signal_is_found_on_a_left_out_relation_and_a_specific_one_is_not() -> None:
    assert min(reached(made(3.0), "ghosttrack")) > 0.9
    assert min(reached(made(3.0), "raw_probe")) > 0.9
    assert max(abs(value - 0.5) for value in reached(made(0.0, own=3.0), "ghosttrack")) < 0.15
    assert max(abs(value - 0.5) for value in reached(made(0.0, seed=1), "raw_probe")) < 0.15


def test_left_out_labels_do_not_reach_their_scores() -> None:
    pool = made(1.0)
    training = transfer.left_out(transfer.parts(pool))[0]
    before = transfer.scores(pool, [training])[training.name]
    test = training.inner_fold < 0
    after = transfer.scores(
        pool._replace(labels=np.where(test, 1 - pool.labels, pool.labels)), [training]
    )
    for score_name, score in before.items():
        assert np.isnan(score[~test]).all()
        assert (score[test] == after[training.name][score_name][test]).all(), score_name


def test_a_text_whose_group_was_trained_on_is_not_scored() -> None:
    pool = made(1.0)
    one, two = (np.flatnonzero(pool.dataset == name)[:4] for name in ("one", "two"))
    pool.cv_groups[two] = pool.cv_groups[one[0]]
    (training,) = transfer.single(pool, ["one"], 3, 0)
    score = transfer.scores(pool, [training])["one"]["ghosttrack"]
    assert np.isnan(score[two]).all()
    assert np.isnan(score).sum() == len(two) + (pool.dataset == "one").sum()


def test_probes_from_gram_matrices_equal_refitted_ones() -> None:
    from sklearn.linear_model import Ridge

    pool = made(1.0)
    training = transfer.left_out(transfer.parts(pool))[1]
    (found,) = transfer.fit_probes(pool, "raw", [training])
    train = training.inner_fold >= 0
    y, total = 2.0 * pool.labels - 1, np.zeros((2, len(pool.labels)))
    for blocks in pool.blocks.values():
        z = transfer.standardise_by_relation(blocks["raw"], pool).astype(np.float64)
        for scored in (training.inner_fold == number for number in np.unique(training.inner_fold)):
            rows = train & ~scored
            unit = float((z[rows] ** 2).sum()) / rows.sum()
            for place, strength in enumerate(transfer.STRENGTHS):
                total[place, scored] += (
                    Ridge(strength * unit).fit(z[rows], y[rows]).predict(z[scored])
                )
    best = transfer.STRENGTHS.index(found.strength)
    assert found.inner_auroc == pytest.approx(
        max(auroc(pool.labels[train], each[train]) for each in total)
    )
    odds = probes.platt(total[best][train], pool.labels[train])
    np.testing.assert_allclose(found.test_log_odds, odds.apply(total[best][~train]), atol=1e-3)


def test_features_are_standardised_by_large_relation_or_else_by_data_set() -> None:
    pool = made(0.0)
    pool.relation[np.flatnonzero(pool.dataset == "four")[:8]] = "rare"
    found = transfer.standardise_by_relation(pool.outputs.to_numpy(), pool)
    rows = pool.dataset == "four"
    values = pool.outputs.to_numpy()[rows]
    np.testing.assert_allclose(found[rows][:8], ((values - values.mean(0)) / values.std(0))[:8])
    common = values[8:]
    np.testing.assert_allclose(found[rows][8:], (common - common.mean(0)) / common.std(0))


def test_tables_hold_every_pair_of_sets_and_the_figure_draws_them(tmp_path: Path) -> None:
    pool = made(3.0)
    without = transfer.left_out(transfer.parts(pool))
    trainings = [*without, *transfer.single(pool, SETS, 3, 0)]
    within = pd.DataFrame(
        {
            "dataset": pool.dataset,
            "score": "ghosttrack",
            "group": pool.groups,
            "label": pool.labels,
            "value": 0.9 * pool.labels,
        }
    )
    found = transfer_tables.judge(
        pool,
        transfer.scores(pool, trainings),
        [each.name for each in without],
        within,
        EvaluationSettings(bootstrap=100),
        0,
    )
    ours = found.transfer[found.transfer["score"] == "ghosttrack"].set_index(
        ["trained_on", "dataset"]
    )["auroc"]
    assert len(ours) == 4 * 3 + 4 + 4 + 1
    assert ours["one", "one"] == 1.0
    others = ours[transfer_tables.OTHERS]
    assert others["all_given"] == pytest.approx(others[list(SETS)].mean())
    assert list(found.left_out.columns) == list(registry.LEFT_OUT)
    regression = found.left_out.query("control == 'output_regression'").set_index("dataset")
    assert set(regression.index) == {*SETS, "all_given"}
    assert (
        regression["verdict"] == registry.ESTABLISHED
    ).all()  # the signal is in the activations alone
    assert (
        regression["difference"] == regression["auroc_ours"] - regression["auroc_control"]
    ).all()
    figures.write(transfer_figure.transfer, [found.transfer], [tmp_path / "transfer.png"])
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


def test_blocks_of_several_sets_are_read_in_their_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(WIDTH, 16, generator=generator)
    made_sae = sae.Sae(
        w, torch.zeros(16), w.T.contiguous() / WIDTH, torch.zeros(WIDTH), torch.full((16,), 0.5)
    )
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    weights.parent.mkdir()
    sae_model.save(made_sae, weights, weights.parent / "cfg.json", hook_name="h", model_name="m")
    outputs, paths, kept = {}, {}, []
    for place, name in enumerate(("one", "two")):
        folder, n = tmp_path / name, 3 + place
        folder.mkdir()
        values = np.random.default_rng(place).standard_normal((2 * n, WIDTH)).astype(np.float16)
        header = store.Header("tiny", "w", 5, "resid_post", None, "t")
        with StoreWriter(
            folder / "a.zarr", folder / "a.json", header, rows=2 * n, d_model=WIDTH
        ) as writer:
            writer.append(store.to_block(values.astype(np.float32)))
        mean = np.random.default_rng(9).standard_normal((n, WIDTH)).astype(np.float32)
        np.savez(folder / "background.npz", layer_05=mean)
        outputs[name] = pd.DataFrame(
            {"id": range(n), "row_start": 2 * np.arange(n), "row_count": 2}
        )
        paths[name] = transfer.TransferFiles(
            [folder / "a.zarr"], [folder / "a.json"], folder / "background.npz"
        )
        kept.append((values.astype(np.float32).reshape(n, 2, WIDTH).mean(1), mean))
    (found,) = transfer.read_blocks(outputs, paths, {5: weights}).values()
    np.testing.assert_allclose(found["raw"], np.concatenate([raw for raw, _ in kept]), atol=1e-6)
    np.testing.assert_allclose(
        found["centred"], np.concatenate([raw - less for raw, less in kept]), atol=1e-6
    )
    assert found["residual"].shape == (7, WIDTH)
