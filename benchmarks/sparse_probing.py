"""Sparse probing: how well one or a few features tell what a text is about.

    python benchmarks/sparse_probing.py results/NAME --layers 16 --peers VENV

The tasks are those of the run's data sets of given texts: does this answer belong to data set X or
to another one? Features are means over the answer's tokens. The best features are those with the
largest difference of means in training, in units of their standard deviation; a logistic regression
on them is judged by its accuracy on texts of other groups. Positive and negative texts are equally
many, so chance is .5.

All SAEs are trained here on the same rows, with the same order, steps and k. References: SAELens's
BatchTopK, an SAE whose decoder stays random, principal components, and the activation's channels.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from measure import show
from sae_quality import OneEpoch, saelens
from sae_quality import ours as train_ours
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from storage_modes import stores

from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.planning.configuration import load
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.sae.training import Dictionary, TrainingLayer, train

Floats = npt.NDArray[np.float32]
COUNTS = (1, 5)
SPLITS = 5


def answers(run: Path, layer: int, datasets: list[str]) -> tuple[Floats, Floats, pd.DataFrame]:
    """Answer-token activations of all data sets, and the texts they belong to.

    Returns:
        (tokens, d_model) activations; (tokens,) row of the text of each; table of the texts with
        `dataset` and `group`.
    """
    values: list[Any] = []
    owners: list[Any] = []
    texts: list[pd.DataFrame] = []
    first = 0
    for dataset in datasets:
        folder = run / "examples" / dataset
        name = f"layer_{layer:02d}"
        store = ActivationStore.open([folder / f"{name}.zarr"], [folder / f"{name}.json"])
        tokens = pd.read_parquet(folder / "tokens.parquet")
        examples = pd.read_parquet(run / "datasets" / dataset / "examples.parquet")
        values.append(store.read().astype(np.float32))
        owners.append(first + tokens["example"].to_numpy())
        texts.append(examples[["group"]].assign(dataset=dataset))
        first += len(examples)
    return np.concatenate(values), np.concatenate(owners), pd.concat(texts, ignore_index=True)


def mean_of(features: Floats, owners: Any, texts: int) -> Floats:
    """Mean of each feature over the tokens of a text, (texts, features)."""
    sums = np.zeros((texts, features.shape[1]), dtype=np.float32)
    np.add.at(sums, owners, features)
    counts = np.maximum(np.bincount(owners, minlength=texts), 1).astype(np.float32)
    means: Floats = sums / counts[:, None]
    return means


def accuracy(features: Floats, truth: Any, groups: Any, count: int, seed: int) -> float:
    """Held-out accuracy of a logistic regression on the `count` best features.

    Args:
        features: (texts, features).
        truth: (texts,) 0 or 1, equally many of both.
        groups: (texts,) no group is in training and test.
    """
    names = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    training = np.isin(groups, chosen)
    x, y = features[training], truth[training]
    spread = x.std(axis=0) + 1e-6
    difference = np.abs(x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)) / spread
    best = np.argsort(-difference)[:count]
    scaler = StandardScaler().fit(x[:, best])
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(x[:, best]), y)
    return float(model.score(scaler.transform(features[~training][:, best]), truth[~training]))


def balanced(wanted: Any, seed: int) -> Any:
    """Indices of all positive rows and of as many random negative ones."""
    positive, negative = np.flatnonzero(wanted), np.flatnonzero(~wanted)
    size = min(len(positive), len(negative))
    generator = np.random.default_rng(seed)
    return np.sort(
        np.concatenate(
            [
                generator.choice(positive, size, replace=False),
                generator.choice(negative, size, replace=False),
            ]
        )
    )


def probe(features: Floats, texts: pd.DataFrame) -> list[float]:
    """Mean accuracy over data sets and splits, for each of `COUNTS`."""
    found = []
    for count in COUNTS:
        scores = []
        for dataset in texts["dataset"].unique():
            wanted = (texts["dataset"] == dataset).to_numpy()
            for seed in range(SPLITS):
                kept = balanced(wanted, seed)
                groups = texts["group"].to_numpy()[kept]
                scores.append(
                    accuracy(features[kept], wanted[kept].astype(int), groups, count, seed)
                )
        found.append(float(np.mean(scores)))
    return found


def main() -> None:
    """Train, probe, and print a table for each layer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of a finished run with activations")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="virtual environment with sae-lens"
    )
    given = parser.parse_args()
    if given.peers:
        sys.path += map(str, sorted(given.peers.glob("lib/python*/site-packages")))
    warnings.filterwarnings("ignore")  # warnings of SAELens
    torch.set_num_threads(1)
    keep_freed_memory()
    (run,) = load({"model": given.results.name}, Path(__file__).parents[1] / "config").values()
    datasets = [
        name
        for name in run.datasets
        if (given.results / "examples" / name / "tokens.parquet").exists()
    ]
    for layer in given.layers:
        store, _ = stores(given.results, layer)
        sampler = ChunkSampler(store, run.sae.batch, run.seed)
        batches = OneEpoch(sampler, given.epochs * sampler.batches_per_epoch)
        settings = run.sae.model_copy(update={"epochs": 1})
        x, owners, texts = answers(given.results, layer, datasets)
        values = torch.from_numpy(x)
        mean_of_rows = partial(mean_of, owners=owners, texts=len(texts))

        def frozen(folder: Path) -> Any:
            dictionary = Dictionary(settings, run.seed, folder, frozen_decoder=True)
            ((trained,),) = train(
                [TrainingLayer(store, batches)],
                [dictionary],
                micro_batch=settings.batch,
                checkpoint_seconds=1e9,
            )
            return trained.sae

        def components() -> Floats:
            rows = store.read()[~store.excluded].astype(np.float32)
            centred = rows - rows.mean(axis=0)
            directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
            found: Floats = (x - rows.mean(axis=0)) @ directions
            return found

        kinds: dict[str, Callable[[Path], Any]] = {
            "ours": lambda folder: train_ours(store, batches, settings, run.seed, folder).sae,
            "random decoder": frozen,
        }
        if given.peers:
            kinds["SAELens"] = lambda folder: (
                saelens(store, batches, settings, run.seed, folder).sae
            )
        rows: list[list[Any]] = []
        for name, make in kinds.items():
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                with torch.enable_grad():
                    made = make(Path(folder))
                codes = made.encode(values).numpy()
            rows.append(
                [
                    name,
                    codes.shape[1],
                    float((codes > 0).sum(1).mean()),
                    *probe(mean_of_rows(codes), texts),
                ]
            )
        for name, features in (("principal components", components()), ("channels", x)):
            rows.append([name, features.shape[1], None, *probe(mean_of_rows(features), texts)])
        show(
            f"{given.results.name} layer {layer}: {batches.batches_per_epoch:,} steps, {len(texts):,} texts of {len(datasets)} data sets",
            [
                "",
                "features",
                "active",
                *(f"accuracy, {count} feature{'s' * (count > 1)}" for count in COUNTS),
            ],
            rows,
        )


if __name__ == "__main__":
    main()
