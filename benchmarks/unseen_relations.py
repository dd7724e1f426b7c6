"""The default detector and its controls on relations that were not used to design it.

    PYTHONPATH=workflow_scripts python benchmarks/unseen_relations.py results/smollm2-135m --keep DIR

The features and the stack of the detector were chosen by scores on the data sets of the default
run. The tables named here were never among them. Each table is read with the run's model and SAEs,
trained in grouped folds like every data set, and judged with the same confidence intervals. What is
already in DIR is not read again.

The detector and its controls are also trained on the run's strict sets alone and tested on the
tables, so the tables' labels have no influence. Tables whose text gives the label away are marked:
they show a difference on the same texts, but support no claim.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from finished_run import detection_files, layers_of
from measure import cost, show

from extract import extract_examples
from ghosttrack import scores as registry
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.detection import audit, representations, transfer
from ghosttrack.detection import run as detection_run
from ghosttrack.evaluation import claims, ledger, scoreboard, transfer_tables
from ghosttrack.facts import statements
from ghosttrack.runtime import files, tables
from ghosttrack.settings import DetectionSettings, EvaluationSettings

# Strict tables, then positive controls. None is a data set of the default run.
TABLES = ("element_number", "currencies", "translation", "currencies_surface")
SHOWN = (
    "ghosttrack",
    "ghosttrack.without_sae",
    "output_regression",
    "pmi",
    "answer_logprob_mean",
    "raw_probe_all",
    "text_only",
)


def read(
    run: Path, home: Path, table: str, layers: list[int], detection: DetectionSettings, seed: int
) -> None:
    """Build the statements of a table and extract their answer tokens, in the layout of a run."""
    examples, folder = home / "datasets" / table / "examples.parquet", home / "examples" / table
    if (folder / "outputs.parquet").is_file():
        return
    with files.atomic_write(examples, "wb") as stream:
        statements.build_statements(table, seed).to_parquet(stream, index=False)
    extract_examples.main(
        examples=examples,
        weights=run / "model" / "model.safetensors",
        check=run / "model_check.json",
        stores=[folder / f"layer_{layer:02d}.zarr" for layer in layers],
        manifests=[folder / f"layer_{layer:02d}.json" for layer in layers],
        embedding=folder / "embedding.zarr",
        embedding_manifest=folder / "embedding.json",
        counterfactual_mean=folder / "background.npz",
        prompt_states=folder / "prompts.npz",
        tokens=folder / "tokens.parquet",
        outputs=folder / "outputs.parquet",
        site="resid_post",
        positions="answer",
        prompts=detection.pmi_prompts,
        whether_true=False,
        dataset=table,
        batch=32,
        threads=1,
        seed=seed,
    )


def scores(
    run: Path, home: Path, table: str, layers: list[int], detection: DetectionSettings, seed: int
) -> pd.DataFrame:
    """Out-of-fold scores without tracks, in the format of detection/scores.parquet."""
    folder = home / "examples" / table
    examples = tables.read_parquet(home / "datasets" / table / "examples.parquet")
    outputs = tables.read_parquet(folder / "outputs.parquet")
    store = ActivationStore.open([folder / "embedding.zarr"], [folder / "embedding.json"])
    embedding = representations.span_mean(
        np.asarray(store.read()), representations.spans(outputs, store.rows, table)
    )
    found = audit.run(examples, embedding, table, True, detection, EvaluationSettings(), seed)
    paths = detection_files(folder, run, layers)
    return detection_run.train_dataset(
        table, examples, outputs, found.scores, paths, layers, [], detection, seed
    ).scores


def transferred(
    run: Path,
    home: Path,
    names: list[str],
    layers: list[int],
    settings: EvaluationSettings,
    seed: int,
) -> pd.DataFrame:
    """left_out.csv of detectors trained on the run's strict sets and tested on the tables."""
    metrics = registry.read(run / "evaluation" / "metrics.csv", registry.METRICS)
    known = [
        name for name in dict.fromkeys(metrics["dataset"]) if (run / "examples" / name).is_dir()
    ]
    strict = registry.kinds(metrics, known, list(statements.CONTROL_SETS)).text_controlled
    homes = {**dict.fromkeys(strict, run), **dict.fromkeys(names, home)}
    examples = {
        name: tables.read_parquet(at / "datasets" / name / "examples.parquet")
        for name, at in homes.items()
    }
    outputs = {
        name: tables.read_parquet(at / "examples" / name / "outputs.parquet")
        for name, at in homes.items()
    }
    paths = {
        name: transfer.TransferFiles(
            [at / "examples" / name / f"layer_{layer:02d}.zarr" for layer in layers],
            [at / "examples" / name / f"layer_{layer:02d}.json" for layer in layers],
            at / "examples" / name / "background.npz",
        )
        for name, at in homes.items()
    }
    weights = {
        layer: run / "saes" / f"layer_{layer:02d}" / "sae_weights.safetensors" for layer in layers
    }
    pool = transfer.pool(examples, outputs, transfer.read_blocks(outputs, paths, weights))
    part = np.unique(transfer.parts(pool).astype(str), return_inverse=True)[1]
    training = transfer.TransferTraining(
        "the run's sets", np.where(np.isin(pool.dataset, strict), part, -1).astype(np.int64)
    )
    scored = transfer.scores(pool, [training])
    none = pd.DataFrame(columns=["dataset", "score"])
    return transfer_tables.judge(pool, scored, [training.name], none, settings, seed).left_out


def main() -> None:
    """Extract, train, judge and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, results/NAME")
    parser.add_argument(
        "--keep", type=Path, required=True, help="directory of the extracted tables"
    )
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=statements.list_tables())
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    layers = layers_of(given.run)
    detection, settings = DetectionSettings(audit="report"), EvaluationSettings()
    scope_results, reading = [], {}
    for table in given.tables:
        reading[table] = cost(
            lambda: read(given.run, given.keep, table, layers, detection, given.seed)
        )
        found = scores(given.run, given.keep, table, layers, detection, given.seed)
        scope_results.append(
            scoreboard.of_dataset(found, table in statements.CONTROL_SETS, settings, given.seed)
        )
        where = scope_results[-1]
        rows = [
            [row["score"], row["auroc"], row["auroc_low"], row["auroc_high"]]
            for row in where.rows
            if row["score"] in SHOWN
        ]
        show(
            f"{table}: {where.n} texts, {where.groups} groups",
            ["score", "AUROC", "low", "high"],
            rows,
            "scores",
        )
    judged = ledger.judge(
        [*scope_results, *scoreboard.pools(scope_results, settings.confidence)], [], settings
    )
    kept = judged[judged["claim"].isin([claim.sentence for claim in claims.claims([])[:2]])]
    columns = [
        "dataset",
        "claim",
        "control",
        "difference",
        "difference_low",
        "difference_high",
        "verdict",
        "reason",
    ]
    show(
        "The default detector against its controls",
        columns,
        kept[columns].to_numpy().tolist(),
        "claims",
    )
    found = transferred(given.run, given.keep, given.tables, layers, settings, given.seed)
    columns = [
        "dataset",
        "control",
        "auroc_ours",
        "auroc_control",
        "difference",
        "difference_low",
        "difference_high",
    ]
    show(
        "Trained on the run's strict sets alone",
        columns,
        found[columns].to_numpy().tolist(),
        "transfer",
    )
    show(
        "Extraction of the tables",
        ["table", "CPU s", "s"],
        [[name, *spent] for name, spent in reading.items()],
        "cost",
    )


if __name__ == "__main__":
    main()
