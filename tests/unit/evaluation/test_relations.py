"""Results of generated answers by relation."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluate import evaluate_detectors
from ghosttrack import scores as registry
from ghosttrack import statistics
from ghosttrack.evaluation import judgement, relations
from ghosttrack.settings import EvaluationSettings

SETTINGS = EvaluationSettings(bootstrap=200, minimum_answers=50)


def scores(sizes: dict[str, tuple[int, int]]) -> tuple[pd.DataFrame, pd.Series]:
    """A score that differs between relations only, so that its pooled AUROC is above chance."""
    rng, rows = np.random.default_rng(0), []
    for level, (name, (right, wrong)) in enumerate(sizes.items()):
        for number, label in enumerate([0] * right + [1] * wrong):
            rows.append((f"{name}-{number}", name, label, 3 * level + rng.standard_normal()))
    found = pd.DataFrame(rows, columns=["id", "relation", "label", "value"])
    table = found.assign(
        dataset="questions",
        mode="generated",
        group=found["id"],
        fold=0,
        score="entropy",
        family="output",
        reason="",
    )
    return table, found.set_index("id")["relation"]


def test_answers_that_repeat_their_remark_are_a_scope_of_their_own() -> None:
    table, relation = scores({"easy": (60, 60)})
    examples = pd.DataFrame(
        {
            "id": relation.index,
            "mode": "generated",
            "answer": ["Rome", "Paris"] * 60,
            "remark": "Some say it is Rome. ",
            "remark_answer": "Rome",
        }
    )
    (found,) = relations.repeating(table, examples, SETTINGS, 0)
    assert found.name == "questions/answers that repeat the remark"
    assert found.n == 60
    assert relations.repeating(table, examples.assign(remark=""), SETTINGS, 0) == []
    few = examples.assign(answer=["Rome"] * 20 + ["Paris"] * 100)
    assert relations.repeating(table, few, SETTINGS, 0) == []


def test_no_part_of_a_positive_control_establishes_a_claim() -> None:
    table, relation = scores({"easy": (60, 60), "hard": (60, 60)})
    rng = np.random.default_rng(0)
    ours = table.assign(score=registry.DETECTOR, value=table["label"] + 0.1 * rng.random(240))
    noise = table.assign(score="raw_probe_all", value=rng.random(240))
    examples = relation.rename("relation").reset_index().assign(mode="generated", answer="Rome")
    examples = examples.assign(remark="Rome it is. ", remark_answer="Rome")
    verdicts = {}
    for controls in ([], ["questions"]):
        judged = judgement.judge(
            pd.concat([ours, noise]), {"questions": examples}, controls, [], SETTINGS, 0
        ).ledger
        claim = judged["claim"] == "the detector beats probes on raw activations"
        verdicts[len(controls)] = judged[claim & judged["dataset"].str.contains("/")]
    assert len(verdicts[0]) == 4  # two relations, their mean, and the answers that repeat
    assert set(verdicts[0]["verdict"]) == {"established"}
    assert len(verdicts[1]) == 4
    assert set(verdicts[1]["reason"]) == {"a positive control supports no claim"}


def test_several_sets_of_repeated_answers_have_no_mean(tmp_path: Path) -> None:
    files: dict[str, Any] = {"generated": [], "parts": [], "external": []}
    for name, size in (("asked", 60), ("few", 30), ("more", 80)):
        table, relation = scores({f"{name}-easy": (size, size)})
        (tmp_path / name).mkdir()
        examples = pd.DataFrame({"id": relation.index, "relation": "capital", "mode": "generated"})
        examples = examples.assign(answer="Rome", remark="Rome it is. ", remark_answer="Rome")
        examples.to_parquet(tmp_path / name / "examples.parquet")
        table.assign(dataset=name).to_parquet(tmp_path / name / "scores.parquet")
        files["generated"].append(tmp_path / name / "examples.parquet")
        files["parts"].append(tmp_path / name / "scores.parquet")
    pd.DataFrame({"score": []}).to_csv(tmp_path / "empty.csv", index=False)
    for name in ("selections", "importances", "audits"):
        files[name] = [tmp_path / "empty.csv"]
    tables = ("selection", "importance", "metrics", "ledger", "leak_audit", "calibration")
    files |= {name: tmp_path / f"{name}.csv" for name in (*tables, "curves", "relations")}
    evaluate_detectors.main(
        **files,
        scores=tmp_path / "scores.parquet",
        controls=[],
        variants=[],
        null_rows_differ=False,
        evaluation=SETTINGS,
        seed=0,
    )
    after = {f"{name}/{relations.REPEATED}" for name in ("asked", "few", "more")}
    shown = set(pd.read_csv(tmp_path / "relations.csv")["dataset"])
    assert shown == after
    claims = pd.read_csv(tmp_path / "ledger.csv")
    judged = set(claims.loc[claims["dataset"].str.contains("/"), "dataset"])
    assert judged == after - {f"few/{relations.REPEATED}"}


def test_a_score_that_only_ranks_relations_is_at_chance_within_a_relation() -> None:
    table, relation = scores(
        {"easy": (90, 60), "hard": (60, 120), "small": (12, 30), "tiny": (5, 40)}
    )
    pooled = statistics.auroc(table["label"].to_numpy(), table["value"].to_numpy())
    found = relations.scope_results(table, relation, SETTINGS, 0)
    assert [each.name for each in found] == ["questions/easy", "questions/hard", "questions/small"]
    assert pooled > 0.65
    assert [each.auroc["entropy"] for each in found] == pytest.approx([0.5] * 3, abs=0.17)
    claimed = relations.claimed(found, SETTINGS)
    assert [each.name for each in claimed] == [
        "questions/easy",
        "questions/hard",
        "questions/mean over relations",
    ]
    assert claimed[-1].auroc["entropy"] == pytest.approx(
        np.mean([each.auroc["entropy"] for each in found[:2]])
    )


def test_a_single_relation_is_its_data_set() -> None:
    table, relation = scores({"only": (60, 60)})
    assert relations.scope_results(table, relation, SETTINGS, 0) == []
    assert relations.claimed([], SETTINGS) == []
