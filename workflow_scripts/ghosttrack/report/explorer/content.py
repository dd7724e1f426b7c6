"""The content of the explorer: index of texts, blocks of texts, features by layer."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.detection import controls
from ghosttrack.errors import UserError
from ghosttrack.report import misled
from ghosttrack.report.explorer import candidates as explorer_candidates
from ghosttrack.report.explorer import choice, dictionary, texts
from ghosttrack.report.explorer import spans as explorer_spans
from ghosttrack.report.explorer import tracks as explorer_tracks
from ghosttrack.settings import ReportSettings
from ghosttrack.tracks.track_metrics import ReadableTracks

# Texts and answer tokens per block; a block is about 50 kB and unpacks in a few milliseconds. A
# longer answer has a block of its own.
BLOCK, BLOCK_TOKENS = 50, 2000
# Limit on detections, about 5 bytes each when packed. Many or long answers get fewer tracks per
# token, but at least LEAST.
DETECTIONS, LEAST = 1_500_000, 4
# Expected number of detections of a shown track, for this limit.
TRACK_LENGTH = 2.5
# Density above which a feature is dense, as for `dense_fraction` of quality.json.
DENSE = 0.1


class DatasetTables(NamedTuple):
    """Tables of one data set: examples, their answer tokens and outputs, and the tracks.

    candidates: of the comparison of candidate answers; None if they are not compared.
    spans: scores of tokens, from `marked.with_thresholds`; None without hallucinated spans.
    """

    examples: pd.DataFrame
    tokens: pd.DataFrame
    outputs: pd.DataFrame
    tracks: ReadableTracks
    candidates: explorer_candidates.Candidates | None = None
    spans: pd.DataFrame | None = None


class DetectorTables(NamedTuple):
    """Out-of-fold results of the saved detector by token and by feature; `fold` names the fit.

    tokens: columns dataset, row, fold, probe.
    weights: columns fold, layer, feature, weight. The weight is the decrease of a token's log-odds
        per unit of ablated activation; the log-odds of a text are the mean over its answer tokens.
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
    passages: list[list[str]]


def assemble(
    model: str,
    datasets: Mapping[str, DatasetTables],
    scores: pd.DataFrame,
    features: Mapping[int, pd.DataFrame],
    tokenizer: Any,
    settings: ReportSettings,
    detector: DetectorTables | None = None,
    clusters: pd.DataFrame | None = None,
) -> Content:
    """Select the texts and collect the content of the page.

    Args:
        model: name of the model.
        datasets: tables by data set.
        scores: long table of out-of-fold scores of all data sets.
        features: features/layer_LL.parquet by layer, ascending.
        tokenizer: the model's fast tokenizer.
        settings: number of texts and of tracks per token.
        detector: None if no detector was saved: no probe scores, no contributions.
        clusters: columns layer, feature, cluster; None if features are not clustered.

    Raises:
        UserError: tables are from different runs.
    """
    table = _table(datasets, scores)
    rows = choice.choose(table, settings.explorer_texts)
    shown = table.iloc[rows].reset_index(drop=True)
    most = _tracks_per_token(shown, settings.explorer_tracks)
    passages = explorer_spans.Contexts()
    contents = [*_texts(shown, datasets, list(features), tokenizer, most, detector, passages)]
    starts = _block_starts(contents)
    drawn = _drawn(contents, list(features))
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
        "blocks": starts,
        "passages": explorer_spans.PASSAGES if passages.packed() else 0,
        "spans": any("marks" in text for text in contents),
        "token": any("token" in text for text in contents),
        "most": most,
        "picks": [[pick.row, pick.why] for pick in choice.picks(shown)],
        "probe": detector is not None,
        "clusters": clusters is not None,
        "candidates": any("candidates" in text for text in contents),
        "sway": bool(shown["sway"].notna().any()),
        "contexts": contexts,
    }
    return Content(
        about,
        _index(shown, list(datasets)),
        [contents[start:end] for start, end in itertools.pairwise([*starts, len(contents)])],
        [
            _names(features[layer], drawn[layer], layer, detector, named[layer])
            for layer in features
        ],
        [
            dictionary.of_layer(features[layer], drawn[layer], contexts, named[layer])
            for layer in features
        ],
        passages.packed(),
    )


def _block_starts(contents: Sequence[Mapping[str, Any]]) -> list[int]:
    """First text of each block."""
    starts: list[int] = []
    size = 0
    for number, text in enumerate(contents):
        size += len(text["pieces"])
        if not starts or number - starts[-1] == BLOCK or size > BLOCK_TOKENS:
            starts.append(number)
            size = len(text["pieces"])
    return starts


def _table(datasets: Mapping[str, DatasetTables], scores: pd.DataFrame) -> pd.DataFrame:
    """All evaluated texts of all data sets with the scores of detector and output regression."""
    by_detector, by_output = (
        scores.loc[scores["score"] == name, ["dataset", "id", "value"]]
        for name in (registry.DETECTOR, registry.OUTPUT_REGRESSION)
    )
    both = by_detector.rename(columns={"value": "score"}).merge(
        by_output.rename(columns={"value": "output"}),
        on=["dataset", "id"],
        how="left",
        validate="one_to_one",
    )
    parts = []
    for name, tables in datasets.items():
        if list(tables.outputs["id"]) != list(tables.examples["id"]):
            raise UserError(
                f"{name}: outputs.parquet and examples.parquet list different examples: delete "
                "both and run again"
            )
        compared = None if tables.candidates is None else tables.candidates.controls
        examples = tables.examples.assign(
            dataset=name,
            example=np.arange(len(tables.examples)),
            seen=controls.visible_text(tables.examples),
            row_start=tables.outputs["row_start"].to_numpy(),
            row_count=tables.outputs["row_count"].to_numpy(),
            margin=explorer_candidates.margin(tables.examples, tables.candidates),
            sway=pd.array(misled.sway(tables.examples, compared), dtype="Int64"),
        )
        parts.append(examples)
    table = pd.concat(parts, ignore_index=True).merge(
        both, on=["dataset", "id"], how="inner", validate="one_to_one"
    )
    if table.empty:
        raise UserError(
            "detection/scores.parquet has no score of any example: delete it and run again"
        )
    return table


def _tracks_per_token(shown: pd.DataFrame, most: int) -> int:
    tokens = int(shown["row_count"].sum())
    return min(most, max(LEAST, int(DETECTIONS / TRACK_LENGTH / max(tokens, 1))))


def _index(shown: pd.DataFrame, names: list[str]) -> dict[str, list[Any]]:
    """The columns of the list of texts."""
    return {
        "id": [str(value) for value in shown["id"]],
        "set": [names.index(value) for value in shown["dataset"]],
        "label": [int(value) for value in shown["label"]],
        **{
            key: [None if pd.isna(value) else round(float(value), 4) for value in shown[key]]
            for key in ("score", "output")
        },
        "sway": [None if pd.isna(value) else int(value) for value in shown["sway"]],
        "counterpart": [int(value) for value in choice.counterparts(shown)],
        "text": [str(value) for value in shown["seen"]],
    }


def _texts(
    shown: pd.DataFrame,
    datasets: Mapping[str, DatasetTables],
    layers: list[int],
    tokenizer: Any,
    most: int,
    detector: DetectorTables | None,
    passages: explorer_spans.Contexts,
) -> Iterator[dict[str, Any]]:
    """Every shown text in order: its pieces, its answer tokens with their scores, their tracks."""
    for name, part in shown.groupby("dataset", sort=False):
        tables = datasets[str(name)]
        probe, fit = _probe(detector, str(name), len(tables.tokens))
        rows = [
            row
            for start, count in zip(part["row_start"], part["row_count"], strict=True)
            for row in range(start, start + count)
        ]
        tracks = explorer_tracks.of_rows(tables.tracks, rows, most)
        marked = None if tables.spans is None else tables.spans.set_index("row")
        compared = explorer_candidates.of_texts(part, tables.candidates, layers)
        offsets = texts.offsets_of_examples(part, tokenizer)
        columns = {
            key: tables.tokens[key].to_numpy() for key in ("position", "logprob", "entropy", "rank")
        }
        for row, token_offsets in zip(part.itertuples(), offsets, strict=True):
            here = slice(int(row.row_start), int(row.row_start + row.row_count))
            positions = columns["position"][here].tolist()
            texts.require_positions(positions, token_offsets, f"{name}, id {row.id}")
            parts = texts.part(
                str(row.text), [token_offsets[position - 1] for position in positions]
            )
            # Other data sets may have these columns, and this one NaN in them.
            passage = passages.place(row.context if "context" in tables.examples else "")
            tokens = [tracks[number] for number in range(here.start, here.stop)]
            yield {
                "before": parts.before,
                "pieces": parts.pieces,
                "after": parts.after,
                "gold": [str(answer) for answer in row.gold] if row.gold is not None else [],
                "fit": int(fit[here.start]),
                "surprise": _rounded(-columns["logprob"][here]),
                "entropy": _rounded(columns["entropy"][here]),
                "rank": columns["rank"][here].tolist(),
                "probe": None if detector is None else _rounded(probe[here]),
                "tracks": [[list(track) for track in token.shown] for token in tokens],
                "total": [token.total for token in tokens],
                **({"candidates": compared[row.id]} if row.id in compared else {}),
                **({"passage": passage} if passage >= 0 else {}),
                **(
                    _spans(row, len(parts.before), parts.pieces, marked)
                    if "spans" in tables.examples
                    else {}
                ),
            }


def _spans(
    row: Any, begin: int, pieces: Sequence[str], scores: pd.DataFrame | None
) -> dict[str, Any]:
    """Marks of an answer with hallucinated spans, and its scores of tokens."""
    own = None
    if scores is not None:
        own = scores.reindex(range(int(row.row_start), int(row.row_start + row.row_count)))
        own = own if own["label"].notna().all() else None
    return explorer_spans.of_text(row, begin, pieces, own)


def _probe(
    detector: DetectorTables | None, dataset: str, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probe score and fold of every row of a data set, each (rows,); NaN and -1 without one."""
    values, fit = np.full(rows, np.nan), np.full(rows, -1)
    if detector is not None:
        part = detector.tokens[detector.tokens["dataset"] == dataset]
        values[part["row"].to_numpy()], fit[part["row"].to_numpy()] = part["probe"], part["fold"]
    return values, fit


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 3) for value in values]


def _drawn(contents: Sequence[Mapping[str, Any]], layers: Sequence[int]) -> dict[int, list[int]]:
    """Features of all shown tracks by layer, ascending."""
    drawn: dict[int, set[int]] = {layer: set() for layer in layers}
    for text in contents:
        for token in text["tracks"]:
            for first, features, _ in token:
                for layer, feature in zip(layers[first:], features, strict=False):
                    drawn[layer].add(feature)
    return {layer: sorted(numbers - {-1}) for layer, numbers in drawn.items()}


def _names(
    features: pd.DataFrame,
    drawn: list[int],
    layer: int,
    detector: DetectorTables | None,
    clusters: Mapping[int, str] | None,
) -> dict[str, Any]:
    """The drawn features of a layer with their names, clusters, and weights by fold."""
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
    if detector is not None:
        weights = detector.weights[detector.weights["layer"] == layer]
        folds = (
            weights.pivot(index="feature", columns="fold", values="weight")
            .reindex(drawn)
            .fillna(0.0)
        )
        named["weight"] = {
            str(fold): [round(float(value), 5) for value in folds[fold]] for fold in folds.columns
        }
    return named


def _clusters_of(clusters: pd.DataFrame | None, layer: int) -> dict[int, str] | None:
    if clusters is None:
        return None
    part = clusters[clusters["layer"] == layer]
    return {
        int(feature): str(cluster)
        for feature, cluster in zip(part["feature"], part["cluster"], strict=True)
    }
