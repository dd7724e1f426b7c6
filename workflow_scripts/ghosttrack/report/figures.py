"""The figures of a run as png, pdf and svg, in one style. Equal tables give equal bytes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ghosttrack import scores as registry
from ghosttrack.detection import controls
from ghosttrack.errors import UserError
from ghosttrack.evaluation.gates import GATES
from ghosttrack.report import link_summary
from ghosttrack.runtime import files

# `pictures.COLOURS` replaces these on a page by colours that follow its light or dark theme.
INK, MUTED, RULE, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
DETECTOR_COLOUR, GATE_COLOUR, ANSWER_COLOUR, NULL_COLOUR = (
    shown.colour for shown in registry.SHOWN
)
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text, not outlines
    "svg.fonttype": "none",
    "svg.hashsalt": "ghosttrack",  # without a fixed salt every svg has new ids
}
(L0_GATE,) = (gate for gate in GATES if gate.key == "l0")
# No dates, which would make two equal runs differ.
METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
# Points per curve: more are invisible at this size and enlarge the report.
CURVE_POINTS = 150
COLUMNS = 3
# Below this coverage the risk is an average over a handful of texts.
LEAST_COVERAGE = 0.02
# Dash pattern and width of the curves of registry.SHOWN, which differ without colour too.
LINES = (("-", 1.8), ("--", 1.1), ("-.", 1.1), (":", 1.3))
REGRESSION_COLOUR = "#8a3ab9"
# The scores of the summary: names of which the best is shown, label, colour, marker.
SUMMARY = (
    ((registry.TEXT_ONLY,), "text alone", NULL_COLOUR, "^"),
    (tuple(controls.UNTRAINED), "best single output score", GATE_COLOUR, "s"),
    ((registry.OUTPUT_REGRESSION,), "output regression", REGRESSION_COLOUR, "v"),
    (("raw_probe",), "raw-activation probe", ANSWER_COLOUR, "D"),
    ((registry.DETECTOR,), "detector", DETECTOR_COLOUR, "o"),
)
# Added where data sets have remarks.
SUMMARY_MISLED = (
    ((registry.SAME_PASS,), "all of the same pass", REGRESSION_COLOUR, "<"),
    ((registry.CLOSED_BOOK_AND_CONTEXT,), "closed book and context", GATE_COLOUR, "P"),
    ((registry.WITH_CLOSED_BOOK,), "detector with closed book", DETECTOR_COLOUR, "*"),
)
SUMMARY_POOLS = {
    registry.ALL_GIVEN: "all given\ntexts",
    registry.ALL_GENERATED: "all generated\nanswers",
    registry.ALL_MISLED: "all after\nremarks",
}


class FigureInputs(NamedTuple):
    """Tables that the figures are drawn from.

    `quality` and `neighbours` are keyed by layer, `track_metrics` by (data set, variant).
    `answers` is saes/answers.csv, `firings` neighbours/links.csv.
    """

    metrics: pd.DataFrame
    curves: pd.DataFrame
    calibration: pd.DataFrame
    quality: Mapping[int, Mapping[str, Any]]
    neighbours: Mapping[int, Mapping[str, np.ndarray]]
    track_metrics: Mapping[tuple[str, str], pd.DataFrame]
    answers: pd.DataFrame
    explanations: pd.DataFrame
    verdicts: pd.DataFrame
    datasets: Sequence[str]
    firings: pd.DataFrame | None = None


def draw(inputs: FigureInputs, outputs: Sequence[Path]) -> None:
    """Write each of `outputs`: the stem names the figure, the suffix the format.

    Raises:
        UserError: a figure or a format does not exist.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in outputs:
        if path.stem not in FIGURES or path.suffix[1:] not in METADATA:
            raise UserError(
                f"figures: unknown file {path.name}; expected one of {', '.join(FIGURES)} "
                f"with the suffix .{', .'.join(METADATA)}"
            )
        by_stem.setdefault(path.stem, []).append(path)
    for stem, paths in by_stem.items():
        write(FIGURES[stem], [inputs], paths)


def write(make: Callable[..., Figure], arguments: Sequence[Any], paths: Sequence[Path]) -> None:
    """Draw the figure `make(*arguments)` in the common style and write it to every path."""
    with matplotlib.rc_context(STYLE):
        figure = make(*arguments)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the same layout in every format
        # The last digit of the layout varies between runs, and clip ids of an svg depend on it.
        for axes in figure.axes:
            axes.set_position(Bbox(axes.get_position(original=True).get_points().round(6)))
        for path in paths:
            save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, without a date."""
    kind = path.suffix[1:]
    with files.atomic_write(path, "wb") as stream:
        figure.savefig(stream, format=kind, metadata=METADATA[kind], transparent=kind == "svg")


def summary(inputs: FigureInputs) -> Figure:
    """AUROC of the scores of SUMMARY, pooled and per data set: the figure of the run.

    Texts after remarks have a row of axes of their own, with the scores of SUMMARY_MISLED too.
    """
    scopes = [name for name in SUMMARY_POOLS if _is_pool(inputs, name)]
    scopes += [name for name in inputs.datasets if _best(inputs, name, (registry.DETECTOR,))]
    misled = [name for name in scopes if _best(inputs, name, (registry.SAME_PASS,))]
    rows = [
        (names, shown, apart)
        for names, shown, apart in (
            ([name for name in scopes if name not in misled], SUMMARY, 0.15),
            (misled, (*SUMMARY, *SUMMARY_MISLED), 0.1),
        )
        if names
    ] or [([], SUMMARY, 0.15)]
    figure = Figure(figsize=(10, 0.9 + 3.2 * len(rows)), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, row in zip(np.atleast_1d(figure.subplots(len(rows))), rows, strict=True):
        _summary_row(axes, inputs, *row)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles,
        loc="outside upper left",
        ncols=len(SUMMARY),
        handletextpad=0.2,
        fontsize=9,
    )
    return figure


def _summary_row(
    axes: Axes,
    inputs: FigureInputs,
    scopes: Sequence[str],
    shown: Sequence[tuple[tuple[str, ...], str, str, str]],
    apart: float,
) -> None:
    """One row of the summary: scopes from left to right, and their scores `apart` from each other."""
    pools = sum(name in SUMMARY_POOLS for name in scopes)
    axes.axhline(0.5, color=MUTED, lw=0.8, ls=(0, (3, 3)))
    if pools and pools < len(scopes):
        axes.axvline(pools - 0.5, color=MUTED, lw=0.8)
    for number, (names, label, colour, marker) in enumerate(shown):
        points = [
            (place + apart * (number - (len(shown) - 1) / 2), row)
            for place, scope in enumerate(scopes)
            if (row := _best(inputs, scope, names))
        ]
        x, rows = [x for x, _ in points], [row for _, row in points]
        low, high = ([row[f"auroc_{end}"] for row in rows] for end in ("low", "high"))
        axes.vlines(x, low, high, color=colour, lw=2)
        values = [row["auroc"] for row in rows]
        axes.plot(x, values, marker, color=colour, label=label, ls="", ms=6.5)
    axes.set_xticks(
        range(len(scopes)),
        [SUMMARY_POOLS.get(name, _wrapped(name, 150 // max(len(scopes), 1))) for name in scopes],
    )
    axes.tick_params(axis="x", length=0, labelcolor=INK)
    for tick in axes.get_xticklabels()[:pools]:
        tick.set_fontweight("bold")
    axes.set_xlim(-0.5, max(len(scopes), 1) - 0.5)
    axes.set_ylim(min(0.45, axes.dataLim.y0 - 0.02), 1.02)  # room for markers at 1
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("AUROC with interval (dashed: chance)")


def _wrapped(name: str, width: int) -> str:
    """A name in two lines if it is longer than `width` characters and has an underscore."""
    return name.replace("_", "_\n", 1) if len(name) > width else name


def _best(inputs: FigureInputs, dataset: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The metrics of the score with the highest AUROC of `names`; None if none has an AUROC."""
    rows = [registry.row_of(inputs.metrics, dataset, name) for name in names]
    known = [row for row in rows if row and not np.isnan(row["auroc"])]
    return max(known, key=lambda row: row["auroc"], default=None)


def _is_pool(inputs: FigureInputs, name: str) -> bool:
    """Whether a pooled row exists and is not just the row of a single data set."""
    pooled = _best(inputs, name, (registry.DETECTOR,))
    single = [_best(inputs, dataset, (registry.DETECTOR,)) for dataset in inputs.datasets]
    return pooled is not None and all(
        (row["n"], row["auroc"]) != (pooled["n"], pooled["auroc"]) for row in single if row
    )


def auroc(inputs: FigureInputs) -> Figure:
    """AUROC with its interval: a row per data set, a marker per score."""
    figure = Figure(figsize=(6.4, 0.9 + 0.62 * len(inputs.datasets)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.72 / len(registry.SHOWN)
    for position, shown in enumerate(registry.SHOWN):
        rows = [registry.row_of(inputs.metrics, dataset, shown.name) for dataset in inputs.datasets]
        lanes = [lane - 0.36 + height * (position + 0.5) for lane, row in enumerate(rows) if row]
        kept = [row for row in rows if row]
        axes.hlines(
            lanes,
            [row["auroc_low"] for row in kept],
            [row["auroc_high"] for row in kept],
            color=shown.colour,
            lw=1.6,
        )
        axes.plot(
            [row["auroc"] for row in kept],
            lanes,
            shown.marker,
            color=shown.colour,
            label=shown.label,
            ls="",
        )
    axes.axvline(0.5, color=MUTED, lw=0.8, ls=(0, (3, 3)))
    axes.set_yticks(range(len(inputs.datasets)), inputs.datasets)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(inputs.datasets) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("AUROC with interval (dashed: chance)")
    figure.legend(
        loc="outside upper left", ncols=len(registry.SHOWN), handletextpad=0.2, columnspacing=1.2
    )
    return figure


def roc(inputs: FigureInputs) -> Figure:
    """ROC curves, a panel per data set."""
    return _curves(inputs, "roc", "false positive rate", "true positive rate")


def precision_recall(inputs: FigureInputs) -> Figure:
    """Precision-recall curves, a panel per data set; the dashed line is the prevalence."""
    return _curves(inputs, "pr", "recall", "precision")


def _curves(inputs: FigureInputs, kind: str, x_label: str, y_label: str) -> Figure:
    figure, panels = _panels(list(inputs.datasets))
    chosen = inputs.curves[inputs.curves["curve"] == kind]
    for dataset, axes in panels:
        # In reverse, so that the detector lies on top.
        for shown, (dashes, width) in reversed(list(zip(registry.SHOWN, LINES, strict=True))):
            part = chosen[(chosen["dataset"] == dataset) & (chosen["score"] == shown.name)]
            x, y = _thinned(part["x"].to_numpy(), part["y"].to_numpy())
            axes.plot(x, y, color=shown.colour, label=shown.label, ls=dashes, lw=width)
        row = registry.row_of(inputs.metrics, dataset, registry.DETECTOR)
        chance = [0, 1] if kind == "roc" else [row["prevalence"] if row else 0.5] * 2
        axes.plot([0, 1], chance, color=MUTED, lw=0.8, ls=(0, (3, 3)))
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
            xticks=(0, 0.5, 1),
            yticks=(0, 0.5, 1),
        )
    _legend_above(figure, panels)
    return _finished(figure, x_label, y_label)


def _legend_above(figure: Figure, panels: list[tuple[str, Axes]]) -> None:
    """The legend of the first panel, with the entries in reverse order."""
    handles, labels = panels[0][1].get_legend_handles_labels() if panels else ([], [])
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside upper left",
        ncols=len(registry.SHOWN),
        handletextpad=0.5,
    )


def _panels(datasets: list[str]) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A grid of small square panels, one per data set."""
    lines = max(1, -(-len(datasets) // COLUMNS))
    figure = Figure(figsize=(6.4, 0.6 + 2.1 * lines), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(datasets) :]:
        axes.set_visible(False)
    for dataset, axes in zip(datasets, grid, strict=False):
        axes.set_title(dataset)
    return figure, list(zip(datasets, grid, strict=False))


def _finished(figure: Figure, x_label: str, y_label: str) -> Figure:
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    return figure


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most CURVE_POINTS points of a curve, with its first and last point."""
    if not len(x):
        return x, y
    chosen = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
    return x[chosen], y[chosen]


def calibration(inputs: FigureInputs) -> Figure:
    """Observed fraction of hallucinations against the detector's probability, by data set."""
    figure, panels = _panels(list(inputs.datasets))
    chosen = inputs.calibration[inputs.calibration["score"] == registry.DETECTOR]
    for dataset, axes in panels:
        part = chosen[(chosen["dataset"] == dataset) & (chosen["n"] > 0)].sort_values("predicted")
        # pandas reads a table without rows with dtype object.
        part = part.astype({"predicted": float, "observed": float, "n": float})
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (3, 3)))
        axes.plot(part["predicted"], part["observed"], color=DETECTOR_COLOUR, lw=1.2)
        # Marker area is proportional to the texts of a bin, at most 40 square points.
        axes.scatter(
            part["predicted"],
            part["observed"],
            s=40 * part["n"] / max(part["n"].max(), 1),
            color=DETECTOR_COLOUR,
            clip_on=False,
        )
        axes.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
            xticks=(0, 0.5, 1),
            yticks=(0, 0.5, 1),
        )
    return _finished(figure, "predicted probability", "observed fraction")


def sae_quality(inputs: FigureInputs) -> Figure:
    """FVU of every layer's SAE beside PCA and a random dictionary, its effect when spliced in, L0.

    FVU and L0 are also shown on answer tokens.
    """
    layers = sorted(inputs.quality)
    answers = (
        inputs.answers[inputs.answers["dataset"] == registry.ALL_ANSWERS]
        .set_index("layer")
        .reindex(layers)
    )

    def values(key: str) -> list[float]:
        return [inputs.quality[layer].get(key, np.nan) for layer in layers]

    figure = Figure(figsize=(6.4, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    lines = (
        ("fvu", "SAE", DETECTOR_COLOUR, "o", "-"),
        ("fvu_token_median", "SAE, median token", DETECTOR_COLOUR, "o", ":"),
        ("pca_fvu", "PCA, L0 components", GATE_COLOUR, "s", "-"),
        ("random_fvu", "random dictionary", NULL_COLOUR, "^", "-"),
    )
    for key, label, colour, marker, dashes in lines:
        hollow = PAPER if dashes == ":" else colour
        left.plot(layers, values(key), marker, color=colour, ls=dashes, mfc=hollow, label=label)
    left.plot(layers, answers["fvu"], "D-", color=ANSWER_COLOUR, label="SAE, answer tokens")
    left.plot(
        layers,
        answers["fvu_token_median"],
        "D:",
        color=ANSWER_COLOUR,
        mfc=PAPER,
        label="SAE, median answer token",
    )
    left.set(title="Unexplained variance (FVU)", xlabel="layer")
    figure.legend(loc="outside upper left", ncols=3)
    middle.plot(layers, values("kl_div_with_sae"), "o-", color=DETECTOR_COLOUR, label="KL")
    middle.errorbar(
        layers,
        values("delta_ce"),
        values("delta_ce_error"),
        fmt="o:",
        color=DETECTOR_COLOUR,
        mfc=PAPER,
        elinewidth=1,
        label="\N{GREEK CAPITAL LETTER DELTA}CE",
    )
    middle.set(title="Loss when spliced in (nats)", xlabel="layer")
    middle.legend(loc="center left")
    right.plot(layers, values("l0"), "o-", color=DETECTOR_COLOUR)
    right.plot(layers, answers["l0"], "D-", color=ANSWER_COLOUR)
    for edge in (L0_GATE.low, L0_GATE.high):
        right.axhline(edge, color=MUTED, lw=0.8, ls=(0, (3, 3)))
    right.set(title="Active features (L0)", xlabel="layer")
    for axes in (left, middle, right):
        axes.set_ylim(min(0.0, 1.08 * axes.dataLim.y0), 1.08 * axes.dataLim.y1)
        axes.set_xticks(layers[:: 1 + len(layers) // 8])
    return figure


def links(inputs: FigureInputs) -> Figure:
    """Best-match decoder cosine with its gate, and links per token, for each pair of layers.

    Permuted decoders are the null.
    """
    pairs = link_summary.pairs(inputs.neighbours, sorted(inputs.quality))
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    axes, right = figure.subplots(1, 2)
    at = np.arange(len(pairs))
    kinds = (
        (-0.13, "real", DETECTOR_COLOUR, "o", "real layers"),
        (0.13, "null", NULL_COLOUR, "^", "null"),
    )
    for offset, kind, colour, marker, label in kinds:
        low, middle, high = np.array([getattr(pair, kind) for pair in pairs]).reshape(-1, 3).T
        axes.vlines(at + offset, low, high, color=colour, lw=1.6)
        axes.plot(at + offset, middle, marker, color=colour, label=label, ls="")
    axes.hlines(
        [pair.gate for pair in pairs], at - 0.32, at + 0.32, color=GATE_COLOUR, lw=1.6, label="gate"
    )
    axes.set(xlabel="layers", ylabel="best-match decoder cosine")
    if inputs.firings is not None and len(inputs.firings) == len(pairs):
        right.plot(at, inputs.firings["links_per_token"], "o", color=DETECTOR_COLOUR, ls="")
        right.plot(at, inputs.firings["permuted_links_per_token"], "^", color=NULL_COLOUR, ls="")
    for flow in link_summary.flows(inputs.track_metrics):
        # `untracked` has no links; `random` has as many as the tracker by construction.
        if flow.variant in ("untracked", "random") or len(flow.layers) != len(pairs) + 1:
            continue
        colour = DETECTOR_COLOUR if flow.variant == "default" else NULL_COLOUR
        name = "chosen by the tracker" if flow.variant == "default" else f"chosen, {flow.variant}"
        right.plot(
            at,
            flow.per_token[1:],
            _TRACKED.get(flow.variant, "x"),
            color=colour,
            label=name,
            ls="",
            mfc="none",
        )
    right.set(xlabel="layers", ylabel="links per token")
    if pairs and right.lines:
        right.set_ylim(-0.03 * right.dataLim.y1, 1.08 * max(right.dataLim.y1, 1.0))
    for panel in (axes, right):
        panel.set_xticks(at, [f"{pair.lower} to {pair.upper}" for pair in pairs])
        panel.set_xlim(-0.6, max(len(pairs) - 0.4, 0.6))
        panel.grid(axis="x", visible=False)
        panel.tick_params(
            axis="x", labelsize=7 if len(pairs) > 6 else 8, rotation=90 if len(pairs) > 8 else 0
        )
    figure.legend(loc="outside upper left", ncols=6, handletextpad=0.4)
    return figure


# Marker and line of each variant; open markers are links that the tracker chose.
_TRACKED = {"default": "s", "permuted": "v", "random": "D", "shuffled": "o", "untracked": "x"}
_DASHES = {"default": "-", "permuted": ":", "random": "--", "shuffled": "-."}


def tracks(inputs: FigureInputs) -> Figure:
    """Links per token, mean track length and survival of tracks, of the tracker and its nulls."""
    summary = link_summary.tracks(inputs.track_metrics)
    variants = list(dict.fromkeys(summary["variant"]))
    figure = Figure(figsize=(8.4, 1.3 + 0.34 * max(len(variants), 3)), layout="constrained")
    links, length, lasting = figure.subplots(1, 3)
    panels = ((links, "links", "Links per token"), (length, "length", "Track length (layers)"))
    for axes, key, title in panels:
        for lane, variant in enumerate(variants):
            values = summary.loc[summary["variant"] == variant, key].to_numpy()
            colour = DETECTOR_COLOUR if variant == "default" else NULL_COLOUR
            axes.plot(
                values, np.full(len(values), lane), "o", color=colour, alpha=0.5, mew=0, ls=""
            )
            axes.plot(np.mean(values), lane, "|", color=colour, ms=14, mew=2)
        axes.set(title=title, ylim=(len(variants) - 0.5, -0.5))
        axes.set_xlim(0, 1.08 * axes.dataLim.x1)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(
            range(len(variants)), ["tracker" if name == "default" else name for name in variants]
        )
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    length.set_yticklabels([])
    for variant, share in link_summary.lengths(inputs.track_metrics).items():
        colour = DETECTOR_COLOUR if variant == "default" else NULL_COLOUR
        name = "tracker" if variant == "default" else variant
        positive = np.where(share > 0, share, np.nan)
        style = f"{_TRACKED.get(variant, 'x')}{_DASHES.get(variant, '-')}"
        lasting.plot(
            np.arange(1, len(share) + 1), positive, style, color=colour, label=name, mfc="none"
        )
    lasting.set(title="Track survival (layers)", yscale="log", ylabel="fraction of tracks")
    lasting.set_xticks(
        range(1, 1 + max((len(line.get_xdata()) for line in lasting.lines), default=1))
    )
    if len(variants) > 1 and lasting.lines:
        lasting.legend(fontsize=7)
    return figure


def risk(inputs: FigureInputs) -> Figure:
    """Risk-coverage curves: fraction of wrong decisions among the most confident texts."""
    figure, panels = _panels(list(inputs.datasets))
    for dataset, axes in panels:
        for shown, (dashes, width) in reversed(list(zip(registry.SHOWN, LINES, strict=True))):
            chosen = (inputs.curves["curve"] == "risk") & (inputs.curves["dataset"] == dataset)
            part = inputs.curves[
                chosen
                & (inputs.curves["score"] == shown.name)
                & (inputs.curves["x"] >= LEAST_COVERAGE)
            ]
            x, y = _thinned(part["x"].to_numpy(), part["y"].to_numpy())
            axes.plot(x, y, color=shown.colour, label=shown.label, ls=dashes, lw=width)
        axes.set(xlim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.25, 0.5, 0.75, 1))
    # One axis for all panels: a score below chance is wrong on more than half.
    highest = max((axes.dataLim.y1 for _, axes in panels), default=0.6)
    for _, axes in panels:
        axes.set_ylim(-0.02, max(0.6, highest) + 0.02)
    _legend_above(figure, panels)
    return _finished(
        figure, "coverage: fraction of texts, most confident first", "risk: fraction wrong"
    )


def verdicts(inputs: FigureInputs) -> Figure:
    """Risk-coverage curve of the detector of statements on left-out kinds."""
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    part = inputs.verdicts[inputs.verdicts["coverage"] >= LEAST_COVERAGE]
    for confidence in (0.75, 0.9):
        axes.axhline(1 - confidence, color=NULL_COLOUR, lw=0.8, ls="--")
    axes.plot(part["coverage"], part["error"], color=DETECTOR_COLOUR, lw=1.8)
    axes.set(xlim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.1, 0.25, 0.5, 0.75, 1))
    axes.set_ylim(-0.02, max(0.6, axes.dataLim.y1) + 0.02)
    axes.set_xlabel("fraction of statements, most certain first")
    axes.set_ylabel("fraction wrong")
    return figure


def explanations(inputs: FigureInputs) -> Figure:
    """Mean change of the log-odds when named reasons or other features are ablated."""
    table = inputs.explanations
    counts = list(dict.fromkeys(table["features"]))
    figure = Figure(figsize=(6.4, 1.2 + 0.36 * max(1, len(table))), layout="constrained")
    axes = figure.add_subplot()
    rows, names = [], []
    for place, (kind, part) in enumerate(table.groupby("removed", sort=False)):
        colour = (DETECTOR_COLOUR, GATE_COLOUR, NULL_COLOUR)[place % 3]
        heights = [(len(counts) + 1) * place + counts.index(count) for count in part["features"]]
        axes.hlines(heights, part["change_low"], part["change_high"], color=colour, lw=1.6)
        axes.plot(part["change"], heights, "osD"[place % 3], color=colour, ls="")
        rows += heights
        names += [f"{count} {kind}" for count in part["features"]]
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(max(rows, default=0) + 0.6, -0.6)
    low, high = (table["change_low"].min(), table["change_high"].max()) if len(table) else (0, 1)
    axes.set_xlim(1.08 * min(low, 0), 1.08 * max(high, 0))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean change of the log-odds when ablated")
    return figure


FIGURES: dict[str, Callable[[FigureInputs], Figure]] = {
    "summary": summary,
    "auroc": auroc,
    "roc": roc,
    "pr": precision_recall,
    "calibration": calibration,
    "risk": risk,
    "verdicts": verdicts,
    "explanations": explanations,
    "sae_quality": sae_quality,
    "links": links,
    "tracks": tracks,
}
