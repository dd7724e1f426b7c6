import json
from itertools import product
from pathlib import Path

import fake_results
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ghosttrack import scores as registry
from ghosttrack.errors import UserError
from ghosttrack.report import figures, link_summary


def inputs(folder: Path) -> figures.FigureInputs:
    run = fake_results.make(folder)
    return figures.FigureInputs(
        metrics=pd.read_csv(run.metrics),
        curves=pd.read_csv(run.curves),
        calibration=pd.read_csv(run.calibration),
        quality={
            layer: json.loads(path.read_text())
            for layer, path in zip(fake_results.LAYERS, run.quality, strict=True)
        },
        neighbours={
            layer: dict(np.load(path))
            for layer, path in zip(fake_results.LAYERS[:-1], run.neighbours, strict=True)
        },
        track_metrics=dict(
            zip(
                product(fake_results.SETS, fake_results.VARIANTS),
                map(pd.read_parquet, run.track_metrics),
                strict=True,
            )
        ),
        answers=pd.read_csv(run.answers),
        explanations=pd.read_csv(run.explanations),
        verdicts=pd.read_csv(run.verdicts),
        datasets=list(fake_results.SETS),
        firings=pd.read_csv(run.links),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> figures.FigureInputs:
    return inputs(tmp_path_factory.mktemp("figures"))


def test_every_figure_is_drawn_and_every_format_written(
    run: figures.FigureInputs, tmp_path: Path
) -> None:
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    paths = [tmp_path / f"{name}.svg" for name in figures.FIGURES] + [
        tmp_path / "links.png",
        tmp_path / "links.pdf",
    ]
    figures.draw(run, paths)
    for path in paths:
        assert path.read_bytes().startswith(starts[path.suffix[1:]])


def test_risks_above_one_half_are_on_the_axes(run: figures.FigureInputs) -> None:
    worse = run.curves.assign(y=run.curves["y"].where(run.curves["curve"] != "risk", 0.9))
    verdicts = pd.DataFrame({"coverage": [0.1, 1.0], "error": [0.8, 0.5]})
    changed = run._replace(curves=worse, verdicts=verdicts)
    for figure, highest in ((figures.risk(changed), 0.9), (figures.verdicts(changed), 0.8)):
        assert all(axes.get_ylim()[1] > highest for axes in figure.axes if axes.get_visible())


def test_the_summary_shows_five_scores_in_every_scope_that_was_run(
    run: figures.FigureInputs,
) -> None:
    def labels(inputs: figures.FigureInputs) -> list[str]:
        (axes,) = figures.summary(inputs).axes
        assert [line.get_label() for line in axes.lines if line.get_marker() != "None"] == [
            label for _, label, _, _ in figures.SUMMARY
        ]
        return [text.get_text().replace("_\n", "_") for text in axes.get_xticklabels()]

    # The mean over own answers is that of the one data set with own answers.
    assert labels(run) == ["all given\ntexts", *fake_results.SETS]
    missing = run.metrics.copy()
    missing.loc[missing["dataset"] == "cities", "auroc"] = np.nan
    assert "cities" not in labels(run._replace(metrics=missing))


def test_the_summary_shows_the_controls_of_texts_after_remarks_where_there_are_any(
    run: figures.FigureInputs,
) -> None:
    own = run.metrics[
        (run.metrics["dataset"] == "cities") & (run.metrics["score"] == registry.DETECTOR)
    ]
    extra = [own.assign(score=names[0]) for names, *_ in figures.SUMMARY_MISLED]
    inputs = run._replace(metrics=pd.concat([run.metrics, *extra], ignore_index=True))
    figure = figures.summary(inputs)
    plain, axes = figure.axes
    ticks = [[text.get_text() for text in each.get_xticklabels()] for each in (plain, axes)]
    assert ticks[1] == ["cities"]
    assert "cities" not in ticks[0]
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert sorted(said) == sorted(
        label for _, label, _, _ in (*figures.SUMMARY, *figures.SUMMARY_MISLED)
    )
    assert len([line for line in plain.lines if line.get_marker() != "None"]) == 5
    shown = [line for line in axes.lines if line.get_marker() != "None"]
    assert [line.get_label() for line in shown] == [
        label for _, label, _, _ in (*figures.SUMMARY, *figures.SUMMARY_MISLED)
    ]
    places = [np.asarray(line.get_xdata())[-1] for line in shown[-3:]]
    assert len(set(places)) == 3


def test_the_summary_shows_the_best_of_the_single_output_scores(run: figures.FigureInputs) -> None:
    metrics = run.metrics.copy()
    chosen = (metrics["dataset"] == "cities") & (metrics["score"] == "entropy")
    metrics.loc[chosen, "auroc"] = 0.999
    names = figures.SUMMARY[1][0]
    best = figures._best(run._replace(metrics=metrics), "cities", names)
    assert best is not None
    assert best["score"] == "entropy"
    assert figures._best(run, "cities", ("nothing",)) is None


def test_drawing_twice_gives_the_same_bytes(run: figures.FigureInputs, tmp_path: Path) -> None:
    names = [f"{name}.{kind}" for name in ("links", "tracks") for kind in ("png", "pdf", "svg")]
    for folder in ("first", "second"):
        figures.draw(run, [tmp_path / folder / name for name in names])
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_last_digit_of_a_layout_changes_no_byte(
    run: figures.FigureInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures.draw(run, [tmp_path / "one" / "sae_quality.svg"])
    lay_out = Figure.draw_without_rendering

    def slightly_otherwise(self: Figure) -> None:
        lay_out(self)
        for axes in self.axes:
            axes.set_position(Bbox(axes.get_position().get_points() + 1e-15))

    monkeypatch.setattr(Figure, "draw_without_rendering", slightly_otherwise)
    figures.draw(run, [tmp_path / "other" / "sae_quality.svg"])
    assert (tmp_path / "one" / "sae_quality.svg").read_bytes() == (
        tmp_path / "other" / "sae_quality.svg"
    ).read_bytes()


def test_a_data_set_that_was_not_run_leaves_an_empty_panel(
    run: figures.FigureInputs, tmp_path: Path
) -> None:
    metrics = run.metrics.copy()
    missing = metrics["dataset"] == "cities"
    metrics.loc[missing, ["auroc", "auroc_low", "auroc_high"]] = np.nan
    nothing = run._replace(
        metrics=metrics,
        curves=run.curves[run.curves["dataset"] != "cities"],
        calibration=run.calibration[run.calibration["dataset"] != "cities"],
    )
    figures.draw(nothing, [tmp_path / f"{name}.svg" for name in ("auroc", "roc", "calibration")])


def test_tables_without_rows_give_empty_panels(run: figures.FigureInputs, tmp_path: Path) -> None:
    """If all answers are wrong, a table is only a header, which pandas reads as dtype object."""
    tables_without_rows = {
        name: getattr(run, name).iloc[:0].astype(object)
        for name in ("curves", "calibration")
        if len(getattr(run, name))
    }
    assert len(tables_without_rows) == 2
    figures.draw(
        run._replace(**tables_without_rows),
        [tmp_path / f"{name}.svg" for name in ("roc", "calibration")],
    )
    assert (tmp_path / "calibration.svg").exists()


def test_one_layer_has_no_links_and_still_figures(
    run: figures.FigureInputs, tmp_path: Path
) -> None:
    table = run.track_metrics["cities", "default"].copy()
    table.attrs = {"layers": [10], "links": [0], "rows": 5, "track_lengths": [9]}
    figures.draw(
        run._replace(
            quality={10: run.quality[10]},
            neighbours={},
            track_metrics={("cities", "default"): table},
            firings=None,
        ),
        [tmp_path / f"{name}.png" for name in ("links", "sae_quality", "tracks")],
    )
    assert (tmp_path / "links.png").exists()


def test_an_unknown_figure_is_refused_with_the_choices(
    run: figures.FigureInputs, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"unknown file pie\.png; expected one of summary, auroc, roc"
    ):
        figures.draw(run, [tmp_path / "pie.png"])
    with pytest.raises(UserError, match=r"unknown file roc\.jpeg"):
        figures.draw(run, [tmp_path / "roc.jpeg"])


def test_links_are_summed_up_beside_their_null() -> None:
    stored = {
        "best": np.array([0.1, 0.3, 0.5, 0.7]),
        "null_best": np.array([0.1, 0.2]),
        "gate": np.array(0.4),
        "mutual": np.array([True, False, True, True]),
    }
    (pair,) = link_summary.pairs({3: stored}, [3, 6])
    assert (pair.lower, pair.upper, pair.gate, pair.above, pair.mutual) == (3, 6, 0.4, 0.5, 0.75)
    assert pair.real == pytest.approx((0.13, 0.4, 0.67))
    assert pair.null[1] == pytest.approx(0.15)


def test_track_means_leave_out_tables_without_links() -> None:
    found = link_summary.tracks(
        {
            ("cities", "default"): pd.DataFrame(
                {link_summary.LINKS: [1.0, 3.0], link_summary.LENGTH: [1.0, 2.0]}
            ),
            ("cities", "untracked"): pd.DataFrame({"entropy_mean": [0.1]}),
        }
    )
    assert found.to_dict("records") == [
        {"dataset": "cities", "variant": "default", "links": 2.0, "length": 1.5}
    ]


def noted(rows: int, links: list[int], lengths: list[int], layers: list[int]) -> pd.DataFrame:
    table = pd.DataFrame({link_summary.LINKS: [1.0]})
    table.attrs = {"rows": rows, "links": links, "track_lengths": lengths, "layers": layers}
    return table


def test_links_by_layer_and_lengths_of_tracks_are_pooled_over_data_sets() -> None:
    track_metrics = {
        ("cities", "default"): noted(10, [0, 20, 5], [6, 2, 0], [1, 3, 5]),
        ("capitals", "default"): noted(30, [0, 20, 75], [0, 0, 2], [1, 3, 5]),
        ("cities", "untracked"): noted(10, [0, 0, 0], [4, 0, 0], [1, 3, 5]),
        ("cities", "shuffled"): noted(10, [0, 1, 1], [0, 0, 0], [3, 1, 5]),
        ("cities", "older"): pd.DataFrame({link_summary.LINKS: [1.0]}),
    }
    first, second = link_summary.flows(track_metrics)
    assert (first.variant, first.layers, first.per_token.tolist()) == (
        "default",
        [1, 3, 5],
        [0.0, 1.0, 2.0],
    )
    assert (second.variant, second.per_token.tolist()) == ("untracked", [0.0, 0.0, 0.0])
    found = link_summary.lengths(track_metrics)
    assert {variant: share.tolist() for variant, share in found.items()} == {
        "default": [1.0, 0.4, 0.2],
        "untracked": [1.0, 0.0, 0.0],
    }


def test_curves_keep_their_ends_when_thinned() -> None:
    x = np.linspace(0, 1, 10_000)
    kept, _ = figures._thinned(x, x)
    assert len(kept) == figures.CURVE_POINTS
    assert (kept[0], kept[-1]) == (0, 1)


def test_a_table_without_a_column_names_the_file_and_the_column(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    pd.DataFrame({"dataset": [], "mode": []}).to_csv(path, index=False)
    with pytest.raises(
        UserError, match=r"curves\.csv: expected the columns .*score, curve, x, y not found"
    ):
        registry.read(path, registry.CURVES)
    with pytest.raises(UserError, match="is missing"):
        registry.read(tmp_path / "none.csv", registry.CURVES)
