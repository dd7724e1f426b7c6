"""A made-up run for the explorer: hostile texts, random tracks, descriptions of features."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from small_models import WORDS, make_tokenizer

from ghosttrack.runtime import files
from ghosttrack.settings import ReportSettings
from ghosttrack.tracks import track_table
from ghosttrack.tracks.track_table import TrackTable, blank
from report import write_explorer

LAYERS, SLOTS, FEATURES = [1, 2, 3], 6, 40
# Answers that a page could stumble over; each is the false answer of one group.
HOSTILE = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "arabic": "مدينة باريس",
    "emoji": "👩‍👩‍👧 😀",
    "quotes": "\"'`${0}</script>\\",
    "long": "word " * 2000,
}


class Run(NamedTuple):
    """Files that write_explorer reads."""

    examples: list[Path]
    tokens: list[Path]
    outputs: list[Path]
    tracks: list[Path]
    tracks_manifests: list[Path]
    features: list[Path]
    scores: Path
    tokenizer: Path
    token_scores: Path
    effects: Path


def make(folder: Path, groups: int = 12) -> Run:
    """Write the files: given statements with hostile texts, and generated answers."""
    return _made(folder, {"cities": _given(groups), "questions": _generated(groups)})


def make_long(folder: Path, answers: int, words: int) -> Run:
    """Write the files of generated answers of many words to `questions`, a token each."""
    rng = np.random.default_rng(7)
    known = [word for word in " ".join(WORDS).split() if word.isalpha()]
    return _made(
        folder, {"questions": _generated(answers, lambda: " ".join(rng.choice(known, words)))}
    )


def _made(folder: Path, sets: Mapping[str, pd.DataFrame]) -> Run:
    """Write the files of examples by data set."""
    rng = np.random.default_rng(0)
    tokenizer = make_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "model")
    run = Run(
        [],
        [],
        [],
        [],
        [],
        [],
        folder / "scores.parquet",
        folder / "model" / "tokenizer.json",
        folder / "token_scores.parquet",
        folder / "effects.parquet",
    )
    scores = []
    for name, examples in sets.items():
        tokens, outputs = _tokens(examples, tokenizer, rng)
        for paths, table, kind in (
            (run.examples, examples, "examples"),
            (run.tokens, tokens, "tokens"),
            (run.outputs, outputs, "outputs"),
        ):
            paths.append(folder / f"{name}.{kind}.parquet")
            table.to_parquet(paths[-1])
        _tracks(folder, name, len(tokens), rng, run)
        score = np.clip(
            0.5 + 0.35 * (2 * examples["label"] - 1) + rng.normal(0, 0.3, len(examples)), 0.01, 0.99
        )
        for name_of_score, family, values in (
            ("ghosttrack", "detector", score),
            ("output_regression", "output", 0.25),
        ):
            if name == "cities" or family == "detector":
                scores.append(
                    examples[["id", "group", "label"]].assign(
                        dataset=name,
                        mode=examples["mode"].iloc[0],
                        fold=np.arange(len(examples)) // 2 % 3,
                        score=name_of_score,
                        family=family,
                        value=values,
                        reason="",
                    )
                )
    pd.concat(scores).to_parquet(run.scores)
    _explained(run.token_scores, run.effects, rng)
    for layer in LAYERS:
        run.features.append(folder / f"layer_{layer:02d}.parquet")
        _features(layer, rng).to_parquet(run.features[-1])
    return run


def write(run: Run, page: Path, **changes: Any) -> None:
    """Write the page of a run."""
    about: dict[str, Any] = {
        "explorer": page,
        "report": ReportSettings(),
        "model": "<b>tiny</b>",
        "datasets": ["cities", "questions"],
        "layers": LAYERS,
    }
    write_explorer.main(**{**run._asdict(), **about, **changes})


def compare_candidates(run: Run, folder: Path, wording: str = "hearsay") -> Run:
    """The run after a remark before every text of `cities`, with comparisons of its candidates.

    The output follows the remarks of even groups. The first group has no comparison.
    """
    rng = np.random.default_rng(3)
    examples = pd.read_parquet(run.examples[0])
    rows: list[dict[str, Any]] = []
    for row in examples.to_dict("records"):
        other = examples[(examples["group"] == row["group"]) & (examples["id"] != row["id"])]
        asserted = "Paris" if len(rows) % 4 < 2 else f"Lyon {len(rows)}"
        rows.append(
            {
                **row,
                "other": other["answer"].iloc[0],
                "remark": "Some say so. ",
                "remark_answer": asserted if asserted == "Paris" else HOSTILE["markup"],
                "wording": wording,
            }
        )
        false = row["answer"] if row["label"] else rows[-1]["other"]
        if rows[-1]["remark_answer"] != "Paris":
            rows[-1]["remark_answer"] = false
    made = pd.DataFrame(rows)
    path = folder / "cities.remarks.parquet"
    made.to_parquet(path)
    (folder / "candidates").mkdir()
    _candidates(made, folder, rng)
    return run._replace(examples=[path, *run.examples[1:]])


def candidate_files(folder: Path) -> list[Path]:
    """The tables that `compare_candidates` writes."""
    return [
        folder / "candidates" / f"cities.{kind}.parquet"
        for kind in ("controls", "metrics", "tracks", "tokens")
    ]


PASSAGE = "Passage {}: <b>Lyon</b> & Paris are cities.\nA second line 🙂."


def mark_spans(run: Run, folder: Path) -> dict[str, Any]:
    """Inputs of write_explorer for `cities` with contexts, spans and scores of tokens.

    The second half of each false answer is marked by all annotators, its first character by half of
    them, which is not enough. The token detector calls the last token of each answer.
    """
    examples = pd.read_parquet(run.examples[0])
    tokens, outputs = pd.read_parquet(run.tokens[0]), pd.read_parquet(run.outputs[0])
    spans = [
        [
            {"start": 0, "end": 1, "probability": 0.5},
            {"start": len(answer) // 2, "end": len(answer), "probability": 1.0},
        ]
        if label
        else []
        for answer, label in zip(examples["answer"], examples["label"], strict=True)
    ]
    groups = examples["group"].factorize()[0]
    path = folder / "cities.spans.parquet"
    examples.assign(spans=spans, context=[PASSAGE.format(group) for group in groups]).to_parquet(
        path
    )
    last = outputs["row_start"] + outputs["row_count"] - 1
    begins = np.zeros(len(tokens), dtype=np.int64)
    score = np.full(len(tokens), 0.1)
    score[last] = 0.4
    table = pd.DataFrame(
        {
            "id": examples["id"].to_numpy()[tokens["example"]],
            "fold": tokens["example"] // 2 % 3,
            "row": np.arange(len(tokens)),
            "start": begins,
            "end": begins,
            "label": examples["label"].to_numpy()[tokens["example"]],
            "marked": begins,
            "token_detector": score,
        }
    )
    home = folder / "cities"
    home.mkdir()
    table.to_parquet(home / "span_scores.parquet")
    pd.DataFrame({"score": "token_detector", "fold": range(3), "threshold": 0.25}).to_csv(
        home / "span_choices.csv", index=False
    )
    return {
        "examples": [path, *run.examples[1:]],
        "span_scores": [home / "span_scores.parquet"],
        "span_choices": [home / "span_choices.csv"],
    }


def _candidates(examples: pd.DataFrame, folder: Path, rng: np.random.Generator) -> None:
    ids, controls, metrics, tracks, tokens = list(examples["id"]), [], [], [], []
    for place, row in enumerate(examples.to_dict("records")):
        agrees = row["answer"] == row["remark_answer"]
        follows = place // 2 % 2 == 0 or place // 2 % 4 == 1
        compared = place > 1
        sign = 1 if agrees == follows else -1
        controls.append(
            {
                "id": row["id"],
                "compared": compared,
                "difference": sign * (1.0 + place) * compared,
                **{f"lens_{layer:02d}": sign * 0.5 * layer * compared for layer in LAYERS},
            }
        )
        sums = {
            f"layer_{layer:02d}_{name}": rng.uniform(4, 9) * compared
            for layer in LAYERS
            for name in ("for", "against")
        }
        metrics += [{"id": row["id"], "variant": name, **sums} for name in ("default", "random")]
        if not compared:
            continue
        for candidate in ("stated", "other"):
            for number in range(3):
                layers = LAYERS if number != 1 else [LAYERS[0], LAYERS[2]]
                tracks += [
                    {
                        "id": row["id"],
                        "candidate": candidate,
                        "track": number,
                        "position": 2 + number,
                        "layer": layer,
                        "feature": (7 * number + layer + place) % FEATURES,
                        "attribution": rng.uniform(0.5, 2) / (1 + number),
                    }
                    for layer in layers
                ]
        words = ["Some", " say", " <i>so</i>", ".", *(f" word{word}" for word in range(18))]
        tokens += [
            {
                "id": row["id"],
                "position": 1 + at,
                "token": word,
                "stated": rng.exponential(1),
                "other": rng.exponential(1),
            }
            for at, word in enumerate(words)
        ]
    assert len(ids) == len(controls)
    for path, rows in zip(
        candidate_files(folder), (controls, metrics, tracks, tokens), strict=True
    ):
        pd.DataFrame(rows).to_parquet(path)


def _explained(tokens: Path, effects: Path, rng: np.random.Generator) -> None:
    """Probe scores of the first rows of the first data set, and weights of features by fold."""
    probe = pd.DataFrame(
        {
            "dataset": "cities",
            "row": np.arange(20),
            "fold": np.arange(20) % 3,
            "probe": rng.normal(0, 2, 20),
        }
    )
    probe.to_parquet(tokens)
    places = pd.MultiIndex.from_product(
        [[0, 1, 2, -1], LAYERS, range(FEATURES)], names=["fold", "layer", "feature"]
    )
    places.to_frame(index=False).assign(weight=rng.normal(0, 0.3, len(places))).to_parquet(effects)


def _row(name: str, group: str, prompt: str, answer: str, label: int, mode: str) -> dict[str, Any]:
    text = f"{prompt} {answer}" + ("." if mode == "given" else "")
    return {
        "id": name,
        "group": group,
        "prompt": prompt,
        "answer": answer,
        "text": text,
        "answer_start": len(prompt) + 1,
        "answer_end": len(prompt) + 1 + len(answer),
        "label": label,
        "mode": mode,
        "gold": ["Paris"],
        "question": "Where?",
        "relation": "place",
    }


def _given(groups: int) -> pd.DataFrame:
    rows = []
    for group in range(groups):
        kind = list(HOSTILE)[group] if group < len(HOSTILE) else f"plain-{group}"
        for label, answer in enumerate(("Paris", HOSTILE.get(kind, f"Lyon {group}"))):
            rows.append(
                _row(
                    f"cities-{kind}-{label}",
                    kind,
                    f"The city {group} is",
                    answer.strip(),
                    label,
                    "given",
                )
            )
    return pd.DataFrame(rows)


def _generated(groups: int, more: Callable[[], str] = str) -> pd.DataFrame:
    """One answer a group. `more`: further words of an answer."""
    prompt = "The capital of Japan is Tokyo.\nThe capital of {} is"
    return pd.DataFrame(
        [
            _row(
                f"questions-{group}",
                f"q{group}",
                prompt.format(group),
                f"Ada {group} {more()}".strip(),
                group % 2,
                "generated",
            )
            for group in range(groups)
        ]
    )


def _tokens(
    examples: pd.DataFrame, tokenizer: Any, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    from ghosttrack.activations.example_tokens import encode

    encoded = encode(examples, tokenizer, 100_000, "fake")
    sizes = np.array([len(each.answer) for each in encoded])
    logprob = -rng.exponential(3, sizes.sum())
    tokens = pd.DataFrame(
        {
            "example": np.repeat(np.arange(len(encoded)), sizes),
            "position": np.concatenate([each.answer + each.shift for each in encoded]),
            "logprob": logprob,
            "entropy": rng.exponential(2, len(logprob)),
            "rank": rng.integers(0, 300, len(logprob)),
        }
    )
    outputs = pd.DataFrame(
        {"id": examples["id"], "row_start": np.cumsum(sizes) - sizes, "row_count": sizes}
    )
    return tokens, outputs


def _tracks(folder: Path, name: str, rows: int, rng: np.random.Generator, run: Run) -> None:
    table = random_tracks(rows, rng)
    store, manifest = folder / f"{name}.default.zarr", folder / f"{name}.default.json"
    with track_table.writer(
        store, rows=rows, layers=len(LAYERS), slots=SLOTS, chunk_slots=SLOTS
    ) as writer:
        for start in range(0, rows, track_table.ROWS):
            writer.append(table.part(start, start + track_table.ROWS))
        writer.finish({})
    files.write_json(
        manifest,
        {
            "rows": rows,
            "layers": LAYERS,
            "variant": "default",
            "top_k": SLOTS,
            "activation_scale": [1.0, 2.0, 0.5],
            "store_sha256": track_table.digest(store),
        },
    )
    run.tracks.append(store)
    run.tracks_manifests.append(manifest)


def random_tracks(rows: int, rng: np.random.Generator) -> TrackTable:
    """Links of gap 1 and 2 between the same slots of different layers, births and deaths among them."""
    table = blank(rows, len(LAYERS), SLOTS)
    table.feature[:] = rng.permuted(np.tile(np.arange(FEATURES), (rows * len(LAYERS), 1)), axis=1)[
        :, :SLOTS
    ].reshape(rows, len(LAYERS), SLOTS)
    table.activation[:] = rng.exponential(1, table.activation.shape)
    empty = rng.random(table.feature.shape) < 0.25
    table.feature[empty], table.activation[empty] = -1, 0
    for layer in range(1, len(LAYERS)):
        for gap in (2, 1):  # the nearer one wins
            if layer < gap:
                continue
            both = (table.feature[:, layer] >= 0) & (table.feature[:, layer - gap] >= 0)
            between = (table.feature[:, layer - 1] < 0) if gap == 2 else np.ones_like(both)
            linked = both & between & (rng.random(both.shape) < 0.7)
            table.previous[:, layer][linked] = np.broadcast_to(np.arange(SLOTS), linked.shape)[
                linked
            ]
            table.gap[:, layer][linked] = gap
            table.surplus[:, layer][linked] = 0.1
    return table


def _features(layer: int, rng: np.random.Generator) -> pd.DataFrame:
    """Descriptions of all features; the first never fires, the second fires on markup."""
    rows = []
    for feature in range(FEATURES):
        fires = feature > 0
        word = "</script><b>" if feature == 1 else f" word{feature}"
        rows.append(
            {
                "feature": feature,
                "density": 0.2 if feature == 2 else 0.01 * fires,
                "activation_max": 3.0 * fires,
                "top_text": [word, " other"] * fires,
                "top_share": [0.4, 0.1] * fires,
                "context_row": [int(row) for row in rng.integers(0, 50, 3)] * fires,
                "context_activation": [3.0, 2.5, 2.0] * fires,
                "context_before": [f"layer {layer}, <i>before</i>"] * 3 * fires,
                "context_token": [word] * 3 * fires,
                "context_after": [" after"] * 3 * fires,
                "output_text": [" France", "\n"],
                "output_logit": [4.0, 3.0],
            }
        )
    return pd.DataFrame(rows)
