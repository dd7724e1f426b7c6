"""The default detector on relations that played no part in its design, beside its controls.

    PYTHONPATH=workflow_scripts python benchmarks/unseen_relations.py results/smollm2-135m --keep DIR

How statements are read and what the detector stacks was chosen by looking at scores on the sets of the default run. The tables
named here were never among them. Each is read with the run's model and SAEs, trained in grouped folds as every set is, and judged
by the same intervals; what is already in DIR is not read again. Tables whose text gives the label away are marked: they show
a difference on the same texts, but support no claim.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import cost, show

import extract_examples
from ghosttrack import files, frames
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.detection import audit, representations
from ghosttrack.detection import run as detection_run
from ghosttrack.evaluation import ledger, scoreboard
from ghosttrack.facts import statements
from ghosttrack.settings import DetectionSettings, EvaluationSettings

# Strict tables first, then positive controls. None is a set of the default run.
TABLES = ("element_number", "currencies", "translation", "currencies_surface")
SHOWN = (
    "ghosttrack", "ghosttrack.without_sae", "output_regression", "pmi", "answer_logprob_mean", "raw_probe_all", "text_only",
)  # fmt: skip


def read(run: Path, home: Path, table: str, layers: list[int], detection: DetectionSettings, seed: int) -> None:
    """Build the statements of a table and read their answer tokens, in the folders of a run."""
    examples, folder = home / "datasets" / table / "examples.parquet", home / "examples" / table
    if (folder / "outputs.parquet").is_file():
        return
    with files.atomic_write(examples, "wb") as stream:
        statements.build_statements(table, seed).to_parquet(stream, index=False)
    extract_examples.main(
        examples=examples, weights=run / "model" / "model.safetensors",
        stores=[folder / f"layer_{layer:02d}.zarr" for layer in layers],
        manifests=[folder / f"layer_{layer:02d}.json" for layer in layers],
        embedding=folder / "embedding.zarr", embedding_manifest=folder / "embedding.json",
        background=folder / "background.npz", tokens=folder / "tokens.parquet", outputs=folder / "outputs.parquet",
        site="resid_post", prompts=detection.other_prompts, dataset=table, batch=32, threads=1, seed=seed,
    )  # fmt: skip


def scores(
    run: Path, home: Path, table: str, layers: list[int], detection: DetectionSettings, seed: int
) -> pd.DataFrame:
    """Out-of-fold scores of everything but tracks, in the long form of detection/scores.parquet."""
    folder = home / "examples" / table
    examples = frames.read_parquet(home / "datasets" / table / "examples.parquet")
    outputs = frames.read_parquet(folder / "outputs.parquet")
    store = ActivationStore.open([folder / "embedding.zarr"], [folder / "embedding.json"])
    embedding = representations.span_mean(np.asarray(store.read()), representations.spans(outputs, store.rows, table))
    found = audit.run(examples, embedding, table, True, detection, EvaluationSettings(), seed)
    paths = detection_run.Files(
        [folder / f"layer_{layer:02d}.zarr" for layer in layers],
        [folder / f"layer_{layer:02d}.json" for layer in layers],
        [run / "saes" / f"layer_{layer:02d}" / "sae_weights.safetensors" for layer in layers],
        folder / "background.npz",
        [],
    )
    return detection_run.train_dataset(
        table, examples, outputs, found.scores, paths, layers, [], detection, seed
    ).scores


def main() -> None:
    """Read, train, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, results/NAME")
    parser.add_argument("--keep", type=Path, required=True, help="where to keep what was read of the tables")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=statements.list_tables())
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    layers = sorted(int(path.name.removeprefix("layer_")) for path in (given.run / "saes").glob("layer_*"))
    detection, settings = DetectionSettings(audit="report"), EvaluationSettings()
    standings, reading = [], {}
    for table in given.tables:
        reading[table] = cost(lambda: read(given.run, given.keep, table, layers, detection, given.seed))  # noqa: B023
        found = scores(given.run, given.keep, table, layers, detection, given.seed)
        standings.append(scoreboard.of_dataset(found, table in statements.CONTROL_SETS, settings, given.seed))
        where = standings[-1]
        rows = [
            [row["signal"], row["auroc"], row["auroc_low"], row["auroc_high"]]
            for row in where.rows if row["signal"] in SHOWN
        ]  # fmt: skip
        show(f"{table}: {where.n} texts, {where.groups} groups", ["signal", "AUROC", "low", "high"], rows)
    judged = ledger.judge([*standings, *scoreboard.pools(standings, settings.confidence)], [], settings)
    kept = judged[judged["claim"].isin([claim.sentence for claim in ledger.claims([])[:2]])]
    columns = ["dataset", "claim", "control", "difference", "difference_low", "difference_high", "verdict", "reason"]
    show("the default detector against its controls", columns, kept[columns].to_numpy().tolist())
    show("reading the tables", ["table", "CPU s", "s"], [[name, *spent] for name, spent in reading.items()])


if __name__ == "__main__":
    main()
