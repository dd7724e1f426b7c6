"""The report's section on autoencoders: figures, gates, and the weakest layers by name."""

import json
from pathlib import Path
from typing import Any

import fake_results
import pandas as pd
import pytest

from ghosttrack import scores as registry
from ghosttrack.evaluation import gates
from ghosttrack.report import numbers, sae_quality
from ghosttrack.sae import answers
from report import write_report

NO_ANSWERS = pd.DataFrame(columns=list(registry.ANSWERS))
GOOD: dict[str, Any] = {
    "l0": 64.0,
    "dead_fraction": 0.01,
    "fvu_token_median": 0.1,
    "ce_loss_score": 0.99,
    "ce_loss_with_ablation": 11.0,
    "ce_loss_without_sae": 3.0,
}


def write(run: fake_results.Run, report: Path, **changed: Any) -> str:
    write_report.main(
        metrics=run.metrics,
        ledger=run.ledger,
        leak_audit=run.leak_audit,
        labels=run.labels,
        relations=run.relations,
        explanations=run.explanations,
        kinds=run.kinds,
        checks=run.checks,
        figures=[],
        source=run.source,
        report=report,
        settings={"seed": 0},
        model="smollm2-135m",
        layers=fake_results.LAYERS,
        datasets=list(fake_results.SETS),
        **{"quality": run.quality, "answers": run.answers, **changed},
    )
    return report.read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fake_results.Run:
    return fake_results.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: fake_results.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("l0", (50.0, 100.0), (49.9, 100.1)),
        ("dead_fraction", (0.0, 0.0499), (0.05,)),
        ("ce_loss_score", (0.95, 1.0), (0.949, -3.0)),
        ("fvu_token_median", (0.0, 0.2), (0.201,)),
    ],
)
def test_a_gate_opens_exactly_in_its_range(
    key: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert gates.judge(GOOD) == dict.fromkeys(
        ("l0", "dead_fraction", "ce_loss_score", "fvu_token_median"), True
    )
    for value, expected in [
        *((value, True) for value in inside),
        *((value, False) for value in outside),
    ]:
        found = gates.judge({**GOOD, key: value})
        assert found.pop(key) is expected
        assert all(found.values())


def test_without_a_figure_that_means_something_nothing_is_judged() -> None:
    ablation_helps = {**GOOD, "ce_loss_with_ablation": 2.0}  # random weights
    assert gates.judge(ablation_helps)["ce_loss_score"] is None
    assert gates.judge({})["l0"] is None
    assert gates.GATES[0].worst({3: {}}) is None


def test_the_weakest_layer_is_the_one_furthest_out_or_nearest_to_an_edge() -> None:
    l0, dead, *_ = gates.GATES
    assert l0.worst({1: {"l0": 75.0}, 2: {"l0": 52.0}, 3: {"l0": 97.0}}) == 2
    assert l0.worst({1: {"l0": 40.0}, 2: {"l0": 52.0}, 3: {"l0": 120.0}}) == 3
    assert (
        dead.worst(
            {1: {"dead_fraction": 0.01}, 2: {"dead_fraction": 0.04}, 3: {"dead_fraction": 0.0}}
        )
        == 2
    )


def test_the_page_shows_every_gate_with_its_weakest_layer(page: str) -> None:
    assert '<th scope="row">L0</th><td>50 to 100</td>' in page
    assert page.count(f"of {len(fake_results.LAYERS)}</td>") == len(gates.GATES)
    assert "<td>20</td><td>0.170</td>" in page
    for name in ("CE score", "\u0394CE, nats", "KL, nats"):
        assert f'<th scope="col">{name}</th>' in page
    assert (
        '<td>0.999&nbsp;<span class="established">\u2713</span></td><td>+0.010\u00a0\u00b1\u00a00.009</td><td>0.050</td>'
        in page
    )


def test_a_layer_that_fails_is_marked(run: fake_results.Run, tmp_path: Path) -> None:
    worse = []
    for path, layer in zip(run.quality, fake_results.LAYERS, strict=True):
        found = json.loads(path.read_text())
        worse.append(tmp_path / f"{layer}.json")
        worse[-1].write_text(
            json.dumps({**found, "dead_fraction": 0.25 if layer == 14 else found["dead_fraction"]})
        )
    shown = write(run, tmp_path / "report.html", quality=worse)
    assert '<span class="artefact">\u2715</span> 5 of 6</td>\n<td>14</td><td>25.0 %</td>' in shown
    assert '<td>25.0 %&nbsp;<span class="artefact">\u2715</span></td>' in shown


def test_the_page_names_the_layer_and_the_data_set_where_answers_fare_worst(page: str) -> None:
    assert (
        "On answer tokens the SAE of layer 18 is the worst: the median FVU of its 6,500 tokens is 0.240"
        in page
    )
    assert "The worst data set is us_cities with a median of 0.550" in page
    assert "12 massive activations are excluded." in page


def test_the_page_names_the_autoencoder_that_costs_the_model_most(page: str) -> None:
    assert f"the SAE of layer {fake_results.LAYERS[-1]} changes its predictions most" in page
    assert "KL divergence 0.150 nats, cross-entropy +0.070\u00a0\u00b1\u00a00.009 nats" in page
    assert "(4,064 held-out predictions" in page


def test_a_score_against_an_ablation_that_costs_nothing_is_not_shown() -> None:
    found = {
        "ce_loss_without_sae": 5.5,
        "ce_loss_with_sae": 5.6,
        "ce_loss_with_ablation": 5.0,
        "ce_loss_score": 1.2,
        "delta_ce": 0.1,
        "delta_ce_error": 0.01,
        "kl_div_with_sae": 0.2,
        "spliced_rows": 10,
    }
    shown = sae_quality.section({3: found}, NO_ANSWERS)
    cells = dict(
        zip([key for key, _ in sae_quality.HELDOUT], shown["rows"][0]["cells"], strict=False)
    )
    assert cells["ce_loss_score"] == (numbers.NONE, None)
    assert cells["delta_ce"].text == "+0.100\u00a0\u00b1\u00a00.010"
    assert shown["costliest"] == 3
    assert shown["worst_answers"] is None
    assert sae_quality.section({3: {"fvu": 0.1}}, NO_ANSWERS)["costliest"] is None


def test_both_sides_call_all_answers_the_same() -> None:
    assert answers.ALL == registry.ALL_ANSWERS
