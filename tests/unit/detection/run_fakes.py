"""A small finished run on disk, with a random model, SAEs and stores, for the saved detector."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import small_models
import torch

from detect import save_detector, save_statement_detector
from extract import check_model, extract_examples, read_statements
from ghosttrack import scores as registry
from ghosttrack.activations import limits
from ghosttrack.activations.example_tokens import Positions
from ghosttrack.detection import audit, saved_statements
from ghosttrack.sae import model as sae_model
from ghosttrack.settings import DetectionSettings, InferenceSettings

LAYERS, D_SAE = [1, 2], 24
TRUE = ("Paris", "gold", "city", "capital", "number")
FALSE = ("Ada", "79", "Lovelace", "atomic", "São")


# Features by number modulo 7: active on many tokens, or on tokens without anything in common.
DENSE, VAGUE = 0, 1


def make(
    run: Path,
    groups: int = 40,
    seed: int = 0,
    positions: Positions = "answer",
    dtype: str = "float32",
    factor: int | None = None,
) -> None:
    """Write model, SAEs, examples and stores; the first word of the answer determines the label.

    Args:
        dtype: of the forward pass, as in model_check.json.
        factor: multiplies the residual stream, a power of two; such a model is checked.
    """
    model = small_models.make_model("gpt2", seed)
    if factor is not None:
        model = small_models.magnified(model, factor)
    small_models.save(model, small_models.make_tokenizer(), run / "model")
    if factor is None:
        small_models.save_check(run, dtype=dtype)
    else:
        check_model.main(
            weights=run / "model" / "model.safetensors",
            check=run / "model_check.json",
            table=run / "model_check.csv",
            site="resid_post",
            min_scale=1,
            threads=1,
        )
    generator = torch.Generator().manual_seed(seed)
    for layer in LAYERS:
        shape = small_models.WIDTH, D_SAE
        weights = torch.randn(shape, generator=generator)
        made = sae_model.Sae(
            weights / (factor or 1),
            torch.zeros(D_SAE),
            torch.nn.functional.normalize(weights.T.contiguous(), dim=1) * (factor or 1),
            torch.zeros(small_models.WIDTH),
            torch.full((D_SAE,), 0.5),
        )
        folder = run / "saes" / f"layer_{layer:02d}"
        folder.mkdir(parents=True)
        sae_model.save(
            made,
            folder / "sae_weights.safetensors",
            folder / "cfg.json",
            hook_name="h",
            model_name="m",
        )
        features = run / "features"
        features.mkdir(exist_ok=True)
        feature_table(layer).to_parquet(features / f"layer_{layer:02d}.parquet")
    for name in ("facts", "others"):
        _dataset(run, name, groups, positions, np.random.default_rng([seed, len(name)]))
    (run / "audits").mkdir()
    for name in ("facts", "others"):
        text_only(name, control=name == "others").to_csv(
            run / "audits" / f"{name}.csv", index=False
        )


def feature_table(layer: int) -> pd.DataFrame:
    """The columns from which features are named.

    A feature is active on its own token in several documents. Every seventh is dense, and the
    contexts of every other seventh have nothing in common.
    """
    numbers, documents = np.arange(D_SAE), np.arange(6)
    kind = numbers % 7
    return pd.DataFrame(
        {
            "feature": numbers,
            "density": np.where(kind == DENSE, 0.2, 0.01),
            "output_text": [[f" out{number}"] for number in numbers],
            "context_row": [list(6 * number + documents) for number in numbers],
            "context_document": [list(documents) for _ in numbers],
            "context_before": [[f"a{number}b{each}" for each in documents] for number in numbers],
            "context_token": [
                [
                    f" f{layer}.{number}" + (f".{each}" if kind[number] == VAGUE else "")
                    for each in documents
                ]
                for number in numbers
            ],
            "context_after": [[f"c{number}d{each}" for each in documents] for number in numbers],
        }
    )


def text_only(
    dataset: str, *, mode: str = "given", low: float = 0.4, control: bool = False
) -> pd.DataFrame:
    """The row `text_only` of a leak audit."""
    row = {
        "dataset": dataset,
        "mode": mode,
        "check": registry.TEXT_ONLY,
        "verdict": "pass",
        "low": low,
        "high": low + 0.2,
    }
    return pd.DataFrame([dict.fromkeys(audit.COLUMNS, 0.5) | row | {"control": control}])


def without_statements(run: Path) -> None:
    """A detector of whole statements that could not be fitted; `save` comes first."""
    detection = run / "detection"
    about = json.loads((detection / "detector.json").read_text(encoding="utf-8"))
    saved_statements.save(
        None,
        {"reason": "too few", **{key: about[key] for key in ("model", "site", "model_precision")}},
        detection / saved_statements.WEIGHTS_NAME,
        detection / saved_statements.ABOUT_NAME,
    )


def with_statements(run: Path) -> None:
    """Read statements of all kinds and fit the detector of whole statements; `save` comes first."""
    folder, detection = run / "statements", run / "detection"
    statements, pooled = folder / "statements.parquet", folder / "pooled.safetensors"
    manifest = folder / "pooled.json"
    read_statements.main(
        weights=run / "model" / "model.safetensors",
        check=run / "model_check.json",
        statements=statements,
        pooled=pooled,
        manifest=manifest,
        layers=LAYERS,
        site="resid_post",
        texts_per_kind=8,
        seed=0,
        batch=8,
        threads=1,
    )
    save_statement_detector.main(
        statements=statements,
        pooled=pooled,
        manifest=manifest,
        source=run / "model" / "source.json",
        detector=detection / saved_statements.WEIGHTS_NAME,
        about=detection / saved_statements.ABOUT_NAME,
        kinds=detection / "kinds.csv",
        curve=detection / "risk_coverage.csv",
    )


def save(
    run: Path,
    datasets: tuple[str, ...] = ("facts", "others"),
    folds: int = 4,
    positions: Positions = "answer",
) -> None:
    """Fit and save the detector."""
    detection = run / "detection"
    save_detector.main(
        audits=[run / "audits" / f"{name}.csv" for name in datasets],
        examples=[run / "datasets" / name / "examples.parquet" for name in datasets],
        outputs=[run / "examples" / name / "outputs.parquet" for name in datasets],
        weights=[
            run / "saes" / f"layer_{layer:02d}" / "sae_weights.safetensors" for layer in LAYERS
        ],
        cfgs=[run / "saes" / f"layer_{layer:02d}" / "cfg.json" for layer in LAYERS],
        source=run / "model" / "source.json",
        detector=detection / "detector.safetensors",
        about=detection / "detector.json",
        token_scores=detection / "token_scores.parquet",
        effects=detection / "feature_effects.parquet",
        datasets=list(datasets),
        layers=LAYERS,
        site="resid_post",
        positions=positions,
        detection=DetectionSettings(folds=folds),
        seed=0,
    )
    without_statements(run)


def _dataset(
    run: Path, name: str, groups: int, positions: Positions, rng: np.random.Generator
) -> None:
    rows = []
    for group in range(groups):
        for label, words in enumerate((TRUE, FALSE)):
            answer = " ".join(rng.choice(words, 1 + group % 2))
            prompt = f"Q {name} {group} is"
            rows.append(
                {
                    "id": f"{name}-{group}-{label}",
                    "group": f"g{group}",
                    "relation": name,
                    "subject": str(group),
                    "mode": "given",
                    "text": f"{prompt} {answer}.",
                    "prompt": prompt,
                    "answer": answer,
                    "question": "",
                    "label": label,
                    "answer_start": len(prompt) + 1,
                    "answer_end": len(prompt) + 1 + len(answer),
                }
            )
    folder = run / "datasets" / name
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "examples.parquet")
    extract(run, name, positions)


def extract(run: Path, name: str, positions: Positions = "answer") -> None:
    """Extract the activations of a data set's examples, in the precision of the run's check."""
    precision = limits.read_precision(run / "model_check.json")
    folder, examples = run / "datasets" / name, run / "examples" / name
    stems = [examples / f"layer_{layer:02d}" for layer in LAYERS]
    extract_examples.main(
        examples=folder / "examples.parquet",
        weights=run / "model" / "model.safetensors",
        check=run / "model_check.json",
        stores=[stem.with_suffix(".zarr") for stem in stems],
        manifests=[stem.with_suffix(".json") for stem in stems],
        embedding=examples / "embedding.zarr",
        embedding_manifest=examples / "embedding.json",
        tokens=examples / "tokens.parquet",
        outputs=examples / "outputs.parquet",
        site="resid_post",
        dataset=name,
        batch=8,
        threads=1,
        counterfactual_mean=examples / "background.npz",
        prompt_states=examples / "prompts.npz",
        whether_true=False,
        inference=InferenceSettings.model_validate({"dtype": precision.dtype}),
        prompts=2,
        seed=0,
        positions=positions,
    )
