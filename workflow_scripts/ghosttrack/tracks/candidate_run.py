"""Attribution metrics and tracks of the candidate answers of one data set, with their nulls."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.activations.logit_gradients import Comparisons, Gradients
from ghosttrack.runtime.progress import Progress
from ghosttrack.sae import Sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks import track_run
from ghosttrack.tracks.attribution import (
    EVEN,
    LAYER_METRICS,
    ODD,
    Entries,
    Floats,
    Parts,
    attribute,
    included_rows,
    layer_metrics,
    permute_candidates,
    total_of,
)
from ghosttrack.tracks.candidate_tracks import TRACK_METRICS, track_metrics
from ghosttrack.tracks.track_run import TrackingPlan
from ghosttrack.tracks.tracking import TrackerOptions

# Nulls of the links; all read the same attributions as `default`.
LINK_NULLS = ("untracked", "random", "shuffled")
# The tracker, and its nulls: of the links, of the candidates' features, of the SAEs' decoders.
VARIANTS = ("default", *LINK_NULLS, "candidates", "decoders")
# Columns of the controls, which read no SAE, before the number of the layer.
CONTROLS = ("gradient", "gradient_last", "lens")
DIFFERENCE = "difference"


class Dictionary(NamedTuple):
    """SAEs of the analysed layers, and the plan of each variant that reads them."""

    saes: Sequence[Sae]
    plans: Mapping[str, TrackingPlan]


class CandidateTables(NamedTuple):
    """Tables of a data set, one row per text and, for metrics, variant; see outputs.md.

    completeness: one row per layer and dictionary.
    """

    controls: pd.DataFrame
    metrics: pd.DataFrame
    completeness: pd.DataFrame


def plan_of(
    variant: str,
    layers: Sequence[int],
    saes: Sequence[Sae],
    neighbours: Sequence[Path] | None,
    tracking: TrackingSettings,
    seed: int,
) -> TrackingPlan:
    """The plan of `default`, `untracked` or `shuffled`.

    `neighbours`: the run's neighbour files; None: links of `default` are computed from the decoders.
    """
    if tracking.mode == "original":
        return track_run.plan_original(variant, saes, tracking.original, seed)
    if variant == "default" and neighbours is None:
        return track_run.computed_links(
            list(range(len(layers))),
            layers,
            saes,
            tracking.links,
            tracking.neighbours,
            tracking.gate_quantile,
            seed,
        )
    return track_run.plan_links(
        variant,
        layers,
        neighbours or [],
        saes,
        kind=tracking.links,
        count=tracking.neighbours,
        quantile=tracking.gate_quantile,
        seed=seed,
    )


def measure(
    passes: Iterable[Gradients],
    compared: Comparisons,
    ids: Sequence[str],
    layers: Sequence[int],
    trained: Dictionary,
    random_decoders: Dictionary,
    options: TrackerOptions,
    seed: int,
) -> CandidateTables:
    """Measure all comparisons, and orient the results by the stated answer of each text.

    Args:
        passes: gradients of all comparisons, in any order.
        ids: of the texts.
        trained, random_decoders: the run's SAEs, and the null of random decoders.
    """
    count = len(compared.distinct)
    controls = {
        name: np.full(count, np.nan)
        for name in (DIFFERENCE, *(f"{kind}_{layer:02d}" for kind in CONTROLS for layer in layers))
    }
    kinds = metric_kinds(layers)
    metrics = {variant: {name: np.zeros(count) for name in kinds} for variant in VARIANTS}
    tallies = {name: _Tally(len(layers)) for name in ("trained", "random")}
    progress = Progress("comparing candidates", count, "prompts")
    for gradients in passes:
        at = np.array(gradients.numbers)
        included = included_rows(gradients)
        for name, values in _controls(gradients, layers, included).items():
            controls[name][at] = values
        for variant, found in _variants(
            gradients, included, layers, trained, random_decoders, options, seed, tallies
        ):
            for name, values in found.items():
                metrics[variant][name][at] = values
        progress.advance(len(at))
    table = _oriented(controls, dict.fromkeys(controls, ODD), compared)
    table.insert(0, "id", list(ids))
    table.insert(1, "compared", compared.number >= 0)
    parts = []
    for variant, columns in metrics.items():
        part = _oriented(columns, kinds, compared).astype(np.float32)
        part.insert(0, "variant", variant)
        part.insert(0, "id", list(ids))
        parts.append(part)
    completeness = pd.concat(
        [tally.table(layers).assign(decoders=name) for name, tally in tallies.items()],
        ignore_index=True,
    )
    return CandidateTables(table, pd.concat(parts, ignore_index=True), completeness)


def metric_kinds(layers: Sequence[int]) -> dict[str, str]:
    """Columns of the metrics, and what an exchange of the candidates does to each."""
    kinds: dict[str, str] = {}
    for layer in layers:
        prefix = f"layer_{layer:02d}_"
        for name, kind in LAYER_METRICS.items():
            kinds[prefix + name] = kind if kind in (ODD, EVEN) else prefix + kind
    prefix = "track_"
    for name, kind in TRACK_METRICS.items():
        kinds[prefix + name] = kind if kind in (ODD, EVEN) else prefix + kind
    return kinds


def _controls(
    gradients: Gradients, layers: Sequence[int], included: NDArray[np.bool_]
) -> dict[str, Floats]:
    found = {DIFFERENCE: gradients.difference}
    count = len(gradients.numbers)
    for position, layer in enumerate(layers):
        x, g = gradients.activation[position], gradients.gradient[position]
        products = (x.double() * g.double()).sum(1).numpy()
        found[f"gradient_{layer:02d}"] = total_of(products * included, gradients.text, count)
        found[f"gradient_last_{layer:02d}"] = products[gradients.last]
        found[f"lens_{layer:02d}"] = gradients.lens[position]
    return found


def _variants(
    gradients: Gradients,
    included: NDArray[np.bool_],
    layers: Sequence[int],
    trained: Dictionary,
    random_decoders: Dictionary,
    options: TrackerOptions,
    seed: int,
    tallies: Mapping[str, "_Tally"],
) -> Iterable[tuple[str, dict[str, Floats]]]:
    """Metrics of every variant."""
    entries, parts = _layers(trained.saes, gradients, included, tallies["trained"])
    of_layers = _layer_columns(entries, parts, gradients, layers)
    d_sae = max(sae.d_sae for sae in trained.saes)
    for variant in ("default", *LINK_NULLS):
        tracks = track_metrics(
            entries,
            gradients,
            trained.plans["default" if variant == "random" else variant],
            options,
            d_sae,
            [seed] if variant == "random" else None,
        )
        yield variant, of_layers | _prefixed("track_", tracks)
    permuted = [
        permute_candidates(each, gradients, [seed, layer])
        for each, layer in zip(entries, layers, strict=True)
    ]
    tracks = track_metrics(permuted, gradients, trained.plans["default"], options, d_sae)
    yield (
        "candidates",
        _layer_columns(permuted, parts, gradients, layers) | _prefixed("track_", tracks),
    )
    saes = random_decoders.saes
    entries, parts = _layers(saes, gradients, included, tallies["random"])
    tracks = track_metrics(
        entries,
        gradients,
        random_decoders.plans["default"],
        options,
        max(sae.d_sae for sae in saes),
    )
    yield (
        "decoders",
        _layer_columns(entries, parts, gradients, layers) | _prefixed("track_", tracks),
    )


def _layers(
    saes: Sequence[Sae], gradients: Gradients, included: NDArray[np.bool_], tally: "_Tally"
) -> tuple[list[Entries], list[Parts]]:
    found = [attribute(sae, gradients, position, included) for position, sae in enumerate(saes)]
    entries, parts = [each for each, _ in found], [each for _, each in found]
    tally.add(parts, entries, gradients, int(included.sum()))
    return entries, parts


def _layer_columns(
    entries: Sequence[Entries], parts: Sequence[Parts], gradients: Gradients, layers: Sequence[int]
) -> dict[str, Floats]:
    columns: dict[str, Floats] = {}
    for layer, each, part in zip(layers, entries, parts, strict=True):
        columns |= _prefixed(f"layer_{layer:02d}_", layer_metrics(each, part, gradients))
    return columns


def _prefixed(prefix: str, columns: Mapping[str, Floats]) -> dict[str, Floats]:
    return {prefix + name: values for name, values in columns.items()}


def _oriented(
    columns: Mapping[str, Floats], kinds: Mapping[str, str], compared: Comparisons
) -> pd.DataFrame:
    """Columns by comparison -> by text, for the stated answer against the other candidate.

    A text without a comparison has zeros.
    """
    known, sign = compared.number >= 0, compared.sign
    table: dict[str, Any] = {}
    for name, values in columns.items():
        kind, result = kinds[name], np.zeros(len(sign))
        if len(values):
            ours = values[compared.number[known]]
            other = {ODD: -ours, EVEN: ours}.get(kind)
            if other is None:
                other = columns[kind][compared.number[known]]
            result[known] = np.where(sign[known] > 0, ours, other)
        table[name] = result
    return pd.DataFrame(table)


class _Tally:
    """Sums over all comparisons that say how complete an attribution is, by layer."""

    def __init__(self, layers: int) -> None:
        self.size = np.zeros((layers, 4))  # |features|, |error|, |bias|, |total|
        self.gap = np.zeros(layers)
        self.active = np.zeros(layers)
        self.rows = self.comparisons = 0
        self.totals: list[list[Floats]] = [[] for _ in range(layers)]
        self.differences: list[Floats] = []

    def add(
        self, parts: Sequence[Parts], entries: Sequence[Entries], gradients: Gradients, rows: int
    ) -> None:
        self.rows, self.comparisons = self.rows + rows, self.comparisons + len(gradients.numbers)
        self.differences.append(gradients.difference)
        for layer, part in enumerate(parts):
            self.size[layer] += [np.abs(values).sum() for values in part]
            self.gap[layer] += np.abs(part.features + part.error + part.bias - part.total).sum()
            self.active[layer] += len(entries[layer].row)
            self.totals[layer].append(part.total)

    def table(self, layers: Sequence[int]) -> pd.DataFrame:
        """One row per layer; without comparisons all values are NaN."""
        rows = []
        for position, layer in enumerate(layers):
            features, error, bias, total = self.size[position]
            # Not relative to `total`, which is 0 after the last block: a norm has no scale.
            size = features + error + bias
            known = self.comparisons > 0
            rows.append(
                {
                    "layer": layer,
                    "prompts": self.comparisons,
                    "tokens": self.rows,
                    "l0": self.active[position] / self.rows if known else np.nan,
                    "features": features / self.comparisons if known else np.nan,
                    "error": error / self.comparisons if known else np.nan,
                    "bias": bias / self.comparisons if known else np.nan,
                    "linearised": total / self.comparisons if known else np.nan,
                    "gap": self.gap[position] / size if known and size else np.nan,
                    "correlation": _correlation(self.totals[position], self.differences),
                }
            )
        return pd.DataFrame(rows)


def _correlation(totals: Sequence[Floats], differences: Sequence[Floats]) -> float:
    """Pearson correlation of the linearised and the true logit differences, NaN without spread."""
    if not totals:
        return float("nan")
    x, y = np.concatenate(totals), np.concatenate(differences)
    if len(x) < 2 or not (x.std() and y.std()):
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
