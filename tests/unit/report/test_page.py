import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_results
import numpy as np
import pandas as pd
import pytest
import test_marked
from fake_results import Run

from ghosttrack import scores as registry
from ghosttrack.evaluation import claims as claim_specs
from ghosttrack.evaluation import token_tables
from ghosttrack.report import comparison, external, lanes, misled, numbers, pictures, verdicts
from ghosttrack.report import page as report_page
from report import write_report

NASTY = "<script>alert(1)</script>"
SETTINGS: dict[str, Any] = {
    "seed": 3,
    "evaluation": {"confidence": 0.95},
    "corpus": {"source": NASTY},
}


def write(run: Run, path: Path, **changed: Any) -> str:
    values: dict[str, Any] = {
        **{
            name: getattr(run, name)
            for name in (
                "metrics",
                "ledger",
                "leak_audit",
                "quality",
                "answers",
                "labels",
                "relations",
                "source",
                "neighbours",
                "explanations",
                "kinds",
                "checks",
            )
        },
        "figures": [],
        "report": path,
        "settings": SETTINGS,
        "model": "smollm2-135m",
        "layers": fake_results.LAYERS,
        "datasets": list(fake_results.SETS),
        "controls": fake_results.CONTROLS,
        **changed,
    }
    write_report.main(**values)
    return path.read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fake_results.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(run, tmp_path_factory.mktemp("page") / "report.html")


def test_what_verdicts_are_worth_is_shown(page: str) -> None:
    section = page[page.index("What verdicts are worth") :]
    rows = re.findall("<tr>.*?</tr>", section[: section.index("</table>")], re.DOTALL)
    assert len(rows) == 4
    kinds, negated, facts = (" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows[1:])
    assert kinds == (
        "kinds of statement, one at a time 400 0.700 15.0 % 20.0 % 12.0 % to 30.0 % 0.0 % \u2013"
    )
    assert negated.startswith("all negated kinds at once")
    assert facts.startswith("kinds of facts, one at a time")


def test_own_answers_are_shown_relation_by_relation(page: str) -> None:
    section = page[page.index("AUROC by relation") :]
    table = section[: section.index("</table>")]
    assert [name in table for name in ("questions: capital", "questions: city")] == [True, True]
    assert "P(True)" in table


class Outline(HTMLParser):
    """Checks that tags nest; collects ids, link targets and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "link", "img", "br", "hr", "line", "path", "circle", "rect", "use"):
            self.open.append(tag)
        self.ids += [str(values["id"])] if "id" in values else []
        self.targets += [str(values["href"])] if "href" in values else []
        self.scripts += tag == "script" or any(name.startswith("on") for name in values)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "line", "circle", "rect", "use"):
            assert self.open.pop() == tag


def test_the_page_nests_and_its_links_lead_somewhere(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    inside = [target[1:] for target in outline.targets if target.startswith("#")]
    assert set(inside) <= set(outline.ids)


def test_all_but_the_top_is_folded_away(page: str) -> None:
    top = page[page.index("<body") : page.index("<details")]
    assert top.count('class="result"') <= 2 * len(verdicts.KEY_CLAIMS)
    assert "<table" not in top
    headings = re.findall(r"<h[123][^>]*>(?:<[^>]*>)*([^<]+)", page)
    assert all(len(heading.split()) <= 8 for heading in headings)


def test_the_page_has_no_script_and_asks_for_nothing(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.scripts == 0
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)
    assert "default-src 'none'" in page


def test_whatever_is_put_in_is_shown_as_text(run: Run, tmp_path: Path, page: str) -> None:
    assert NASTY not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    ledger = pd.read_csv(run.ledger)
    ledger["claim"] = ledger["claim"].replace("tracking metrics beat their permuted null", NASTY)
    ledger.to_csv(tmp_path / "ledger.csv", index=False)
    assert NASTY not in write(
        run, tmp_path / "report.html", ledger=tmp_path / "ledger.csv", model=NASTY
    )


def test_detectors_from_outside_have_a_section_only_where_there_are_any(
    run: Run, tmp_path: Path, page: str
) -> None:
    assert "Detectors from outside" not in page
    added = {}
    for name in ("metrics", "ledger"):
        table = pd.read_csv(getattr(run, name))
        column = "score" if name == "metrics" else "ours"
        part = table[(table[column] == "ghosttrack") & (table["dataset"] != "generated")]
        if name == "ledger":
            part = part[part["claim"] == registry.HEADLINE]
            part = part.assign(claim="mine (table) beats its best control")
        else:
            part = part.assign(auroc=0.2, auroc_low=0.1, auroc_high=0.3, family="external")
        added[name] = tmp_path / f"{name}.csv"
        pd.concat([table, part.assign(**{column: "table.mine"})]).to_csv(added[name], index=False)
    shown = write(run, tmp_path / "report.html", **added)
    section = shown[shown.index('id="external"') :]
    section = section[: section.index("</details>")]
    assert section.count("mine (table)</th>") == len(fake_results.SETS) + 1
    assert "mine (table) is below chance on every data set (AUROC 0.200, " in section
    assert "made outside the folds" in section
    assert "set lower_is_hallucinated: true" in section


def token_files(folder: Path) -> dict[str, Any]:
    """Inputs of write_report for a data set with spans."""
    examples, scores, choices = test_marked.tables()
    home = folder / "answers"
    home.mkdir()
    examples.assign(context=NASTY).to_parquet(home / "examples.parquet")
    scores.to_parquet(home / "span_scores.parquet")
    choices.to_csv(home / "span_choices.csv", index=False)
    numbers = dict.fromkeys(token_tables.METRICS, 0.5)
    line = {**dict.fromkeys(token_tables.CLAIMS, 0.1), "dataset": "answers"}
    words = {"claim": "a claim about tokens", "verdict": registry.ARTEFACT, "reason": "a reason"}
    for name, row in (
        ("metrics", {**numbers, "dataset": "answers", "score": "token_lookback"}),
        ("claims", {**line, **words, "ours": "token_detector", "control": "token_words"}),
    ):
        pd.DataFrame([row]).to_csv(folder / f"token_{name}.csv", index=False)
    return {
        "token_metrics": [folder / "token_metrics.csv"],
        "token_claims": [folder / "token_claims.csv"],
        "span_examples": [home / "examples.parquet"],
        "span_scores": [home / "span_scores.parquet"],
        "span_choices": [home / "span_choices.csv"],
    }


def test_hallucinated_tokens_have_verdicts_and_answers_with_spans_and_folded_contexts(
    run: Run, tmp_path: Path, page: str
) -> None:
    assert "Hallucinated tokens" not in page
    marked = write(run, tmp_path / "report.html", **token_files(tmp_path))
    section = marked[marked.index('<div id="tokens">') :]
    assert "artefact" in section
    assert "a claim about tokens" in section
    assert "attention of each head to what precedes the answer" in section
    assert '<details class="context"><summary>Context, 25 characters</summary>' in section
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in section
    assert '<u class="span">cd</u>' in section
    assert "Hallucinated tokens (underlined): 1." in section
    assert NASTY not in marked
    outline = Outline()
    outline.feed(marked)


def test_two_runs_give_the_same_bytes(run: Run, tmp_path: Path, page: str) -> None:
    assert write(run, tmp_path / "report.html") == page


def test_the_conclusion_comes_before_every_number(page: str) -> None:
    assert page.index('id="verdict"') < page.index('id="claims"') < page.index('id="datasets"')


def test_every_data_set_shows_what_a_sceptic_asks_for(page: str, run: Run) -> None:
    metrics = pd.read_csv(run.metrics)
    for dataset in fake_results.SETS:
        assert f'<th scope="row">{dataset}</th>' in page
        for score_name in report_page.COLUMNS:
            row = registry.row_of(metrics, dataset, score_name)
            assert row is not None
            assert (
                f"{row['auroc']:.3f}<small>{row['auroc_low']:.3f}\u2013{row['auroc_high']:.3f}</small>"
                in page
            )


def test_data_sets_are_sorted_by_what_they_can_show(run: Run) -> None:
    metrics = pd.read_csv(run.metrics)
    leaking = (metrics["dataset"] == "us_cities") & (metrics["score"] == registry.TEXT_ONLY)
    metrics.loc[leaking, ["auroc", "auroc_low", "auroc_high"]] = (0.7, 0.65, 0.75)
    below = (metrics["dataset"] == "capitals") & (metrics["score"] == registry.TEXT_ONLY)
    metrics.loc[below, ["auroc", "auroc_low", "auroc_high"]] = (0.45, 0.42, 0.48)
    found = registry.kinds(metrics, list(fake_results.SETS), fake_results.CONTROLS)
    assert found.text_controlled == ["cities", "capitals", "borders_hard"]
    assert (found.leaky, found.generated, found.control) == (
        ["us_cities"],
        ["questions"],
        ["element_symbol"],
    )


def test_numbers_that_are_not_there_are_dashes(run: Run, tmp_path: Path) -> None:
    metrics = pd.read_csv(run.metrics)
    chosen = metrics["dataset"] == "cities"
    metrics.loc[chosen, ["auroc", "auroc_low", "auroc_high", "f1", "ece"]] = np.nan
    metrics["reason"] = metrics["reason"].astype(object)
    metrics.loc[chosen, "reason"] = "too few groups"
    metrics.to_csv(tmp_path / "metrics.csv", index=False)
    text = write(run, tmp_path / "report.html", metrics=tmp_path / "metrics.csv")
    assert "not run: too few groups" in text
    assert "Too few examples to train on" in text
    assert "established alone on 2 of 3 data sets" in text
    assert "nan" not in re.sub(
        r"\w*nan\w+|\w+nan\w*", "", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    )


def row(claim: str, dataset: str, verdict: str, difference: float = 0.05) -> dict[str, Any]:
    return {
        "claim": claim,
        "dataset": dataset,
        "mode": "given",
        "ours": "ghosttrack",
        "control": "text_only",
        "auroc_ours": 0.9,
        "auroc_control": 0.85,
        "difference": difference,
        "difference_low": 0.01,
        "difference_high": 0.09,
        "p_holm": 0.0001,
        "n": 100,
        "groups": 50,
        "verdict": verdict,
        "reason": np.nan,
    }


def test_a_run_without_claims_has_no_detectors_from_outside(tmp_path: Path) -> None:
    tables = []
    for columns in (registry.METRICS, registry.LEDGER):
        pd.DataFrame(columns=list(columns)).to_csv(tmp_path / "empty.csv", index=False)
        tables.append(registry.read(tmp_path / "empty.csv", columns))
    assert external.judged(*tables) == ([], [], False)


def test_a_score_just_below_chance_is_not_called_a_half() -> None:
    line = {"score": "table.mine", "dataset": "cities", "auroc": 0.4982, "auroc_high": 0.4995}
    assert "(AUROC 0.498)" in external.opposite(pd.DataFrame([line]))[0]


def test_points_without_an_interval_are_on_the_axes() -> None:
    unknown = dict.fromkeys(("difference_low", "difference_high"), np.nan)
    one = row(registry.HEADLINE, "cities", registry.NOT_ESTABLISHED, -0.4) | unknown
    assert verdicts.difference_axis([one]).low == -0.4
    line = {"score": registry.DETECTOR, "auroc": 0.23, "auroc_low": np.nan}
    assert report_page.auroc_axis(pd.DataFrame([line])).low == 0.2


def test_an_established_difference_is_never_shown_as_zero() -> None:
    tiny = row(registry.HEADLINE, registry.ALL_GIVEN, registry.ESTABLISHED, 0.0004)
    assert "by 0.0004 AUROC" in verdicts.summary([tiny])
    assert [numbers.signed(each) for each in (0.0004, -0.0002, 0.0, 0.0006)] == [
        "+0.0004",
        "\u22120.0002",
        "+0.000",
        "+0.001",
    ]
    assert "=\u00a00.0498;" in verdicts.claim_of(tiny | {"p_holm": 0.0498}).numbers


KINDS = registry.DatasetKinds(["cities", "capitals"], [], ["questions"], ["element_symbol"], [], [])


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (registry.ESTABLISHED, "The detector beats its best control by 0.050 AUROC on given texts"),
        (registry.NOT_ESTABLISHED, "On given texts no gain over the best control is established"),
        (
            registry.ARTEFACT,
            "On given texts no gain counts, because the generator's name is above chance, and the "
            "score is not above it",
        ),
    ],
)
def test_the_summary_is_one_sentence_on_both_kinds_of_texts(verdict: str, said: str) -> None:
    reason = "the generator's name is above chance, and the score is not above it"
    rows = [
        row(registry.HEADLINE, registry.ALL_GIVEN, verdict) | {"reason": reason},
        row(registry.HEADLINE, registry.ALL_GENERATED, registry.NOT_ESTABLISHED),
        row(registry.TRACKING, registry.ALL_GIVEN, registry.ESTABLISHED),
    ]
    found = verdicts.summary(rows)
    assert (
        found == f"{said}; on the model's own answers no gain over the best control is established."
    )


def test_texts_after_remarks_have_their_own_claim_in_the_summary() -> None:
    rows = [
        row(registry.HEADLINE, registry.ALL_GIVEN, registry.NOT_ESTABLISHED),
        row(registry.HEADLINE, registry.ALL_MISLED, registry.NOT_ESTABLISHED),
        row(registry.BEYOND_PASS, registry.ALL_MISLED, registry.ESTABLISHED),
        row(registry.BEYOND_PASS, "conflict", registry.ESTABLISHED),
        row(registry.BEYOND_PASS, "asked", registry.ESTABLISHED) | {"mode": "generated"},
        row(registry.BEYOND_PASS, "conflict_2", registry.NOT_ESTABLISHED),
    ]
    assert verdicts.summary(rows).endswith(
        "; the detector beats all output and text of the same pass by 0.050 AUROC on texts after "
        "remarks."
    )
    open_ = [row(registry.BEYOND_PASS, registry.ALL_MISLED, registry.NOT_ESTABLISHED)]
    assert verdicts.summary(open_) == (
        "On texts after remarks a gain of the detector over all output and text of the same pass is "
        "not established."
    )
    compared = comparison.summary({"one": rows, "two": rows[:2]})
    assert compared.endswith("and on texts after remarks in 1 of 2 models.")
    assert verdicts.headline(rows, "conflict") == registry.BEYOND_PASS
    assert verdicts.headline(rows, registry.ALL_GIVEN) == registry.HEADLINE
    kinds = KINDS._replace(misled=["conflict", "conflict_2", "asked"])
    first, *_ = verdicts.key_claims(rows, kinds)
    assert "agrees with the remark" in first.about
    first, *_ = verdicts.key_claims(rows[:1], kinds)
    assert "remark" not in first.about
    (claim,) = (each for each in verdicts.key_claims(rows, kinds) if "pass" in each.title)
    (result,) = claim.results
    assert result.scope == "Texts after remarks"
    assert result.aurocs.endswith("established alone on 1 of 2 data sets")


def test_one_sentence_says_how_often_the_output_is_misled_and_what_the_inside_adds() -> None:
    given, none = misled.Followed(200, 90), misled.Followed(0, 0)
    rows = [
        row(registry.ADDS_TO_PASS, registry.ALL_MISLED, registry.ESTABLISHED),
        row(registry.BEYOND_CLOSED_BOOK, registry.ALL_MISLED, registry.NOT_ESTABLISHED),
    ]
    own = misled.answers({"a": {"remarks": {"false": {"asked": 9, "followed": 5}}}, "b": {}})
    assert own == misled.Followed(9, 5)
    assert misled.sentence(rows, given, own) == (
        "After a false remark, the output prefers the false answer on 45.0 % of 200 prompts and "
        "55.6 % of 9 answers of the model repeat it; activations add 0.050 AUROC to all output and "
        "text of the same pass, but no gain over closed book and context together is established."
    )
    both = [each | {"verdict": registry.ESTABLISHED} for each in rows]
    assert misled.sentence(both, none, none) == (
        "After remarks, activations add 0.050 AUROC to all output and text of the same pass and "
        "0.050 AUROC to closed book and context together."
    )
    assert misled.sentence([], given, none).endswith("45.0 % of 200 prompts.")
    assert misled.sentence([], none, none) == ""


def test_prompts_after_false_remarks_are_counted_once_and_the_report_says_it(
    run: Run, tmp_path: Path
) -> None:
    # Prompt p0: the false remark asserts Rome. Both statements of a prompt share its comparison.
    lines = [
        (f"p{prompt}", answer, remark, int(answer == "Rome"))
        for prompt, remark in enumerate(("Rome", "Paris", "Rome", "Rome"))
        for answer in ("Paris", "Rome")
    ]
    examples = pd.DataFrame(lines, columns=["prompt", "answer", "remark_answer", "label"]).assign(
        id=[str(number) for number in range(8)], mode="given", remark="They say so. "
    )
    # Logit of the stated answer minus that of the other: the false answer wins in prompts 0, 1.
    difference = [-1.0, 1.0, -2.0, 2.0, 3.0, -3.0, 0.0, 0.0]
    controls = examples[["id"]].assign(compared=[True] * 6 + [False] * 2, difference=difference)
    assert misled.sway(examples, controls) == [0, 0, 2, 2, 1, 1, None, None]
    assert misled.prompts([(examples, controls), (examples, controls)]) == misled.Followed(4, 2)
    paths = [tmp_path / "conflict.parquet", tmp_path / "controls.parquet"]
    examples.to_parquet(paths[0])
    controls.to_parquet(paths[1])
    page = write(run, tmp_path / "report.html", remarked=paths[:1], candidates=paths[1:])
    assert "the output prefers the false answer on 50.0 % of 2 prompts." in page
    assert 'id="misled"' not in write(run, tmp_path / "report.html")


def test_answers_that_repeat_remarks_are_counted_in_the_report() -> None:
    counts = {"correct": 3, "wrong": 4, "by_relation": {}}
    asked = {**counts, "remarks": {"false": {"asked": 9, "followed": 5}}}
    found = report_page._labels({"plain": counts, "asked": asked})
    assert found["columns"] == ["correct", "wrong", "after false remarks", "repeat false remarks"]
    assert [each["counts"] for each in found["rows"]] == [[3, 4, 0, 0], [3, 4, 9, 5]]
    assert report_page._labels({"plain": counts})["columns"] == ["correct", "wrong"]


def test_a_key_claim_counts_the_data_sets_on_which_it_holds_alone() -> None:
    rows = [
        row(registry.HEADLINE, registry.ALL_GIVEN, registry.ESTABLISHED),
        row(registry.HEADLINE, "cities", registry.ESTABLISHED),
        row(registry.HEADLINE, "capitals", registry.NOT_ESTABLISHED),
    ]
    (claim,) = verdicts.key_claims(rows, KINDS)
    assert claim.title == "The detector beats its best control"
    assert [(result.scope, result.aurocs) for result in claim.results] == [
        ("Given texts", "AUROC 0.900 against 0.850; established alone on 1 of 2 data sets")
    ]


@pytest.mark.parametrize(
    ("more", "decisive"),
    [
        (registry.ESTABLISHED, "Tracking metrics add to the detector"),
        (registry.NOT_ESTABLISHED, "Tracking adds more than its untracked null"),
    ],
)
def test_tracking_adds_only_if_its_null_adds_less(more: str, decisive: str) -> None:
    rows = [
        row(registry.TRACKING, registry.ALL_GIVEN, registry.ESTABLISHED),
        row(f"{registry.TRACKING}{registry.MORE_THAN} untracked null", registry.ALL_GIVEN, more),
    ]
    ((result,),) = (claim.results for claim in verdicts.key_claims(rows, KINDS))
    assert (result.claim.title, result.claim.verdict) == (decisive, more)


def test_titles_of_all_claims_have_at_most_eight_words() -> None:

    claims = [claim.sentence for claim in claim_specs.claims(["default", "permuted", "untracked"])]
    more = [
        *claim_specs.on_remarks(),
        *claim_specs.on_candidates(),
        *claim_specs.on_random_decoders(),
    ]
    claims += [claim.sentence for claim in more]
    titles = [verdicts.title(claim) for claim in claims]
    assert max(len(title.split()) for title in titles) <= 8
    assert len(set(titles)) == len(titles)
    assert set(verdicts.KEY_CLAIMS) <= set(claims)
    # No title that a renamed claim would leave behind.
    assert all(any(claim.startswith(start) for claim in claims) for start in verdicts.TITLES)


def test_without_a_claim_over_data_sets_nothing_is_established() -> None:
    rows = [row(registry.HEADLINE, "element_symbol", registry.ARTEFACT)]
    assert verdicts.summary(rows) == "No data set here supports a claim."
    assert verdicts.key_claims(rows, KINDS) == []


def test_findings_name_the_data_sets_whose_number_is_an_artefact() -> None:
    rows = [
        row(registry.HEADLINE, registry.ALL_GIVEN, registry.ESTABLISHED),
        row(registry.HEADLINE, "element_symbol", registry.ARTEFACT),
    ]
    found = verdicts.findings(rows, KINDS)
    assert found[registry.ESTABLISHED] == ["The detector beats its best control"]
    assert found[registry.ARTEFACT] == [
        "The detector's AUROC of 0.90 on element_symbol, a positive control"
    ]


def test_a_claim_carries_its_numbers_and_its_reason() -> None:
    claim = verdicts.claim_of(
        row(registry.HEADLINE, "cities", registry.ESTABLISHED) | {"reason": "too few groups"}
    )
    assert claim.numbers.startswith(
        "Detector 0.900 against 0.850 (text only); corrected p\u00a0<\u00a00.001; 100 texts in 50"
    )
    assert claim.reason == "Too few groups"


def test_names_of_nulls_are_spelled_out() -> None:
    assert (
        registry.label("metrics_forest.permuted")
        == "tracking metrics, random forest, permuted decoders"
    )
    assert (
        registry.label("best of each set: answer_logprob_mean 3")
        == "best of each set: answer log-probability 3"
    )
    assert registry.label("near_duplicates") == "near duplicates"
    assert registry.get("metrics_forest.random").meaning.endswith("of a null: random links.")
    with pytest.raises(KeyError, match="raw_probe"):
        registry.get("raw_probe.random")


def test_an_svg_takes_the_colours_of_the_page_and_ids_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "roc.svg"
    path.write_text(
        '<?xml version="1.0"?><svg viewBox="0 0 10 5"><metadata>x</metadata><path id="a" style="stroke: #1f2328"/>'
        '<use xlink:href="#a"/><g clip-path="url(#a)"/></svg>'
    )
    found = pictures.embed([path])["roc"]
    assert found is not None
    assert 'id="roc-a"' in found.markup
    assert 'href="#roc-a"' in found.markup
    assert "url(#roc-a)" in found.markup
    assert "var(--ink)" in found.markup
    assert "metadata" not in found.markup


def test_a_png_stands_in_where_there_is_no_svg(tmp_path: Path) -> None:
    (tmp_path / "links.png").write_bytes(b"\x89PNG")
    found = pictures.embed([tmp_path / "links.png", tmp_path / "links.pdf"])
    assert found["links"] is not None
    assert found["links"].markup.startswith('<img alt="Similarity of features')
    assert found["roc"] is None


def test_positions_on_an_axis_stay_inside() -> None:
    axis = lanes.Axis(0.5, 1.0, 0.5, [0.5, 1.0])
    assert [lanes.position(value, axis) for value in (0.5, 0.75, 2.0)] == [
        "0.00%",
        "50.00%",
        "100.00%",
    ]
    assert lanes.position(float("nan"), axis) == "-1000%"


def test_the_ledger_writes_the_claims_that_the_summary_reads() -> None:

    sentences = {claim.sentence for claim in claim_specs.claims(["default", "permuted"])}
    assert {registry.HEADLINE, registry.TRACKING} <= sentences


def test_the_page_says_what_storage_cost_in_the_worst_layer() -> None:
    quality = {
        layer: {
            "storage": "int8s",
            "storage_error": {"relative": 6e-5 * layer, "low_variance": 2e-4 / layer},
        }
        for layer in (1, 2)
    }
    assert report_page._storage(quality) == (
        "int8s: squared error at most 1.2e-04 of the variance, "
        "2.0e-04 within the half of the principal components with least variance"
    )
    assert report_page._storage({1: {"fvu": 0.1}}) == "not recorded"
    assert report_page._storage({1: {"storage": "fp16", "storage_error": None}}) == "fp16"


@pytest.mark.parametrize(
    ("value", "low", "shown"),
    [
        (3.0, np.nan, "3"),
        (0.532134, np.nan, "0.532"),
        (0.5, 0.4996, "0.500"),
        (np.nan, np.nan, "\u2013"),
    ],
)
def test_a_cell_of_the_leak_audit_is_a_count_or_an_auroc(
    value: float, low: float, shown: str
) -> None:
    cell = report_page._cell({"value": value, "low": low, "high": low, "verdict": "pass"})
    assert cell is not None
    assert cell["value"] == shown
    assert bool(cell["range"]) == (low == low)


def test_a_pool_is_shown_if_it_holds_several_data_sets() -> None:
    kinds = registry.DatasetKinds([], [], [], [], [], ["remarks", "answers_after_remarks"])
    rows = [
        {"dataset": "remarks", "mode": "given"},
        {"dataset": "answers_after_remarks", "mode": "generated"},
        {"dataset": registry.ALL_MISLED, "mode": "given"},
    ]
    metrics = pd.DataFrame(rows).assign(score=registry.DETECTOR)
    assert report_page._pools(metrics, kinds) == []
    metrics.loc[1, "mode"] = "given"
    assert report_page._pools(metrics, kinds) == [registry.ALL_MISLED]


def test_the_page_names_every_version_of_a_library(run: Run, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report.html")
    assert "torch 2.12.0 and 2.13.0, zarr 3.1.6" in page


def test_the_page_names_data_sets_with_texts_in_common(run: Run, tmp_path: Path) -> None:
    checks = tmp_path / "checks.json"
    pair = {"datasets": ["cities", "mine"], "texts": 1200}
    checks.write_text(json.dumps({"libraries": {}, "shared_texts": [pair]}))
    page = write(run, tmp_path / "report.html", checks=checks)
    assert "cities and mine have 1,200 texts in common." in page
    assert "Texts in common" not in write(run, tmp_path / "report.html")
