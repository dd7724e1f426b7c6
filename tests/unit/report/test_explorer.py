"""The explorer's content: which texts, which tracks, and that nothing of a text becomes markup."""

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import explorer_fakes
import numpy as np
import pandas as pd
import pytest

from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.report import misled
from ghosttrack.report.explorer import choice, content, dictionary, texts, tracks
from ghosttrack.settings import ReportSettings
from ghosttrack.tracks.track_table import TrackReader, TrackTable


def unpack(page: str, name: str) -> Any:
    found = re.search(rf'id="part-{name}">([^<]*)</script>', page)
    assert found, name
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> explorer_fakes.Run:
    return explorer_fakes.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: explorer_fakes.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    explorer_fakes.write(run, path)
    return path.read_text(encoding="utf-8")


def scored(sizes: dict[str, int], texts_per_group: int = 4) -> pd.DataFrame:
    """Data sets of these sizes; scores get worse along each data set."""
    rows = [
        {
            "dataset": name,
            "group": f"g{place // texts_per_group}",
            "label": place % 2,
            "prompt": f"p{place // 2}",
            "score": abs(place % 2 - place / size),
        }
        for name, size in sizes.items()
        for place in range(size)
    ]
    return pd.DataFrame(rows)


def test_few_texts_are_all_shown() -> None:
    assert choice.choose(scored({"a": 20, "b": 8}), 28).tolist() == list(range(28))


def test_of_many_texts_whole_groups_are_shown_in_proportion_with_failures_and_hits_among_them() -> (
    None
):
    table = scored({"a": 400, "b": 100, "c": 20})
    table.loc[table["dataset"] == "c", "score"] = np.nan  # a set that was not run is shown, too
    kept = table.iloc[choice.choose(table, 130)]
    assert kept["dataset"].value_counts().to_dict() == {"a": 100, "b": 24, "c": 4}
    for _, part in kept.groupby(["dataset", "group"]):
        assert len(part) == 4
    shown = set(kept.loc[kept["dataset"] == "a", "group"])
    assert {"g99", "g98", "g0", "g1"} <= shown  # the clearest failures and hits
    assert (
        len(shown & {f"g{number}" for number in range(15, 85)}) >= 4
    )  # and some that no score chose
    assert choice.choose(table, 130).tolist() == sorted(choice.choose(table, 130))


def test_of_groups_that_are_too_large_a_part_is_shown() -> None:
    table = pd.DataFrame(
        {
            "dataset": ["large"] * 90 + ["small"] * 10,
            "group": ["g"] * 45 + ["h"] * 45 + [f"s {number // 2}" for number in range(10)],
            "label": [0, 1] * 50,
            "score": np.linspace(0, 1, 100),
        }
    )
    shown = table.iloc[choice.choose(table, 40)]
    assert len(shown) == 40
    assert shown["dataset"].value_counts().to_dict() == {"large": 36, "small": 4}


def test_the_page_opens_on_extremes_of_each_kind_from_different_groups() -> None:
    table = scored({"a": 40, "b": 40, "c": 40})
    found = choice.picks(table)
    assert [pick.why for pick in found] == [
        why for why, _, _ in choice.KINDS for _ in range(choice.PICKS)
    ]
    rows = table.iloc[[pick.row for pick in found]]
    assert not rows.duplicated(["dataset", "group"]).any()
    misses = rows.iloc[3:6]
    assert set(misses["dataset"]) == {"a", "b", "c"}
    assert (misses["label"] == 1).all()
    assert (misses["score"] < 0.1).all()


def test_without_texts_of_one_label_the_page_opens_on_those_of_the_other() -> None:
    table = scored({"a": 40, "b": 40})
    wrong = table[table["label"] == 1].reset_index(drop=True)
    assert {wrong["label"].iloc[pick.row] for pick in choice.picks(wrong)} == {1}
    assert choice.picks(wrong.assign(score=np.nan)) == []


def test_a_counterpart_has_the_same_prompt_and_the_other_label() -> None:
    table = pd.DataFrame(
        {
            "dataset": ["a"] * 5,
            "group": ["g", "g", "g", "g", "alone"],
            "label": [0, 1, 1, 0, 1],
            "prompt": ["x", "x", "y", "y", "x"],
        }
    )
    assert choice.counterparts(table).tolist() == [1, 0, 3, 2, -1]


def test_a_counterpart_with_another_prompt_serves_where_none_has_the_same() -> None:
    table = pd.DataFrame(
        {"dataset": ["a"] * 2, "group": ["g"] * 2, "label": [0, 1], "prompt": ["x", "y"]}
    )
    assert choice.counterparts(table).tolist() == [1, 0]


def slow_tracks(table: TrackTable, row: int, scale: np.ndarray) -> list[tracks.Track]:
    """All tracks of a token, one slot at a time."""
    owner: dict[tuple[int, int], int] = {}
    found: list[dict[int, tuple[int, int]]] = []
    for layer in range(table.feature.shape[1]):
        for slot in range(table.feature.shape[2]):
            if table.feature[row, layer, slot] < 0:
                continue
            gap = int(table.gap[row, layer, slot])
            number = (
                owner[layer - gap, int(table.previous[row, layer, slot])] if gap else len(found)
            )
            if not gap:
                found.append({})
            owner[layer, slot] = number
            level = round(100 * float(table.activation[row, layer, slot]) / scale[layer])
            found[number][layer] = (int(table.feature[row, layer, slot]), level)
    made = []
    for track in found:
        first, last = min(track), max(track)
        cells = [track.get(layer, (-1, 0)) for layer in range(first, last + 1)]
        made.append(tracks.Track(first, [cell[0] for cell in cells], [cell[1] for cell in cells]))
    return made


def test_the_strongest_tracks_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    table, scale = explorer_fakes.random_tracks(30, rng), np.array([1.0, 2.0, 0.5])

    class Fake:
        rows = 30

        def read(self, start: int, stop: int) -> TrackTable:
            return table.part(start, stop)

    fake = Fake()
    fake.scale = scale  # type: ignore[attr-defined]
    found = tracks.of_rows(fake, [3, 29, 4], 4)  # type: ignore[arg-type]
    assert sorted(found) == [3, 4, 29]
    for row, token in found.items():
        slow = slow_tracks(table, row, scale)
        assert token.total == len(slow)
        strongest = sorted(range(len(slow)), key=lambda place: (-sum(slow[place].levels), place))[
            :4
        ]
        assert token.shown == [slow[place] for place in strongest]
        assert any(
            -1 in track.features for each in found.values() for track in each.shown
        )  # silent layers occur


@pytest.mark.parametrize(
    ("text", "offsets", "parts"),
    [
        ("It is Rome.", [(5, 10)], ("It is", [" Rome"], ".")),
        ("a 😀b", [(1, 3), (2, 3), (2, 3), (3, 4)], ("a", [" 😀", "", "", "b"], "")),
        ("x  42", [(1, 2), (3, 4), (4, 5)], ("x", [" ", " 4", "2"], "")),
    ],
)
def test_the_parts_of_a_text_joined_are_the_text(
    text: str, offsets: list[tuple[int, int]], parts: tuple[str, list[str], str]
) -> None:
    found = texts.part(text, offsets)
    assert found == parts
    assert found.before + "".join(found.pieces) + found.after == text


def test_tokens_that_a_text_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="not from one run"):
        texts.require_positions([3, 9], [(0, 1)] * 8, "cities, id x")


def test_every_text_is_on_the_page_as_it_stands_in_the_examples(
    page: str, run: explorer_fakes.Run
) -> None:
    index, about = unpack(page, "index"), unpack(page, "about")
    blocks = [
        text for number in range(len(about["blocks"])) for text in unpack(page, f"block-{number}")
    ]
    for examples in run.examples:
        for row in pd.read_parquet(examples).itertuples():
            found = blocks[index["id"].index(row.id)]
            assert found["before"] + "".join(found["pieces"]) + found["after"] == row.text
            answer = row.text[row.answer_start : row.answer_end]
            assert answer in "".join(found["pieces"])
            assert (
                len(found["pieces"])
                == len(found["surprise"])
                == len(found["tracks"])
                == len(found["rank"])
            )


def test_nothing_of_a_text_or_a_name_is_markup(page: str) -> None:
    assert "alert(" not in page
    assert "<b>tiny</b>" not in page
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page
    # Besides the packed parts there is one script, and the page's policy names it by its hash.
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_the_same_run_gives_the_same_bytes(
    page: str, run: explorer_fakes.Run, tmp_path: Path
) -> None:
    explorer_fakes.write(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_every_drawn_feature_has_a_name_and_an_entry(page: str) -> None:
    about, names = unpack(page, "about"), unpack(page, "names")
    assert about["layers"] == explorer_fakes.LAYERS
    for place, layer in enumerate(names):
        entries = unpack(page, f"layer-{place}")
        assert (
            len(layer["feature"])
            == len(layer["name"])
            == len(entries["density"])
            == len(entries["contexts"])
        )
        silent, markup, dense = (layer["feature"].index(feature) for feature in range(3))
        assert (
            layer["name"][silent] == "France"
        )  # it never fires: named by the token that it promotes
        assert entries["top"][silent] == entries["contexts"][silent] == []
        assert layer["name"][markup] == "</script><b>"
        assert layer["dense"][dense] == 1 == sum(layer["dense"])


def test_the_number_of_texts_and_tracks_is_a_setting(
    run: explorer_fakes.Run, tmp_path: Path
) -> None:
    settings = ReportSettings(explorer_texts=20, explorer_tracks=2)
    explorer_fakes.write(run, tmp_path / "small.html", report=settings)
    page = (tmp_path / "small.html").read_text(encoding="utf-8")
    about = unpack(page, "about")
    assert about["texts"] <= 20 < about["of"]
    assert all(len(token) <= 2 for text in unpack(page, "block-0") for token in text["tracks"])
    assert f"{about['texts']} of {about['of']} texts" in re.sub(r"\s+", " ", page)


def test_a_run_without_a_detector_but_with_clusters_has_its_page(
    run: explorer_fakes.Run, tmp_path: Path
) -> None:
    none = pd.read_parquet(run.token_scores).iloc[:0]
    none.to_parquet(tmp_path / "none.parquet")
    pd.DataFrame({"layer": [1], "feature": [3], "cluster": ["places"]}).to_parquet(
        tmp_path / "clusters.parquet"
    )
    explorer_fakes.write(
        run,
        tmp_path / "page.html",
        token_scores=tmp_path / "none.parquet",
        clusters=tmp_path / "clusters.parquet",
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    about = unpack(page, "about")
    assert about["clusters"]
    assert not about["probe"]
    assert unpack(page, "block-0")[0]["probe"] is None
    names = unpack(page, "names")[0]
    assert names["cluster"][names["feature"].index(3)] == "places"
    assert "weight" not in names
    assert "Contribution of a feature" not in page


def test_very_many_tokens_get_fewer_tracks_each() -> None:
    shown = pd.DataFrame({"row_count": [1_000_000]})
    assert content._tracks_per_token(shown, 40) == content.LEAST
    assert content._tracks_per_token(shown.assign(row_count=100_000), 40) == 6
    assert dictionary.contexts_per_feature(2_000) == dictionary.CONTEXTS
    assert dictionary.contexts_per_feature(50_000) == 1


def test_clusters_and_contributions_are_shown_where_they_are_known(run: explorer_fakes.Run) -> None:
    frames = {
        layer: pd.read_parquet(path)
        for layer, path in zip(explorer_fakes.LAYERS, run.features, strict=True)
    }
    datasets = {
        name: content.DatasetTables(
            pd.read_parquet(run.examples[place]),
            pd.read_parquet(run.tokens[place]),
            pd.read_parquet(run.outputs[place]),
            TrackReader(run.tracks[place], run.tracks_manifests[place]),
        )
        for place, name in enumerate(("cities", "questions"))
    }
    weights = pd.DataFrame(
        [
            {"fold": fold, "layer": layer, "feature": feature, "weight": fold + feature / 100}
            for fold in range(3)
            for layer in explorer_fakes.LAYERS
            for feature in range(explorer_fakes.FEATURES)
        ]
    )
    probe = pd.DataFrame(
        {"dataset": "cities", "row": [0, 2], "fold": [2, 0], "probe": [1.5, -0.25]}
    )
    clusters = pd.DataFrame({"layer": 1, "feature": [3, 4], "cluster": ["places", "places"]})
    made = content.assemble(
        "m",
        datasets,
        pd.read_parquet(run.scores),
        frames,
        models.load_tokenizer(run.tokenizer.parent),
        ReportSettings(),
        content.DetectorTables(probe, weights),
        clusters,
    )
    assert made.about["probe"]
    assert made.about["clusters"]
    first = made.blocks[0][0]
    assert first["probe"][0] == 1.5
    assert first["fit"] == 2
    assert made.blocks[-1][-1]["probe"][0] is None  # of another set: not scored
    place = made.names[0]["feature"].index(4)
    assert made.names[0]["weight"]["2"][place] == 2.04
    assert made.names[0]["cluster"][place] == "places"
    assert made.layers[0]["cluster"][place] == "places"
    assert made.names[0]["cluster"][made.names[0]["feature"].index(5)] == ""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[explorer_fakes.Run, Path]:
    """A run whose data set `cities` has remarks and compared candidates, and its folder."""
    folder = tmp_path_factory.mktemp("compared")
    return explorer_fakes.compare_candidates(explorer_fakes.make(folder), folder), folder


def test_candidates_of_a_text_are_those_of_the_tables(
    compared: tuple[explorer_fakes.Run, Path], tmp_path: Path
) -> None:
    run, folder = compared
    explorer_fakes.write(
        run, tmp_path / "page.html", candidates=explorer_fakes.candidate_files(folder)
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    about, index = unpack(page, "about"), unpack(page, "index")
    assert about["candidates"]
    assert about["sway"]
    assert 'id="sway"' in page
    blocks = [
        text for number in range(len(about["blocks"])) for text in unpack(page, f"block-{number}")
    ]
    controls, metrics, tracks, tokens = (
        pd.read_parquet(path) for path in explorer_fakes.candidate_files(folder)
    )
    names = unpack(page, "names")
    drawn = [set(layer["feature"]) for layer in names]
    for row in pd.read_parquet(run.examples[0]).to_dict("records"):
        at = index["id"].index(row["id"])
        control = controls[controls["id"] == row["id"]].iloc[0]
        if not control["compared"]:
            assert "candidates" not in blocks[at]
            assert index["sway"][at] is None
            continue
        found = blocks[at]["candidates"]
        assert found["answers"] == [row["answer"], row["other"]]
        assert found["truth"] == [row["label"] == 0, row["label"] == 1]
        assert found["answers"][found["asserted"]] == row["remark_answer"]
        assert found["difference"] == control["difference"]
        assert found["lens"] == [control[f"lens_{layer:02d}"] for layer in explorer_fakes.LAYERS]
        own = metrics[(metrics["id"] == row["id"]) & (metrics["variant"] == "default")].iloc[0]
        for values, name in zip(found["sums"], ("for", "against"), strict=True):
            expected = [own[f"layer_{layer:02d}_{name}"] for layer in explorer_fakes.LAYERS]
            assert values == pytest.approx(expected, abs=1e-3)
        part = tokens[tokens["id"] == row["id"]]
        assert [token[0] for token in found["tokens"]] == list(part["token"])
        # A silent layer has feature -1 and no attribution.
        rows = [
            (("stated", "other")[side], position, explorer_fakes.LAYERS[first + step], feature)
            for side, position, first, features, values in found["tracks"]
            for step, (feature, value) in enumerate(zip(features, values, strict=True))
            if feature >= 0 and value > 0
        ]
        mine = tracks[tracks["id"] == row["id"]]
        columns = ["candidate", "position", "layer", "feature"]
        assert rows == [tuple(each) for each in mine[columns].to_numpy().tolist()]
        assert any(-1 in track[3] for track in found["tracks"])
        for _, _, first, features, _ in found["tracks"]:
            for step, feature in enumerate(features):
                assert feature < 0 or feature in drawn[first + step]
        prefers_stated = control["difference"] > 0
        preferred = row["answer"] if prefers_stated else row["other"]
        false = row["answer"] if row["label"] else row["other"]
        if row["remark_answer"] != false:
            assert index["sway"][at] == misled.TRUE_REMARK
        else:
            assert index["sway"][at] == int(preferred != false)
    assert {0, 1, 2} <= set(index["sway"])
    why = {
        reason: [row for row, other in about["picks"] if other == reason]
        for _, reason in about["picks"]
    }
    assert {index["sway"][row] for row in why["misled"]} == {misled.MISLED}
    assert {index["sway"][row] for row in why["not misled"]} == {misled.NOT_MISLED}


def test_a_generated_answer_is_misled_if_it_repeats_a_false_remark() -> None:
    rows = [("Rome", "Rome"), ("Rome", "Paris"), ("Paris", "Paris"), ("Paris", "Rome"), ("x", "")]
    examples = pd.DataFrame(rows, columns=["answer", "remark_answer"]).assign(
        id=list("abcde"), mode="generated", label=1, other="", gold=[["Paris"]] * 5
    )
    examples["remark"] = ["They say so. " if answer else "" for _, answer in rows]
    assert misled.sway(examples, None) == [0, 2, 2, 1, None]


def test_without_remarks_and_comparisons_the_page_has_neither(page: str) -> None:
    about = unpack(page, "about")
    assert not about["candidates"]
    assert not about["sway"]
    assert 'id="sway"' not in page
    assert "Candidate answers</dt>" not in page
    assert all("candidates" not in text for text in unpack(page, "block-0"))
