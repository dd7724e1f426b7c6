"""From files to tables: the scripts on synthetic data sets, one of them too small to train on."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from detect import audit_dataset, fit_detector_class, read_score_table, train_detectors
from evaluate import check_claims, evaluate_detectors
from ghosttrack import sae
from ghosttrack import scores as registry
from ghosttrack.activations import candidates, store
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.detection import run as detection_run
from ghosttrack.errors import UserError
from ghosttrack.sae import model as sae_model
from ghosttrack.settings import DetectionSettings, EvaluationSettings
from seeds import measure_seed_variance, vary_seeds

LAYERS, VARIANTS, WIDTH = [1, 3], ["default", "permuted"], 8
ARMS = {"k_002_seed_0": 0, "k_002_seed_7": 7}
DETECTION, EVALUATION = (
    DetectionSettings(folds=3, inner_folds=3, trees=10),
    EvaluationSettings(bootstrap=100),
)


def write_dataset(folder: Path, name: str, labels: np.ndarray, seed: int) -> None:
    """Examples of two tokens each.

    The label is written into layer 3 and into the log-probability.
    """
    rng, n = np.random.default_rng(seed), len(labels)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(2 * n)]
    examples = pd.DataFrame(
        {
            "id": [f"{name}-{row}" for row in range(n)],
            "group": [f"g{row // 4:03d}" for row in range(n)],
            "question": "",
            "prompt": [f"{word} is" for word in words[:n]],
            "answer": words[n:],
            "label": labels,
            "mode": "given",
            "relation": "",
            "text": [
                f"{word} is {other}." for word, other in zip(words[:n], words[n:], strict=True)
            ],
        }
    )
    measured = (
        "logprob_sum",
        "logprob_mean",
        "logprob_min",
        "logprob_first",
        "text_logprob_mean",
        "margin_mean",
        "pmi_sum",
        "pmi_mean",
        "pmi_first",
    )
    outputs = pd.DataFrame(
        {
            "id": examples["id"],
            "row_start": 2 * np.arange(n),
            "row_count": 2,
            "input_tokens": 5,
            "rank_first": 0,
            "pmi_prompts": 8,
            **{key: -np.exp(rng.standard_normal(n)) - labels for key in measured},
            **{
                key: np.exp(rng.standard_normal(n))
                for key in ("entropy_mean", "entropy_first", "margin_first")
            },
        }
    )
    if name == "small":
        outputs.loc[4, ["pmi_sum", "pmi_mean", "pmi_first"]] = np.nan
    folder.mkdir(parents=True)
    examples.to_parquet(folder / "examples.parquet")
    outputs.to_parquet(folder / "outputs.parquet")
    for layer in (None, *LAYERS):
        values = rng.standard_normal((2 * n, WIDTH)).astype(np.float32)
        values[:, 0] += 4 * np.repeat(labels, 2) * (layer == 3)
        stem = "embedding" if layer is None else f"layer_{layer:02d}"
        header = store.Header(
            "tiny", "w", layer, "embedding" if layer is None else "resid_post", None, "t"
        )
        with StoreWriter(
            folder / f"{stem}.zarr", folder / f"{stem}.json", header, rows=2 * n, d_model=WIDTH
        ) as writer:
            writer.append(store.to_block(values))
    if name == "big":
        drawn = [
            (one, sample, sample * wrong)
            for one, wrong in zip(examples["id"], labels, strict=True)
            for sample in range(3)
        ]
        pd.DataFrame(drawn, columns=["id", "sample", "cluster"]).to_parquet(
            folder / "samples.parquet"
        )
    np.savez(
        folder / "background.npz", layer_01=np.zeros((n, WIDTH)), layer_03=np.zeros((n, WIDTH))
    )
    with (folder / "prompts.npz").open("wb") as stream:
        states = rng.standard_normal((n, WIDTH)).astype("f2")
        candidates.write(
            stream,
            candidates.States({2: states}, states, np.arange(n), states[:2], np.arange(n) % 2),
        )
    for variant in VARIANTS:
        table = pd.DataFrame(
            rng.standard_normal((n, 3)), columns=["entropy_mean", "churn_births", "linkage_coasted"]
        )
        table.assign(id=examples["id"]).to_parquet(folder / f"{variant}.parquet")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_dataset(root / "big", "big", np.tile([0, 0, 1, 1], 24), seed=0)
    write_dataset(root / "small", "small", np.array([0] * 3 + [1] * 29), seed=1)
    generator = torch.Generator().manual_seed(0)
    for layer in LAYERS:
        w = torch.randn(WIDTH, 16, generator=generator)
        made = sae.Sae(
            w, torch.zeros(16), w.T.contiguous() / WIDTH, torch.zeros(WIDTH), torch.full((16,), 0.5)
        )
        folder = root / f"sae_{layer}"
        folder.mkdir()
        sae_model.save(
            made,
            folder / "sae_weights.safetensors",
            folder / "cfg.json",
            hook_name="h",
            model_name="m",
        )
    return root


def run(inputs: Path, out: Path, names: tuple[str, ...] = ("big", "small")) -> None:
    """Audit, train and evaluate data sets."""
    for name in names:
        folder, made = inputs / name, out / name
        audit_dataset.main(
            examples=folder / "examples.parquet",
            outputs=folder / "outputs.parquet",
            embedding=folder / "embedding.zarr",
            embedding_manifest=folder / "embedding.json",
            scores=made / "controls.parquet",
            checks=made / "audit.csv",
            dataset=name,
            control=False,
            detection=DETECTION,
            evaluation=EVALUATION,
            seed=0,
        )
        train_detectors.main(
            examples=folder / "examples.parquet",
            outputs=folder / "outputs.parquet",
            audited=made / "controls.parquet",
            stores=[folder / f"layer_{layer:02d}.zarr" for layer in LAYERS],
            manifests=[folder / f"layer_{layer:02d}.json" for layer in LAYERS],
            weights=[inputs / f"sae_{layer}" / "sae_weights.safetensors" for layer in LAYERS],
            counterfactual_mean=folder / "background.npz",
            prompt_states=folder / "prompts.npz",
            samples=sorted(folder.glob("samples.parquet")),
            candidates=[],
            random_decoders=[],
            closed_book=sorted(folder.glob("closed_book.parquet")),
            without_context=sorted(folder.glob("without_context.parquet")),
            track_metrics=[folder / f"{variant}.parquet" for variant in VARIANTS],
            scores=made / "scores.parquet",
            selection=made / "selection.csv",
            importance=made / "importance.csv",
            dataset=name,
            layers=LAYERS,
            variants=VARIANTS,
            detection=DETECTION,
            seed=0,
        )
    evaluate(out, out, names)


def evaluate(
    trained: Path, out: Path, names: tuple[str, ...], external: list[Path] | None = None
) -> None:
    """Evaluate data sets whose scores are in `trained`."""
    parts = {
        key: [trained / name / key for name in names]
        for key in ("scores.parquet", "selection.csv", "importance.csv", "audit.csv")
    }
    evaluate_detectors.main(
        parts=parts["scores.parquet"],
        selections=parts["selection.csv"],
        importances=parts["importance.csv"],
        audits=parts["audit.csv"],
        external=external or [],
        generated=[],
        scores=out / "scores.parquet",
        **{
            name: out / f"{name}.csv"
            for name in (
                "selection",
                "importance",
                "metrics",
                "ledger",
                "leak_audit",
                "calibration",
                "curves",
                "relations",
            )
        },
        controls=[],
        variants=VARIANTS,
        null_rows_differ=False,
        evaluation=EVALUATION,
        seed=0,
    )


@pytest.fixture(scope="module")
def results(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    run(inputs, out)
    return out


CLASS = """
import numpy as np

class Mine:
    def fit(self, examples, labels):
        means, tokens = examples.activations, examples.token_activations
        assert list(means) == list(tokens) == list(examples.codes) == [1, 3]
        for layer, mean in means.items():
            of_tokens = [part.mean(axis=0) for part in tokens[layer]]
            np.testing.assert_allclose(mean, of_tokens, rtol=1e-3, atol=1e-3)
        assert examples.codes[3].shape == (len(labels), 16)
        assert len(examples.tracks) == len(examples.outputs) == len(examples.texts) == len(labels)
        assert examples.outputs["input_tokens"].eq(5).all()
        low, high = (means[3][labels == label, 0].mean() for label in (0, 1))
        self.sign = np.sign(high - low)

    def score(self, examples):
        return self.sign * examples.activations[3][:, 0]
"""


def test_a_table_and_a_class_from_outside_get_rows_and_claims_and_change_no_other_row(
    inputs: Path, results: Path, tmp_path: Path
) -> None:
    names = ("big", "small")
    (tmp_path / "mine.py").write_text(CLASS)
    external = [tmp_path / f"{name}.parquet" for name in names]
    for name, scores in zip(names, external, strict=True):
        folder = inputs / name
        fit_detector_class.main(
            source=tmp_path / "mine.py",
            examples=folder / "examples.parquet",
            outputs=folder / "outputs.parquet",
            audited=results / name / "controls.parquet",
            stores=[folder / f"layer_{layer:02d}.zarr" for layer in LAYERS],
            manifests=[folder / f"layer_{layer:02d}.json" for layer in LAYERS],
            weights=[inputs / f"sae_{layer}" / "sae_weights.safetensors" for layer in LAYERS],
            track_metrics=[folder / "default.parquet"],
            tokens=[],
            scores=scores,
            dataset=name,
            detector_class="mine",
            module="",
            class_name="Mine",
            reads=["activations", "token_activations", "codes", "outputs", "tracks"],
            layers=LAYERS,
            seed=0,
        )
    examples = pd.read_parquet(inputs / "big" / "examples.parquet")
    table = pd.DataFrame({"id": examples["id"], "score": -examples["label"] * 1.0})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "table.csv", index=False)
    read_score_table.main(
        table=tmp_path / "table.csv",
        audited=[results / name / "controls.parquet" for name in names],
        examples=[inputs / name / "examples.parquet" for name in names],
        scores=tmp_path / "table.parquet",
        score_table="sure",
        datasets=list(names),
        lower_is_hallucinated=True,
        tokens="mean",
    )
    evaluate(results, tmp_path, names, [*external, tmp_path / "table.parquet"])
    metrics = registry.read(tmp_path / "metrics.csv", registry.METRICS)
    own = metrics["family"] == "external"
    rows = metrics[own & metrics["dataset"].isin(names)].set_index(["dataset", "score"])
    assert rows["auroc"]["big", "table.sure"] == 1
    assert rows["auroc"]["big", "class.mine"] > 0.9
    assert np.isnan(rows["auroc"]["small", "class.mine"])
    assert "groups are needed" in rows["reason"]["small", "class.mine"]
    before = registry.read(results / "metrics.csv", registry.METRICS)
    pd.testing.assert_frame_equal(metrics[~own].reset_index(drop=True), before)
    ledger = registry.read(tmp_path / "ledger.csv", registry.LEDGER)
    claimed = ledger[ledger["claim"].str.endswith(" beats its best control")]
    assert set(zip(claimed["dataset"], claimed["ours"], strict=True)) >= {
        ("big", "table.sure"),
        ("big", "class.mine"),
    }


def test_every_table_has_the_columns_its_readers_expect(results: Path) -> None:
    for name in ("metrics", "ledger", "leak_audit", "curves", "calibration"):
        assert len(registry.read(results / f"{name}.csv", getattr(registry, name.upper())))


def test_the_planted_signal_is_found_in_its_layer(results: Path) -> None:
    metrics = registry.read(results / "metrics.csv", registry.METRICS)
    found = metrics[metrics["dataset"] == "big"].set_index("score")["auroc"]
    assert found["ghosttrack"] > 0.9
    assert found["raw_probe"] > 0.9
    assert abs(found["text_only"] - 0.5) < 0.2
    selection = pd.read_csv(results / "selection.csv")
    assert set(selection.loc[selection["score"] == "raw_probe", "layer"]) == {3}


def test_a_data_set_too_small_is_reported_with_its_reason_and_not_pooled(results: Path) -> None:
    metrics = registry.read(results / "metrics.csv", registry.METRICS).set_index(
        ["dataset", "score"]
    )
    small = metrics.loc[("small", "ghosttrack")]
    assert np.isnan(small["auroc"])
    assert small["reason"] == "3 of 32 texts are true, in 1 groups: 6 groups are needed for 3 folds"
    assert np.isfinite(metrics.loc[("small", "answer_logprob_mean"), "auroc"]), "needs no training"
    assert metrics.loc[("all_given", "ghosttrack"), "n"] == 96
    claims = pd.read_csv(results / "ledger.csv")
    assert set(claims.loc[claims["dataset"] == "small", "verdict"]) == {registry.NOT_ESTABLISHED}


def test_scores_that_an_example_lacks_are_not_computed_and_say_why(results: Path) -> None:
    metrics = registry.read(results / "metrics.csv", registry.METRICS).set_index(
        ["dataset", "score"]
    )
    assert np.isfinite(metrics.loc[("big", "pmi"), "auroc"])
    assert metrics.loc[("big", "self_consistency"), "auroc"] == 1.0
    assert np.isnan(metrics.loc[("small", "pmi"), "auroc"])
    assert metrics.loc[("small", "pmi"), "reason"].startswith(
        "1 of 32 answers have no other prompts"
    )
    assert ("small", "self_consistency") not in metrics.index


def test_a_counterfactual_mean_of_other_layers_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "background.npz", layer_02=np.zeros((4, 3)))
    assert list(detection_run.read_counterfactual_mean(tmp_path / "background.npz", [2], 4)) == [
        "layer_02"
    ]
    for layers, examples in (([2, 3], 4), ([2], 5)):
        with pytest.raises(UserError, match=r"background\.npz holds layer_02; expected layer_02"):
            detection_run.read_counterfactual_mean(tmp_path / "background.npz", layers, examples)


def test_a_conflict_set_has_the_scores_on_the_remarks_own_answer(
    inputs: Path, tmp_path: Path
) -> None:
    work = tmp_path / "inputs"
    shutil.copytree(inputs, work)
    folder = work / "big"
    examples, outputs = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("examples", "outputs")
    )
    agrees = np.arange(len(examples)) % 2 == 0
    false = (examples["label"] == 1) == agrees  # whether the remark is false
    asserted = np.random.default_rng(3).standard_normal(len(examples)) - 4.0 * false
    examples = examples.assign(
        remark="So. ",
        wording=np.where(np.arange(len(examples)) // 4 % 2 == 0, "hearsay", "belief"),
        remark_answer=np.where(agrees, examples["answer"], "other"),
    )
    examples.to_parquet(folder / "examples.parquet")
    outputs.drop(columns=["row_start", "row_count"]).to_parquet(folder / "closed_book.parquet")
    with pytest.raises(UserError, match=r"no columns remark_\*: delete"):
        run(work, tmp_path / "older", ("big",))
    outputs.assign(
        remark_logprob_sum=asserted,
        remark_logprob_mean=asserted,
        remark_logprob_first=asserted,
        remark_entropy_first=0.0,
    ).to_parquet(folder / "outputs.parquet")
    run(work, tmp_path / "out", ("big",))
    metrics = registry.read(tmp_path / "out" / "metrics.csv", registry.METRICS)
    found = metrics[metrics["dataset"] == "big"].set_index("score")
    assert found.loc[registry.REMARK_LOGPROB, "auroc"] > 0.95
    assert found.loc[registry.REMARK_LOGPROB, "family"] == "output"
    used = pd.read_csv(tmp_path / "out" / "importance.csv").groupby("score")["feature"].agg(set)
    knowing = {score for score, names in used.items() if any("remark_" in str(n) for n in names)}
    assert knowing == {
        registry.OUTPUT_AND_AGREEMENT,
        registry.SAME_PASS,
        registry.CLOSED_BOOK_AND_CONTEXT,
        registry.WITH_AGREEMENT,
        registry.WITH_CLOSED_BOOK,
    }
    assert not [name for names in used for name in names if "remark_support" in str(name)]


def test_all_scores_share_their_folds(results: Path) -> None:
    scores = pd.read_parquet(results / "scores.parquet").query("dataset == 'big'")
    assert (scores.groupby("id")["fold"].nunique() == 1).all()
    assert (scores.groupby("group")["fold"].nunique() == 1).all()
    assert (scores.groupby("score").size() == 96).all()


def test_two_runs_write_the_same_bytes(inputs: Path, results: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path)
    for path in sorted(results.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(results)).read_bytes(), path.name


def test_strict_mode_passes_or_names_the_claim(results: Path, tmp_path: Path) -> None:
    table = pd.read_csv(results / "ledger.csv")
    table.loc[table["claim"] == registry.HEADLINE, "verdict"] = registry.ESTABLISHED
    table.to_csv(tmp_path / "won.csv", index=False)
    check_claims.main(ledger=tmp_path / "won.csv", passed=tmp_path / "passed.json")
    assert (tmp_path / "passed.json").exists()
    table["verdict"] = registry.NOT_ESTABLISHED
    table.to_csv(tmp_path / "lost.csv", index=False)
    with pytest.raises(UserError, match="strict: true"):
        check_claims.main(ledger=tmp_path / "lost.csv", passed=tmp_path / "never.json")


def vary(inputs: Path, results: Path, name: str, seeds: Path, sweeps: list[Path]) -> None:
    """Score a data set under the run's seed 0 and the fold seed 3, and with the SAEs of ARMS."""
    folder = inputs / name
    vary_seeds.main(
        examples=folder / "examples.parquet",
        outputs=folder / "outputs.parquet",
        audited=results / name / "controls.parquet",
        stores=[folder / f"layer_{layer:02d}.zarr" for layer in LAYERS],
        manifests=[folder / f"layer_{layer:02d}.json" for layer in LAYERS],
        weights=[inputs / f"sae_{layer}" / "sae_weights.safetensors" for layer in LAYERS],
        counterfactual_mean=folder / "background.npz",
        prompt_states=folder / "prompts.npz",
        samples=sorted(folder.glob("samples.parquet")),
        without_context=sorted(folder.glob("without_context.parquet")),
        sweeps=sweeps,
        seeds=seeds,
        dataset=name,
        layers=LAYERS,
        arms=ARMS,
        detection=DETECTION.model_copy(update={"fold_seeds": [3]}),
        seed=0,
    )


def test_other_seeds_are_scored_and_a_set_too_small_has_none(
    inputs: Path, results: Path, tmp_path: Path
) -> None:
    for layer in LAYERS:
        for place, name in enumerate(ARMS):  # the second arm has the other layer's SAE
            shutil.copytree(
                inputs / f"sae_{LAYERS[::-1][LAYERS.index(layer)] if place else layer}",
                tmp_path / str(layer) / name,
            )
    for name in ("big", "small"):
        sweeps = [tmp_path / str(layer) for layer in LAYERS]
        vary(inputs, results, name, tmp_path / f"{name}.csv", sweeps)
    measure_seed_variance.main(
        metrics=results / "metrics.csv",
        seeds=[tmp_path / "big.csv", tmp_path / "small.csv"],
        all_seeds=tmp_path / "all.csv",
        variance=tmp_path / "variance.csv",
        datasets=["big", "small"],
        controls=[],
    )
    table = pd.read_csv(tmp_path / "all.csv")
    assert set(table["dataset"]) == {"big"}
    own = table[table["score"] == "ghosttrack"].set_index(["source", "seed"])["auroc"]
    assert set(own.index) == {("folds", 0), ("folds", 3), ("sae", 0), ("sae", 7)}
    assert own["sae", 0] == own["folds", 0]
    metrics = pd.read_csv(results / "metrics.csv").query(
        "dataset == 'big' and score == 'ghosttrack'"
    )
    assert own["folds", 0] == pytest.approx(metrics["auroc"].iloc[0], abs=1e-6)
    variance = pd.read_csv(tmp_path / "variance.csv")
    assert set(variance["dataset"]) == {"big", "all_given"}
    assert (variance["seeds"] == 2).all()


def test_seeds_of_a_data_set_with_contexts_vary_the_detector_that_reads_their_support(
    inputs: Path, tmp_path: Path
) -> None:
    work = tmp_path / "inputs"
    shutil.copytree(inputs, work)
    outputs = pd.read_parquet(work / "big" / "outputs.parquet")
    labels = pd.read_parquet(work / "big" / "examples.parquet")["label"]
    (work / "big" / "samples.parquet").unlink()  # separates the classes by itself
    rng = np.random.default_rng(5)
    outputs = outputs.assign(
        **{name: rng.standard_normal(len(labels)) - 5 for name in outputs if "logprob" in name}
    ).drop(columns=["pmi_sum", "pmi_mean", "pmi_first", "margin_mean"])
    outputs.to_parquet(work / "big" / "outputs.parquet")
    support = rng.standard_normal(len(labels)) - labels
    of_token = ((outputs["logprob_sum"] - support) / 2).repeat(2)
    plain = pd.DataFrame({"example": of_token.index, "logprob": of_token.to_numpy()})
    plain.assign(entropy=1.0).to_parquet(work / "big" / "without_context.parquet")
    run(work, tmp_path / "out", ("big",))
    vary(work, tmp_path / "out", "big", tmp_path / "seeds.csv", [])
    metrics = registry.read(tmp_path / "out" / "metrics.csv", registry.METRICS)
    expected = metrics[metrics["dataset"] == "big"].set_index("score")["auroc"]
    found = pd.read_csv(tmp_path / "seeds.csv").query("seed == 0").set_index("score")["auroc"]
    for score, auroc in found.items():
        assert auroc == pytest.approx(expected[score], abs=1e-6), score
