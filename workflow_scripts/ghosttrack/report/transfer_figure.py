"""Figure of the transfer matrix: AUROC of a detector trained on one data set, tested on another."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ghosttrack import scores as registry
from ghosttrack.report import figures

# Score and title of each panel.
PANELS = (registry.DETECTOR, "raw_probe")
# AUROCs at the ends of the colour scale; chance is white.
_LOW, _HIGH = 0.5, 1.0


def transfer(table: pd.DataFrame) -> Figure:
    """AUROC by training set (row) and tested data set (column), of the detector and the raw probe.

    Args:
        table: columns of registry.TRANSFER.
    """
    datasets = [str(name) for name in dict.fromkeys(table["dataset"]) if name != registry.ALL_GIVEN]
    trainings = [
        *datasets,
        *(str(name) for name in dict.fromkeys(table["trained_on"]) if name not in datasets),
    ]
    side = 0.62 * len(datasets)
    figure = Figure(figsize=(2.6 + 2 * side, 1.6 + 0.36 * len(trainings)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    colours = LinearSegmentedColormap.from_list("auroc", [figures.PAPER, figures.DETECTOR_COLOUR])
    for axes, score_name in zip(panels, PANELS, strict=True):
        panel = table[table["score"] == score_name].set_index(["trained_on", "dataset"])["auroc"]
        values = np.array(
            [[float(panel.get((row, column), np.nan)) for column in datasets] for row in trainings]
        )
        image: Any = axes.imshow(
            np.ma.masked_invalid(values), cmap=colours, vmin=_LOW, vmax=_HIGH, aspect="auto"
        )
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                light = value > (_LOW + _HIGH) / 2
                axes.text(
                    column,
                    row,
                    f"{value:.2f}".removeprefix("0"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=figures.PAPER if light else figures.INK,
                    weight="bold" if trainings[row] == datasets[column] else "normal",
                )
        axes.set_xticks(
            range(len(datasets)), datasets, rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(trainings)), trainings)
        axes.set_title(registry.get(score_name).label)
        axes.set_xlabel("tested on")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    panels[0].set_ylabel("trained on (bold: same data set, out of fold)")
    figure.colorbar(image, ax=list(panels), label="AUROC", shrink=0.8)
    return figure
