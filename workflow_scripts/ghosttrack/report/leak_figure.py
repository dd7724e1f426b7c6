"""Figure of the leak reproduction: AUROC under the random pair split and the grouped split."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ghosttrack import scores as registry
from ghosttrack.evaluation.leak_reproduction import GROUPED, NOISE, RANDOM_PAIRS, SEEN, TEXT
from ghosttrack.report.figures import GATE_COLOUR, INK, MUTED, NULL_COLOUR, STYLE, save

_SCORES = ((NOISE, NULL_COLOUR, "o"), (SEEN, MUTED, "^"), (TEXT, GATE_COLOUR, "s"))


def draw(table: pd.DataFrame, outputs: Sequence[Path]) -> None:
    """Draw `table`, leak_reproduction.csv, to each of `outputs`; the suffix names the format."""
    datasets = list(dict.fromkeys(table["dataset"]))
    means = table.groupby(["dataset", "score", "split"])["auroc"].mean()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.0 + 0.62 * len(datasets)), layout="constrained")
        axes = figure.add_subplot()
        for position, (score_name, colour, marker) in enumerate(_SCORES):
            label = registry.get(score_name).label
            lanes = np.arange(len(datasets)) + 0.24 * (position - 1)
            random_pairs, grouped = (
                [means[dataset, score_name, split] for dataset in datasets]
                for split in (RANDOM_PAIRS, GROUPED)
            )
            axes.hlines(lanes, grouped, random_pairs, color=colour, lw=1.0)
            axes.plot(
                random_pairs, lanes, marker, color=colour, ls="", label=f"{label}, random pairs"
            )
            axes.plot(
                grouped, lanes, marker, color=colour, mfc="white", ls="", label=f"{label}, grouped"
            )
        axes.axvline(0.5, color=MUTED, lw=0.8, ls=(0, (3, 3)))
        axes.set_yticks(range(len(datasets)), datasets)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set(
            xlabel="AUROC (dashed: chance)", ylim=(len(datasets) - 0.5, -0.5), xlim=(None, 1.02)
        )
        axes.grid(axis="y", visible=False)
        figure.legend(
            loc="outside upper left", ncols=len(_SCORES), handletextpad=0.2, columnspacing=1.2
        )
        for path in outputs:
            save(figure, path)
