"""Figure of the SAE sweep: FVU, dead features and stability across seeds, against sparsity."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghosttrack.report.figures import ANSWER_COLOUR, DETECTOR_COLOUR, GATE_COLOUR, NULL_COLOUR

# Layers differ by marker too.
MARKERS, COLOURS = "osD^v", (DETECTOR_COLOUR, ANSWER_COLOUR, GATE_COLOUR, NULL_COLOUR)


def draw(arms: pd.DataFrame, stability: pd.DataFrame) -> Figure:
    """FVU against L0 beside PCA, dead features, and features shared by two seeds; a line per layer.

    Args:
        arms: sweep/arms.csv.
        stability: sweep/stability.csv.
    """
    figure = Figure(figsize=(6.4, 2.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, (layer, part) in enumerate(arms.groupby("layer")):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        means = part.groupby("k")[["l0", "fvu", "pca_fvu"]].mean()
        _dots(left, part["l0"], part["fvu"], **look)
        left.plot(means["l0"], means["fvu"], label=f"layer {layer}", **look)
        left.plot(means.index, means["pca_fvu"], ls="--", color=look["color"], marker="", lw=1)
        _dots(middle, part["k"], 100 * part["dead_fraction"], **look)
        middle.plot(*_means(part, "k", "dead_fraction"), **look)
        pairs = stability[stability["layer"] == layer]
        if len(pairs):
            right.plot(*_means(pairs, "k", "share_alike"), **look)
            right.plot(*_means(pairs, "k", "share_equal"), ls=":", mfc="none", **look)
    left.set(title="Unexplained variance (FVU)", xlabel="L0 (dashed: PCA)")
    middle.set(title="Dead features (%)", xlabel="k")
    right.set(title="Shared by seeds (%)", xlabel="k (cosine > .7, dotted > .9)")
    right.set_ylim(0, 100)
    for axes in (left, middle):
        axes.set_ylim(0, 1.08 * max(axes.dataLim.y1, 1e-3))
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(arms["k"])), [str(k) for k in sorted(set(arms["k"]))])
        axes.minorticks_off()
    figure.legend(loc="outside upper left", ncols=5)
    return figure


def _dots(axes: Axes, x: pd.Series, y: pd.Series, color: str, marker: str) -> None:
    axes.plot(x, y, marker, color=color, alpha=0.4, mew=0, ls="")


def _means(table: pd.DataFrame, key: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    means = table.groupby(key)[value].mean()
    return means.index.to_numpy(), 100 * means.to_numpy()
