"""The two candidate answers of every text: their tracks, the logit lens, and what the output prefers."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.facts.examples import same_text

# Columns that are read from candidates/DATASET.metrics.parquet, before and after the layer's number.
_SUMS = ("layer_{:02d}_for", "layer_{:02d}_against")
_SIDES = ("stated", "other")


class Candidates(NamedTuple):
    """Tables of rule attribute_candidates; of the metrics, the rows of the tracker."""

    controls: pd.DataFrame
    metrics: pd.DataFrame
    tracks: pd.DataFrame
    tokens: pd.DataFrame


def metric_columns(layers: list[int]) -> list[str]:
    """Columns of metrics.parquet that the page needs."""
    return ["id", "variant", *(name.format(layer) for layer in layers for name in _SUMS)]


def margin(examples: pd.DataFrame, candidates: Candidates | None) -> np.ndarray:
    """Absolute logit difference of the candidates of each text, NaN without a comparison."""
    if candidates is None:
        return np.full(len(examples), np.nan)
    known = candidates.controls[candidates.controls["compared"]].set_index("id")["difference"]
    return np.asarray(known.abs().reindex(examples["id"]), dtype=np.float64)


def of_texts(
    examples: pd.DataFrame, candidates: Candidates | None, layers: list[int]
) -> dict[str, dict[str, Any]]:
    """The comparison of each text that has one, by id, as JSON-able values.

    answers, truth: of the stated answer and of the other candidate. asserted: 0 or 1, the one that
    the remark asserts; -1 without one. difference: logit of the stated answer minus that of the
    other. lens: the same by the logit lens, by layer. sums: attribution in favour of each, by
    layer. tokens: [text, attribution for the stated answer, for the other]. tracks: [candidate,
    position of the token, place of the first layer, feature by layer, attribution by layer]; -1
    and 0 in a silent layer.
    """
    if candidates is None:
        return {}
    controls, metrics = (table.set_index("id") for table in candidates[:2])
    tracks = _tracks(candidates.tracks, layers)
    tokens: dict[str, list[list[Any]]] = {}
    for name, token, stated, other in candidates.tokens[["id", "token", *_SIDES]].itertuples(
        index=False
    ):
        tokens.setdefault(name, []).append([token, _short(stated), _short(other)])
    lens = controls[[f"lens_{layer:02d}" for layer in layers]].to_numpy()
    sums = [metrics[[name.format(layer) for layer in layers]].to_numpy() for name in _SUMS]
    place = {name: at for at, name in enumerate(controls.index)}
    place_of_sums = {name: at for at, name in enumerate(metrics.index)}
    compared, difference = controls["compared"].to_numpy(), controls["difference"].to_numpy()
    found: dict[str, dict[str, Any]] = {}
    for row in examples.to_dict("records"):
        name = row["id"]
        if name not in place or not compared[place[name]]:
            continue
        gold = [] if row["gold"] is None else [same_text(str(answer)) for answer in row["gold"]]
        generated = row["mode"] == "generated"
        asserted = same_text(str(row.get("remark_answer") or ""))
        pair = [str(row["answer"]), str(row["other"])]
        found[name] = {
            "answers": pair,
            "truth": [
                row["label"] == 0,
                same_text(pair[1]) in gold if generated else row["label"] == 1,
            ],
            "asserted": next(
                (
                    at
                    for at, answer in enumerate(pair)
                    if asserted and same_text(answer) == asserted
                ),
                -1,
            ),
            "difference": _short(difference[place[name]]),
            "lens": [_short(value) for value in lens[place[name]]],
            "sums": [[_short(value) for value in each[place_of_sums[name]]] for each in sums],
            "tokens": tokens.get(name, []),
            "tracks": tracks.get(name, []),
        }
    return found


def _tracks(table: pd.DataFrame, layers: list[int]) -> dict[str, list[list[Any]]]:
    """The tracks of each text; rows of a track are neighbours, layers ascending."""
    place = {layer: at for at, layer in enumerate(layers)}
    found: dict[str, list[list[Any]]] = {}
    before = None
    columns = ["id", "candidate", "track", "position", "layer", "feature", "attribution"]
    for name, candidate, track, position, layer, feature, value in table[columns].itertuples(
        index=False
    ):
        at = place[layer]
        if (name, candidate, track) != before:
            before = (name, candidate, track)
            last: list[Any] = [_SIDES.index(candidate), int(position), at, [], []]
            found.setdefault(name, []).append(last)
        silent = at - last[2] - len(last[3])
        last[3] += [-1] * silent + [int(feature)]
        last[4] += [0.0] * silent + [_short(value)]
    return found


def _short(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)
