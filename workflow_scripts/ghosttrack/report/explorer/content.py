"""The content of the explorer as plain lists: an index of all texts, blocks of texts, and a dictionary a layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import controls
from ghosttrack.errors import UserError
from ghosttrack.report.explorer import choice, dictionary, texts
from ghosttrack.report.explorer import tracks as explorer_tracks
from ghosttrack.settings import ReportSettings
from ghosttrack.tracks.track_metrics import ReadableTracks

# Texts that are unpacked together: about 50 kB, a few milliseconds.
BLOCK = 50
# Detections in all, about 5 bytes each once packed: many long answers get fewer tracks a token, but never under LEAST.
DETECTIONS, LEAST = 1_500_000, 4
# Mean detections of a track that is among the strongest of its token, for the plan above.
TRACK_LENGTH = 2.5
# A feature on more of the tokens than this says little by its name; the same bound as `dense_fraction` of quality.json.
DENSE = 0.1


class DatasetTables(NamedTuple):
    """What is known of one data set: its examples, their answer tokens and outputs, and its tracks."""

    examples: pd.DataFrame
    tokens: pd.DataFrame
    outputs: pd.DataFrame
    tracks: ReadableTracks


class Explained(NamedTuple):
    """What the saved detector says of tokens and features, from fits that never saw a text's group.

    tokens: columns dataset, row, fold, probe; weights: columns fold, layer, feature, weight: by how much a token's log-odds
    fall for a unit of activation. A text's are the mean over its answer's tokens. `fold` names the fit.
    """

    tokens: pd.DataFrame
    weights: pd.DataFrame


class Content(NamedTuple):
    """Parts of the page, each a JSON-able value."""

    about: dict[str, Any]
    listing: dict[str, list[Any]]
    blocks: list[list[dict[str, Any]]]
    names: list[dict[str, Any]]
    layers: list[dict[str, Any]]


def assemble(
    model: str,
    datasets: Mapping[str, DatasetTables],
    scores: pd.DataFrame,
    features: Mapping[int, pd.DataFrame],
    tokenizer: Any,
    settings: ReportSettings,
    explained: Explained | None = None,
    clusters: pd.DataFrame | None = None,
) -> Content:
    """Choose the texts and gather what the page says of them.

    Args:
        scores: long table of out-of-fold scores, of all sets; features: dictionary by layer, ascending.
        tokenizer: the model's fast tokenizer.
        explained: None where no detector was saved: no probe colours, no contributions.
        clusters: columns layer, feature, cluster; None where features are not clustered.
    """
    table = _table(datasets, scores)
    kept = choice.choose(table, settings.explorer_texts)
    shown = table.iloc[kept].reset_index(drop=True)
    most = _tracks_per_token(shown, settings.explorer_tracks)
    found = [*_texts(shown, datasets, tokenizer, most, explained)]
    drawn = _drawn(found, list(features))
    contexts = dictionary.contexts_per_feature(sum(map(len, drawn.values())))
    named = {layer: _clusters_of(clusters, layer) for layer in features}
    about = {
        "model": model,
        "layers": list(features),
        "sets": list(datasets),
        "scale": [round(float(value), 6) for value in next(iter(datasets.values())).tracks.scale],
        "levels": explorer_tracks.LEVELS,
        "texts": len(shown),
        "of": len(table),
        "block": BLOCK,
        "most": most,
        "picks": [[pick.row, pick.why] for pick in choice.picks(shown)],
        "probe": explained is not None,
        "clusters": clusters is not None,
        "contexts": contexts,
    }
    return Content(
        about,
        _index(shown, list(datasets)),
        [found[start : start + BLOCK] for start in range(0, len(found), BLOCK)],
        [
            _names(features[layer], drawn[layer], layer, explained, named[layer])
            for layer in features
        ],
        [
            dictionary.of_layer(features[layer], drawn[layer], contexts, named[layer])
            for layer in features
        ],
    )


def _table(datasets: Mapping[str, DatasetTables], scores: pd.DataFrame) -> pd.DataFrame:
    """All texts of all sets with the detector's score; texts that were not evaluated are left out."""
    own, output = (
        scores.loc[scores["score"] == name, ["dataset", "id", "value"]]
        for name in (registry.DETECTOR, registry.OUTPUT_REGRESSION)
    )
    own = own.rename(columns={"value": "score"}).merge(
        output.rename(columns={"value": "output"}),
        on=["dataset", "id"],
        how="left",
        validate="one_to_one",
    )
    parts = []
    for name, found in datasets.items():
        if list(found.outputs["id"]) != list(found.examples["id"]):
            raise UserError(
                f"{name}: outputs.parquet and examples.parquet list different examples: delete both and run again"
            )
        examples = found.examples.assign(
            dataset=name,
            example=np.arange(len(found.examples)),
            seen=controls.visible_text(found.examples),
            row_start=found.outputs["row_start"].to_numpy(),
            row_count=found.outputs["row_count"].to_numpy(),
        )
        parts.append(examples)
    table = pd.concat(parts, ignore_index=True).merge(
        own, on=["dataset", "id"], how="inner", validate="one_to_one"
    )
    if table.empty:
        raise UserError(
            "detection/scores.parquet scores none of the examples: delete it and run again"
        )
    return table


def _tracks_per_token(shown: pd.DataFrame, most: int) -> int:
    tokens = int(shown["row_count"].sum())
    return min(most, max(LEAST, int(DETECTIONS / TRACK_LENGTH / max(tokens, 1))))


def _index(shown: pd.DataFrame, names: list[str]) -> dict[str, list[Any]]:
    """What the list of texts needs, a column each."""
    twins = choice.twins(shown)
    return {
        "id": [str(value) for value in shown["id"]],
        "set": [names.index(value) for value in shown["dataset"]],
        "label": [int(value) for value in shown["label"]],
        **{
            key: [None if pd.isna(value) else round(float(value), 4) for value in shown[key]]
            for key in ("score", "output")
        },
        "twin": [int(value) for value in twins],
        "text": [str(value) for value in shown["seen"]],
    }


def _texts(
    shown: pd.DataFrame,
    datasets: Mapping[str, DatasetTables],
    tokenizer: Any,
    most: int,
    explained: Explained | None,
) -> Iterator[dict[str, Any]]:
    """Every shown text in order: its parts, its answer's tokens with their scores, their tracks."""
    for name, part in shown.groupby("dataset", sort=False):
        found = datasets[str(name)]
        probe, fit = _probe(explained, str(name), len(found.tokens))
        rows = [
            row
            for start, count in zip(part["row_start"], part["row_count"], strict=True)
            for row in range(start, start + count)
        ]
        followed = explorer_tracks.of_rows(found.tracks, rows, most)
        offsets = texts.offsets_of_examples(part, tokenizer)
        columns = {
            key: found.tokens[key].to_numpy() for key in ("position", "logprob", "entropy", "rank")
        }
        for row, places in zip(part.itertuples(), offsets, strict=True):
            here = slice(int(row.row_start), int(row.row_start + row.row_count))
            positions = columns["position"][here].tolist()
            texts.require_positions(positions, places, f"{name}, id {row.id}")
            parted = texts.part(str(row.text), [places[position - 1] for position in positions])
            tokens = [followed[number] for number in range(here.start, here.stop)]
            yield {
                "before": parted.before,
                "pieces": parted.pieces,
                "after": parted.after,
                "gold": [str(answer) for answer in row.gold] if row.gold is not None else [],
                "fit": int(fit[here.start]),
                "surprise": _rounded(-columns["logprob"][here]),
                "entropy": _rounded(columns["entropy"][here]),
                "rank": columns["rank"][here].tolist(),
                "probe": None if explained is None else _rounded(probe[here]),
                "tracks": [[list(track) for track in token.shown] for token in tokens],
                "total": [token.total for token in tokens],
            }


def _probe(explained: Explained | None, dataset: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Probe score of every row of a set and the fit that gave it, each (rows,); NaN and -1 where there is none."""
    values, fit = np.full(rows, np.nan), np.full(rows, -1)
    if explained is not None:
        part = explained.tokens[explained.tokens["dataset"] == dataset]
        values[part["row"].to_numpy()], fit[part["row"].to_numpy()] = part["probe"], part["fold"]
    return values, fit


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 3) for value in values]


def _drawn(found: Sequence[Mapping[str, Any]], layers: Sequence[int]) -> dict[int, list[int]]:
    """Features that any drawn track has, by layer, ascending."""
    drawn: dict[int, set[int]] = {layer: set() for layer in layers}
    for text in found:
        for token in text["tracks"]:
            for first, features, _ in token:
                for layer, feature in zip(layers[first:], features, strict=False):
                    drawn[layer].add(feature)
    return {layer: sorted(numbers - {-1}) for layer, numbers in drawn.items()}


def _names(
    features: pd.DataFrame,
    drawn: list[int],
    layer: int,
    explained: Explained | None,
    clusters: Mapping[int, str] | None,
) -> dict[str, Any]:
    """What a drawing needs of a layer at once: its features, their names, and what each adds to the score by fold."""
    rows = features.set_index("feature").loc[drawn]
    named: dict[str, Any] = {
        "feature": drawn,
        "dense": [int(density > DENSE) for density in rows["density"]],
        "name": [
            dictionary.name_of(top, output)
            for top, output in zip(rows["top_text"], rows["output_text"], strict=True)
        ],
    }
    if clusters is not None:
        named["cluster"] = [clusters.get(feature, "") for feature in drawn]
    if explained is not None:
        own = explained.weights[explained.weights["layer"] == layer]
        folds = (
            own.pivot(index="feature", columns="fold", values="weight").reindex(drawn).fillna(0.0)
        )
        named["weight"] = {
            str(fold): [round(float(value), 5) for value in folds[fold]] for fold in folds.columns
        }
    return named


def _clusters_of(clusters: pd.DataFrame | None, layer: int) -> dict[int, str] | None:
    if clusters is None:
        return None
    own = clusters[clusters["layer"] == layer]
    return {
        int(feature): str(cluster)
        for feature, cluster in zip(own["feature"], own["cluster"], strict=True)
    }
