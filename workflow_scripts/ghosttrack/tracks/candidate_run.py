"""Attribution metrics and tracks of the candidate answers of one data set, with their nulls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ghosttrack.tracks.candidate_tracks import (
    OTHER,
    STATED,
    TRACK_METRICS,
    detected,
    follow,
    strongest,
    track_metrics,
    with_random_links,
)
from ghosttrack.tracks.track_run import TrackingPlan
from ghosttrack.tracks.tracking import TrackerOptions

# Nulls of the links; all read the same attributions as `default`.
LINK_NULLS = ("untracked", "random", "shuffled")
# The tracker, and its nulls: of the links, of the candidates' features, of the SAEs' decoders.
VARIANTS = ("default", *LINK_NULLS, "candidates", "decoders")
# Columns of the controls, which read no SAE, before the number of the layer.
CONTROLS = ("gradient", "gradient_last", "lens")
DIFFERENCE = "difference"
# Tracks of the tracker that are stored, per text and candidate, the strongest first.
SHOWN_TRACKS = 8


# Tables of a data set without comparisons, which give the columns their types.
_NO_TRACKS = pd.DataFrame(
    {
        "comparison": np.zeros(0, dtype=np.int64),
        "side": np.zeros(0, dtype=np.int64),
        "track": np.zeros(0, dtype=np.int64),
        "position": np.zeros(0, dtype=np.int64),
        "layer": np.zeros(0, dtype=np.int64),
        "feature": np.zeros(0, dtype=np.int32),
        "attribution": np.zeros(0),
    }
)
_NO_TOKENS = pd.DataFrame(
    {
        "comparison": np.zeros(0, dtype=np.int64),
        "position": np.zeros(0, dtype=np.int64),
        "token": np.zeros(0, dtype=object),
        "first": np.zeros(0),
        "second": np.zeros(0),
    }
)


class Dictionary(NamedTuple):
    """SAEs of the analysed layers, and the plan of each variant that reads them."""

    saes: Sequence[Sae]
    plans: Mapping[str, TrackingPlan]


class CandidateTables(NamedTuple):
    """Tables of a data set, one row per text and, for metrics, variant; see outputs.md.

    completeness: one row per layer and dictionary.
    tracks: the strongest tracks of every text's candidates, one row per detection.
    tokens: the attributions of every text's candidates by prompt token.
    """

    controls: pd.DataFrame
    metrics: pd.DataFrame
    completeness: pd.DataFrame
    tracks: pd.DataFrame
    tokens: pd.DataFrame


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
    token_text: Callable[[int], str] = str,
) -> CandidateTables:
    """Measure all comparisons, and orient the results by the stated answer of each text.

    Args:
        passes: gradients of all comparisons, in any order.
        ids: of the texts.
        trained, random_decoders: the run's SAEs, and the null of random decoders.
        token_text: text of a token.
    """
    count = len(compared.distinct)
    controls = {
        name: np.full(count, np.nan)
        for name in (DIFFERENCE, *(f"{kind}_{layer:02d}" for kind in CONTROLS for layer in layers))
    }
    kinds = metric_kinds(layers)
    metrics = {variant: {name: np.zeros(count) for name in kinds} for variant in VARIANTS}
    tallies = {name: _Tally(len(layers)) for name in ("trained", "random")}
    shown: list[pd.DataFrame] = []
    tokens: list[pd.DataFrame] = []
    progress = Progress("comparing candidates", count, "prompts")
    for gradients in passes:
        at = np.array(gradients.numbers)
        included = included_rows(gradients)
        for name, values in _controls(gradients, layers, included).items():
            controls[name][at] = values
        found, strongest_tracks, by_token = _variants(
            gradients, included, layers, trained, random_decoders, options, seed, tallies
        )
        for variant, columns in found.items():
            for name, values in columns.items():
                metrics[variant][name][at] = values
        shown.append(strongest_tracks)
        tokens.append(_token_rows(gradients, by_token, compared, token_text))
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
    return CandidateTables(
        table,
        pd.concat(parts, ignore_index=True),
        completeness,
        _tracks_of_texts(shown, compared, ids, layers),
        _tokens_of_texts(tokens, compared, ids),
    )


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


def _token_rows(
    gradients: Gradients,
    attribution: tuple[Floats, Floats],
    compared: Comparisons,
    token_text: Callable[[int], str],
) -> pd.DataFrame:
    """The prompt tokens of some comparisons, with their attributions for either candidate."""
    words: list[str] = []
    for number in gradients.numbers:
        prompt = compared.distinct[number].prompt
        words += [token_text(int(token)) for token in prompt.ids[prompt.read]]
    starts = np.concatenate([[0], gradients.last[:-1] + 1])
    return pd.DataFrame(
        {
            "comparison": np.array(gradients.numbers)[gradients.text],
            "position": np.arange(len(gradients.text)) - starts[gradients.text] + 1,
            "token": words,
            "first": attribution[0],
            "second": attribution[1],
        }
    )


def _texts(compared: Comparisons, ids: Sequence[str]) -> pd.DataFrame:
    """The texts with a comparison, in their order, with its number and sign."""
    known = compared.number >= 0
    return pd.DataFrame(
        {
            "text": np.flatnonzero(known),
            "id": np.array(ids, dtype=object)[known],
            "comparison": compared.number[known],
            "sign": compared.sign[known],
        }
    )


def _tracks_of_texts(
    shown: Sequence[pd.DataFrame], compared: Comparisons, ids: Sequence[str], layers: Sequence[int]
) -> pd.DataFrame:
    """Tracks of comparisons -> of texts, for the stated answer and for the other candidate."""
    table = pd.concat([_NO_TRACKS, *shown], ignore_index=True)
    merged = _texts(compared, ids).merge(table, on="comparison")
    stated = (merged["side"] == 0) == (merged["sign"] > 0)
    merged = merged.assign(
        candidate=np.where(stated, STATED, OTHER),
        layer=np.array(layers)[merged["layer"].to_numpy(dtype=np.int64)],
    ).sort_values(["text", "side", "track", "layer"], kind="stable", ignore_index=True)
    return merged[
        ["id", "candidate", "track", "position", "layer", "feature", "attribution"]
    ].astype(
        {
            "track": np.int16,
            "position": np.int32,
            "layer": np.int16,
            "feature": np.int32,
            "attribution": np.float32,
        }
    )


def _tokens_of_texts(
    tokens: Sequence[pd.DataFrame], compared: Comparisons, ids: Sequence[str]
) -> pd.DataFrame:
    """Prompt tokens of comparisons -> of texts."""
    table = pd.concat([_NO_TOKENS, *tokens], ignore_index=True)
    merged = (
        _texts(compared, ids)
        .merge(table, on="comparison")
        .sort_values(["text", "position"], kind="stable", ignore_index=True)
    )
    ours = merged["sign"] > 0
    return merged.assign(
        **{
            STATED: merged["first"].where(ours, merged["second"]).astype(np.float32),
            OTHER: merged["second"].where(ours, merged["first"]).astype(np.float32),
        }
    )[["id", "position", "token", STATED, OTHER]].astype({"position": np.int32})


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
) -> tuple[dict[str, dict[str, Floats]], pd.DataFrame, tuple[Floats, Floats]]:
    """Metrics of every variant, and the strongest tracks of the tracker (SHOWN_TRACKS)."""
    entries, parts = _layers(trained.saes, gradients, included, tallies["trained"])
    of_layers = _layer_columns(entries, parts, gradients, layers)
    rows, default = len(gradients.text), trained.plans["default"]
    detections = detected(entries, rows, options.ranks)
    tables = follow(detections, default, options)
    shown = strongest(tables, gradients, SHOWN_TRACKS)
    of_tracks = {
        "default": tables,
        **{
            variant: follow(detections, trained.plans[variant], options)
            for variant in ("untracked", "shuffled")
        },
        "random": with_random_links(tables, gradients, options, [seed]),
    }
    permuted = [
        permute_candidates(each, gradients, [seed, layer])
        for each, layer in zip(entries, layers, strict=True)
    ]
    of_tracks["candidates"] = follow(detected(permuted, rows, options.ranks), default, options)
    null, null_parts = _layers(random_decoders.saes, gradients, included, tallies["random"])
    of_tracks["decoders"] = follow(
        detected(null, rows, options.ranks), random_decoders.plans["default"], options
    )
    of_variant = dict.fromkeys(("default", *LINK_NULLS), of_layers) | {
        "candidates": _layer_columns(permuted, parts, gradients, layers),
        "decoders": _layer_columns(null, null_parts, gradients, layers),
    }
    found = {
        variant: of_variant[variant] | _prefixed("track_", track_metrics(tables, gradients))
        for variant, tables in of_tracks.items()
    }
    return found, shown, _by_token(entries, gradients)


def _by_token(entries: Sequence[Entries], gradients: Gradients) -> tuple[Floats, Floats]:
    """Attribution in favour of either candidate by prompt token, mean over layers, each (rows,)."""
    rows = len(gradients.text)
    first, second = (
        sum(total_of(np.maximum(sign * each.value, 0), each.row, rows) for each in entries)
        / len(entries)
        for sign in (1, -1)
    )
    return np.asarray(first), np.asarray(second)


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
