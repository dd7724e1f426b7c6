"""The saved detector: no leaks, no pickle, errors for other files, equal numbers everywhere."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import run_fakes
import torch

from evaluate import check_explanations
from ghosttrack import Detector, Text
from ghosttrack import scores as registry
from ghosttrack.activations import example_tokens
from ghosttrack.activations.example_tokens import Positions
from ghosttrack.cli import score
from ghosttrack.detection import faithfulness, pooled, saved, saved_fit
from ghosttrack.detection.reasons import Meanings
from ghosttrack.detection.scoring import ScoredBatch, Scorer
from ghosttrack.errors import UserError
from ghosttrack.facts import contexts
from ghosttrack.report import scored
from ghosttrack.runtime import files
from ghosttrack.settings import EvaluationSettings, ScoreSettings
from score import score_texts

TEXTS = [
    Text("Q facts 3 is Paris.", "Paris"),
    Text("Q facts 3 is Ada 79.", "Ada 79"),
    Text("The city of gold <script>", "gold"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_fakes.make(folder)
    run_fakes.save(folder)
    return folder


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run)


def test_the_detector_is_fitted_on_text_controlled_sets_alone_and_learns(run: Path) -> None:
    about = files.read_json(run / "detection" / "detector.json")
    assert about["quality"]["datasets"] == ["facts"]
    assert about["quality"]["texts"] == 80
    assert about["quality"]["auroc"] > 0.8  # the answer's words give the label away here
    assert about["layers"] == run_fakes.LAYERS
    assert {layer: set(digests) for layer, digests in about["saes"].items()} == {
        layer: {"sae_weights.safetensors", "cfg.json"} for layer in ("1", "2")
    }
    assert not list((run / "detection").glob("*.pkl"))


def test_groups_that_share_a_text_or_a_subject_across_sets_are_one_cv_group() -> None:
    rows = [
        ("a", "g1", "capital", "France", "x"),
        ("b", "g1", "capital", "Norway", "y"),
        ("b", "g2", "capital", "France", "z"),
        ("c", "g3", "", "", "Y "),
        ("c", "g4", "", "", "w"),
        ("d", "g5", "river", "France", "v"),
    ]
    texts = pd.DataFrame(rows, columns=["dataset", "group", "relation", "subject", "text"])
    cv_groups = saved_fit.cv_groups_across(texts).tolist()
    assert cv_groups[0] == cv_groups[2]  # the capital of France, in two sets
    assert cv_groups[1] == cv_groups[3]  # the same text
    assert len(set(cv_groups)) == 4


def test_a_fit_prefers_text_controlled_sets_to_leaky_ones_and_given_to_generated() -> None:
    facts, leaky = run_fakes.text_only("facts"), run_fakes.text_only("leaky", low=0.7)
    control, own = (
        run_fakes.text_only("control", control=True),
        run_fakes.text_only("own", mode="generated"),
    )
    small = run_fakes.text_only("small").assign(verdict="not run")
    assert saved_fit.training_sets(pd.concat([small, control, own, leaky, facts])) == ["facts"]
    assert saved_fit.training_sets(pd.concat([small, control, own, leaky])) == ["leaky"]
    assert saved_fit.training_sets(pd.concat([small, control, own])) == ["own"]
    assert saved_fit.training_sets(pd.concat([small, control])) == []


def test_few_folds_leave_enough_to_fit_on(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in (run / "detection").iterdir()}
    try:
        for folds in (2, 3):
            run_fakes.save(run, folds=folds)
            about = json.loads((run / "detection" / "detector.json").read_text())
            assert about["reason"] == ""
            assert about["quality"]["auroc"] > 0.6
    finally:
        for name, content in before.items():
            (run / "detection" / name).write_bytes(content)


def test_no_label_of_a_held_out_fold_changes_its_scores() -> None:
    rng = np.random.default_rng(3)
    labels, fold = np.tile([0, 1], 60), np.arange(120) // 2 % 4
    layers = [rng.normal(size=(120, 30)) for _ in range(2)]

    def held_out(labels: np.ndarray) -> np.ndarray:
        fits = [pooled.cross_fit(x, labels, fold, [1.0]) for x in layers]
        *_, nested = saved_fit._over_layers(fits, labels, fold)
        return saved_fit._left_out([row[:, None] for row in nested], labels, fold)

    before = held_out(labels)
    for number in range(4):
        others = np.where(fold == number, 1 - labels, labels)
        np.testing.assert_allclose(
            held_out(others)[fold == number], before[fold == number], rtol=1e-6
        )


def test_two_fits_give_the_same_bytes(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in (run / "detection").iterdir()}
    run_fakes.save(run)
    assert {path.name: path.read_bytes() for path in (run / "detection").iterdir()} == before


def test_a_token_of_a_fitted_set_is_scored_by_the_fit_without_its_group(run: Path) -> None:
    tokens = pd.read_parquet(run / "detection" / "token_scores.parquet")
    outputs = pd.read_parquet(run / "examples" / "facts" / "outputs.parquet")
    examples = pd.read_parquet(run / "datasets" / "facts" / "examples.parquet")
    own = tokens[tokens["dataset"] == "facts"]
    assert sorted(set(own["fold"])) == [0, 1, 2, 3]
    assert (tokens.loc[tokens["dataset"] == "others", "fold"] == -1).all()
    fold = own.set_index("row")["fold"].loc[outputs["row_start"]].to_numpy()
    assert (pd.Series(fold).groupby(examples["group"].to_numpy()).nunique() == 1).all()


def test_the_scores_of_a_data_set_are_those_of_the_same_texts_given_by_hand(
    run: Path, detector: Detector
) -> None:
    # The final fit scores a data set outside the training data, so tables and API must agree.
    examples = pd.read_parquet(run / "datasets" / "others" / "examples.parquet")
    tokens = pd.read_parquet(run / "detection" / "token_scores.parquet")
    expected = tokens.loc[tokens["dataset"] == "others", "probe"].to_numpy()
    found = detector.score([Text(row.text, row.answer) for row in examples.itertuples()])
    np.testing.assert_allclose(
        [token.probe for each in found for token in each.tokens], expected, atol=2e-3
    )
    surprise = -pd.read_parquet(run / "examples" / "others" / "tokens.parquet")[
        "logprob"
    ].to_numpy()
    np.testing.assert_allclose(
        [token.surprise for each in found for token in each.tokens], surprise, atol=2e-4
    )
    labels = examples["label"].to_numpy()
    assert np.mean([each.probability >= 0.5 for each in found] == (labels == 1)) > 0.7


@pytest.mark.parametrize("positions", ["last", "all"])
def test_user_texts_are_read_at_the_positions_of_the_run(
    tmp_path: Path, positions: Positions
) -> None:
    run_fakes.make(tmp_path, groups=16, positions=positions)
    run_fakes.save(tmp_path, positions=positions)
    examples = pd.read_parquet(tmp_path / "datasets" / "others" / "examples.parquet")
    tokens = pd.read_parquet(tmp_path / "detection" / "token_scores.parquet")
    expected = tokens.loc[tokens["dataset"] == "others", "probe"].to_numpy()
    found = Detector.load(tmp_path).score(
        [Text(row.text, row.answer) for row in examples.itertuples()]
    )
    np.testing.assert_allclose(
        [token.probe for each in found for token in each.tokens], expected, atol=2e-3
    )
    ends = {(each.tokens[0].start, each.tokens[-1].end) for each in found}
    assert (
        all(len(each.tokens) == 1 for each in found) if positions == "last" else min(ends)[0] == 0
    )


def test_the_log_odds_are_intercept_outputs_and_the_mean_of_the_probe_scores(
    run: Path, detector: Detector
) -> None:
    weights = saved.load(run / "detection").weights
    outputs = pd.read_parquet(run / "examples" / "others" / "outputs.parquet")
    from ghosttrack.detection.representations import output_features

    values = output_features(outputs)[list(saved.OUTPUTS)].to_numpy()
    examples = pd.read_parquet(run / "datasets" / "others" / "examples.parquet")
    found = detector.score([Text(row.text, row.answer) for row in examples.itertuples()])
    for place, each in enumerate(found):
        probes = np.mean([token.probe for token in each.tokens])
        by_hand = float(weights.intercept[0] + values[place] @ weights.outputs + probes)
        assert each.log_odds == pytest.approx(by_hand, abs=5e-3)
        assert each.output == pytest.approx(by_hand - probes, abs=5e-3)
        assert each.probability == pytest.approx(1 / (1 + np.exp(-each.log_odds)), abs=1e-3)


def test_a_batch_and_single_texts_give_the_same_numbers(detector: Detector) -> None:
    together = detector.score(TEXTS)
    for place, text in enumerate(TEXTS):
        alone = detector.score([text])[0]
        assert alone.log_odds == pytest.approx(together[place].log_odds, abs=2e-4)
        assert [reason.feature for reason in alone.reasons] == [
            reason.feature for reason in together[place].reasons
        ]


@pytest.mark.parametrize("context", ["", "Q facts 2 is Rome.\n"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_score_does_not_depend_on_what_the_texts_share(
    marked: bool, context: str, detector: Detector
) -> None:
    beginning = "Q facts 1 is Oslo and Q facts 3 is "
    texts = [
        Text(f"{beginning}Paris.", "Paris" if marked else "", context=context),
        Text(f"{beginning}Ada 79.", "Ada 79" if marked else "", context=context),
        Text("Paris is the city of Q.", "Paris" if marked else "", context=context),
    ]
    alone = detector.score(texts[:1])[0].log_odds
    for others in (texts[:2], texts[::2], texts):
        assert detector.score(others)[0].log_odds == pytest.approx(alone, abs=2e-4)


def test_an_activation_beyond_what_is_stored_is_no_score(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = detector._scorer
    everything = {
        **scorer._tensors,
        "massive": torch.full_like(scorer._tensors["massive"], torch.inf),
    }
    monkeypatch.setattr(scorer, "_tensors", everything)
    handle = scorer._modules[0].register_forward_hook(
        lambda _module, _arguments, output: output * 1e9, prepend=True
    )
    try:
        with pytest.raises(
            UserError, match=r"an activation beyond 65,504 in layer \d+, .*: it cannot be scored"
        ):
            detector.score(TEXTS[:1])
    finally:
        handle.remove()


def test_reasons_are_the_largest_contributions_and_have_names(detector: Detector) -> None:
    (found,) = detector.score(TEXTS[:1], reasons=6)
    sizes = [abs(reason.log_odds) for reason in found.reasons]
    assert sizes == sorted(sizes, reverse=True)
    assert all(reason.name == f"f{reason.layer}.{reason.feature}" for reason in found.reasons)
    assert all(reason.feature % 7 > run_fakes.VAGUE for reason in found.reasons)
    assert all(reason.promotes == (f"out{reason.feature}",) for reason in found.reasons)
    assert all(len(reason.contexts) == 3 for reason in found.reasons)
    assert detector.score(TEXTS[:1], reasons=0)[0].unexplained == 1
    few = detector.score(TEXTS[:1], reasons=1)[0].unexplained
    assert 0 < found.unexplained < few < 1
    assert detector.score(TEXTS[:1], reasons=0)[0].reasons == []


def test_a_contribution_is_the_effect_of_ablating_the_feature_in_the_last_layer(run: Path) -> None:
    scorer = Scorer(run)
    frame = pd.DataFrame(
        {
            "id": ["a"],
            "text": ["Q facts 3 is Ada."],
            "answer_start": [13],
            "answer_end": [16],
            "relation": "",
            "mode": "given",
        }
    )
    encoded = example_tokens.encode(frame, scorer.tokenizer, scorer.limit, "x")
    before = scorer.read(encoded, 50)
    last = next(
        part for part in before.contributions[0] if part.layer_index == len(run_fakes.LAYERS) - 1
    )
    after = scorer.read(encoded, 0, [[(last.layer_index, last.feature)]])
    # The SAE encodes the ablated activation again, so other features may change a little.
    assert np.sign(before.probe.mean() - after.probe.mean()) == np.sign(last.log_odds)
    assert scorer.read(encoded, 0, [[]]).log_odds == pytest.approx(before.log_odds)
    silent = next(
        f
        for f in range(run_fakes.D_SAE)
        if all((1, f) != (part.layer_index, part.feature) for part in before.contributions[0])
    )
    assert scorer.read(encoded, 0, [[(1, silent)]]).log_odds == pytest.approx(before.log_odds)
    assert scorer.read(encoded, 0).log_odds == pytest.approx(
        before.log_odds
    )  # no hook is left behind


def test_below_the_requested_confidence_the_detector_abstains(detector: Detector) -> None:
    for each in detector.score(TEXTS, confidence=0.9):
        assert each.verdict == "abstain: unlike anything it was tested on"
    assert all("abstain" not in each.verdict for each in detector.score(TEXTS, confidence=0.5))
    with pytest.raises(UserError, match=r"confidence: 1.5 must be from 0.5"):
        detector.score(TEXTS, confidence=1.5)


def test_a_run_without_a_detector_of_statements_scores_the_last_word_of_every_sentence(
    detector: Detector,
) -> None:
    found, marked = detector.score(["Q facts 3 is Paris. Q 9 is Ada.", TEXTS[0]])
    assert [found.text[each.start : each.end] for each in found.sentences] == ["Paris", "Ada"]
    assert found.sentences[0].output != 0
    assert found.sentences[0].log_odds == pytest.approx(marked.log_odds, abs=0.1)
    assert detector.score(["\U0001f600 ..."])[0].start == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  ", "text 1: expected text"),
        ({"texts": "x"}, "expected the key text"),
        (Text("a b", "c"), "does not contain its answer"),
    ],
)
def test_a_text_that_cannot_be_scored_is_named(detector: Detector, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        detector.score([text])


@pytest.mark.parametrize(
    "name",
    [
        "model/model.safetensors",
        "model/config.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "saes/layer_02/sae_weights.safetensors",
        "saes/layer_02/cfg.json",
        "detection/detector.safetensors",
        "detection/detector.json",
    ],
)
def test_one_flipped_bit_in_what_a_score_is_made_with_is_refused_and_named(
    run: Path, tmp_path: Path, name: str
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    content = bytearray((other / name).read_bytes())
    place = content.rindex(b"1") if name.endswith(".json") else len(content) - 3
    content[place] ^= 2  # of JSON, one digit for another
    (other / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)):
        Detector.load(other)


@pytest.mark.parametrize("name", ["model_check.json", "features/layer_02.parquet"])
def test_a_file_of_the_run_that_differs_from_its_record_is_refused(
    run: Path, tmp_path: Path, name: str
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    record = {"params": {}, "inputs": {}, "sha256": "0" * 64}
    files.write_json(other / "records" / f"{name}.json", record)
    with pytest.raises(UserError, match=rf"{re.escape(name)} was damaged or edited"):
        Detector.load(other)


def test_a_missing_model_sae_or_detector_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "saes" / "layer_02" / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"cfg\.json is missing"):
        Detector.load(other)
    (other / "detection" / "detector.safetensors").unlink()
    with pytest.raises(UserError, match="has no saved detector"):
        Detector.load(other)
    with pytest.raises(UserError, match="does not exist"):
        Detector.load(tmp_path / "nowhere")


def test_too_few_texts_give_no_detector_but_say_why(tmp_path: Path) -> None:
    few = tmp_path / "few"
    run_fakes.make(few, groups=6)
    run_fakes.save(few)
    with pytest.raises(UserError, match=r"has no detector: .* groups are needed"):
        Detector.load(few)
    explanations = tmp_path / "explanations.csv"
    explain(few, explanations)
    assert registry.read(explanations, registry.EXPLANATIONS).empty


def test_api_command_and_target_give_the_same_numbers_in_every_form(
    run: Path, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mine.csv"
    pd.DataFrame(TEXTS).drop(columns=["id", "context"]).to_csv(table, index=False)
    expected = detector.score(TEXTS)
    assert score.main([str(run), "--texts", str(table)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["log_odds"] for line in lines] == [each.log_odds for each in expected]
    assert [line["answer"] for line in lines] == ["Paris", "Ada 79", "gold"]
    assert lines[0]["reasons"] == json.loads(
        json.dumps([reason._asdict() for reason in expected[0].reasons])
    )
    for ending in ("jsonl", "csv", "html"):
        assert (
            score.main([str(run), "--texts", str(table), "--out", str(tmp_path / f"out.{ending}")])
            == 0
        )
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [
        json.dumps(line, ensure_ascii=False) for line in lines
    ]
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [float(row["probability"]) for row in rows] == [each.probability for each in expected]
    page = (tmp_path / "out.html").read_text()
    outputs = [tmp_path / f"target.{ending}" for ending in ("jsonl", "csv", "html")]
    score_texts.main(
        texts=table,
        detector=run / "detection" / "detector.safetensors",
        scores=outputs,
        score=ScoreSettings(),
    )
    for path in outputs:
        assert path.read_bytes() == (tmp_path / f"out{path.suffix}").read_bytes()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "http:" not in page


def test_a_context_is_read_before_the_text_and_not_scored(detector: Detector) -> None:
    alone, behind = detector.score([TEXTS[0], TEXTS[0]._replace(context="Q facts 1 is Oslo.")])
    assert (behind.text, behind.start, behind.end) == (alone.text, alone.start, alone.end)
    assert [(each.start, each.end) for each in behind.tokens] == [
        (each.start, each.end) for each in alone.tokens
    ]
    assert behind.log_odds != alone.log_odds
    spaced = detector.score([TEXTS[0]._replace(context="\n Q facts 1 is Oslo.  ")])[0]
    assert spaced.log_odds == behind.log_odds


def test_texts_after_few_shot_demonstrations_get_the_scores_of_the_data_set(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The texts of a data set follow demonstrations of their relation; here the same ones are given.
    monkeypatch.setitem(contexts.DEMONSTRATIONS, "capital", (("Peru", "Lima"),))
    shown = contexts.context_of("capital")
    text = "The capital of Chad is Lima."
    # The second text begins otherwise, so that the texts share their demonstrations alone.
    frame = pd.DataFrame(
        {
            "id": ["1", "2"],
            "text": [text, "Rome is the capital of Chad."],
            "answer_start": [23, 23],
            "answer_end": [27, 27],
            "relation": ["capital", "capital"],
            "mode": ["given", "given"],
        }
    )
    scorer = detector._scorer
    own = example_tokens.encode(frame, scorer.tokenizer, scorer.limit, "facts")
    expected = scorer.read(own, 0).log_odds[0]
    assert detector.score([Text(text, "Lima", context=shown)])[0].log_odds == pytest.approx(
        expected, abs=1e-3
    )


def test_command_and_target_take_the_same_context_and_a_row_may_have_its_own(
    run: Path, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, table = tmp_path / "demonstrations.txt", tmp_path / "mine.csv"
    shown.write_text("Q facts 1 is Oslo.\nQ facts 2 is Rome.\n")
    rows = [TEXTS[0]._replace(id="1"), TEXTS[1]._replace(id="2", context="Ada 79.")]
    pd.DataFrame(rows).to_csv(table, index=False)
    assert score.main([str(run), "--texts", str(table), "--context", str(shown)]) == 0
    found = [json.loads(line)["log_odds"] for line in capsys.readouterr().out.splitlines()]
    expected = detector.score([rows[0]._replace(context=shown.read_text()), rows[1]])
    assert found == [each.log_odds for each in expected]
    out = tmp_path / "target.jsonl"
    weights = run / "detection" / "detector.safetensors"
    score_texts.main(
        texts=table, detector=weights, scores=[out], score=ScoreSettings(context=str(shown))
    )
    assert [json.loads(line)["log_odds"] for line in out.read_text().splitlines()] == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--context", "nowhere.txt"], "context: there is no file nowhere.txt"),
        (["a", "--context", "long.txt"], "long.txt has more than 100,000 characters"),
        (
            ["--texts", "latin.txt"],
            "texts: latin.txt is not UTF-8 text: line 2 holds the byte 0xfc at offset 5",
        ),
        (
            ["--texts", "long.txt"],
            "texts: line 1 of long.txt: 100,001 characters, more than 100,000",
        ),
        (["Z\udcfcrich is a city."], "half of a surrogate pair; remove it"),
        ([], "give texts either"),
        (["a", "--texts", "b.csv"], "give texts either"),
        (["a", "b", "--answer", "c"], "exactly one text"),
        (["a", "--out", "x.pdf"], "must end in"),
        (["--texts", "nowhere.csv"], "texts: there is no file nowhere.csv"),
        (["a", "b"], "quotation marks"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(
    run: Path,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "long.txt").write_text("a" * 100_001)
    (tmp_path / "latin.txt").write_bytes("abc\nZürich".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    assert score.main([str(run.absolute()), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_importing_the_package_and_naming_the_detector_loads_no_torch() -> None:
    code = "import sys; import ghosttrack; from ghosttrack import Detector, Text; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(score.__file__).parents[2])


def test_a_page_of_scores_holds_the_text_as_it_stands(detector: Detector) -> None:
    (found,) = detector.score([TEXTS[1]])
    assert "".join(part["text"] for part in scored._parts(found)) == found.text


def explain(run: Path, explanations: Path) -> None:
    check_explanations.main(
        detector=run / "detection" / "detector.safetensors",
        about=run / "detection" / "detector.json",
        examples=[run / "datasets" / name / "examples.parquet" for name in ("facts", "others")],
        explanations=explanations,
        datasets=["facts", "others"],
        evaluation=EvaluationSettings(bootstrap=100),
        seed=0,
    )


def test_ablating_the_named_features_is_compared_with_random_and_most_active_ones(
    run: Path, tmp_path: Path
) -> None:
    explain(run, tmp_path / "explanations.csv")
    table = registry.read(tmp_path / "explanations.csv", registry.EXPLANATIONS)
    assert list(table["features"]) == [count for count in faithfulness.COUNTS for _ in range(3)]
    assert set(table["removed"]) == {faithfulness.TOP, faithfulness.RANDOM, faithfulness.STRONGEST}
    assert (table["change_low"] <= table["change"]).all()
    assert (table["change"] <= table["change_high"]).all()
    random = table[table["removed"] == faithfulness.RANDOM]
    assert (random["beyond_random"] == 0).all()
    named = table[table["removed"] == faithfulness.TOP]
    assert named["beyond_random"].iloc[0] > 0  # the detector is linear in the ablated features


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_an_ablation_changes_no_other_text(run: Path, positions: Positions) -> None:
    scorer = Scorer(run)
    examples = pd.read_parquet(run / "datasets" / "facts" / "examples.parquet").head(8)
    encoded = example_tokens.encode(
        examples, scorer.tokenizer, scorer.limit, "facts", positions=positions
    )
    before = scorer.read(encoded, 3)
    # Texts of one prompt in turn lose their features and keep them.
    removed = [
        [(each.layer_index, each.feature) for each in largest if text % 2]
        for text, largest in enumerate(before.contributions)
    ]
    after = scorer.read(encoded, 0, removed).log_odds
    alone = [
        scorer.read([one], 0, [features]).log_odds[0]
        for one, features in zip(encoded, removed, strict=True)
    ]
    np.testing.assert_allclose(after, alone, atol=1e-3)
    assert (np.abs(after - before.log_odds)[1::2] > 0.1).any()


def test_ablated_named_features_are_those_that_a_score_names(
    run: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(run)
    removed: list[list[set[tuple[int, int]]]] = []
    read = scorer.read

    def recorded(encoded: Any, count: int, pairs: Any = None) -> ScoredBatch:
        if pairs is not None:
            removed.append([set(each) for each in pairs])
        return read(encoded, count, pairs)

    monkeypatch.setattr(scorer, "read", recorded)
    examples = pd.read_parquet(run / "datasets" / "facts" / "examples.parquet").head(3)
    texts = examples.assign(dataset="facts")
    faithfulness.measure(scorer, texts, 0, 100, 0.95, Meanings(run))
    given = [Text(row.text, row.answer) for row in examples.itertuples()]
    count = faithfulness.COUNTS[0]
    named = [
        {(scorer.layers.index(reason.layer), reason.feature) for reason in each.reasons}
        for each in detector.score(given, reasons=count)
    ]
    assert removed[1] == named  # after the random features of the same number
    assert removed[0] != named


@pytest.mark.parametrize(
    ("tokens", "texts"), [(10, 70), (57, 70), (58, 68), (100, 40), (400, 16), (10_000, 16)]
)
def test_long_texts_for_the_test_are_fewer(tokens: int, texts: int) -> None:
    sets = {
        name: pd.DataFrame({"id": [f"{name}{row}" for row in range(90)], "mode": "given"})
        for name in "ab"
    }
    found = faithfulness.choose(sets, length=lambda chosen: [tokens] * len(chosen))
    assert found["dataset"].value_counts().to_dict() == {"a": texts // 2, "b": texts // 2}
    all_texts = faithfulness.choose(sets)
    assert set(found["id"]) <= set(all_texts["id"])


def test_texts_for_the_test_are_chosen_in_equal_parts_without_their_scores() -> None:
    sets = {
        name: pd.DataFrame(
            {
                "id": [f"{name}{row}" for row in range(size)],
                "mode": "given",
                "group": "g",
                "label": 0,
            }
        )
        for name, size in (("a", 50), ("b", 10))
    }
    found = faithfulness.choose(sets, 20)
    assert found["dataset"].value_counts().to_dict() == {"a": 10, "b": 10}
    assert list(found["id"]) == list(
        faithfulness.choose({**sets, "a": sets["a"].assign(label=1)}, 20)["id"]
    )
