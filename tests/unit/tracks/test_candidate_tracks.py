"""Attribution adds up to the linearised difference; metrics of it, and tracks, on known cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_models
import torch

from ghosttrack.activations import logit_gradients
from ghosttrack.activations.logit_gradients import Comparisons, Gradients
from ghosttrack.sae import Sae
from ghosttrack.tracks import attribution, candidate_run, candidate_tracks, tracking
from ghosttrack.tracks.attribution import EVEN, LAYER_METRICS, ODD, Entries, Parts
from ghosttrack.tracks.candidate_tracks import TRACK_METRICS
from ghosttrack.tracks.neighbours import Links
from ghosttrack.tracks.track_run import LinkPlan
from ghosttrack.tracks.track_table import TrackTable
from ghosttrack.tracks.tracking import TrackerOptions

FEATURES, LAYERS = 24, [1, 2, 3]
OPTIONS = TrackerOptions(50, 4, 1, 0.0)


def make_sae(seed: int, width: int = small_models.WIDTH) -> Sae:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Sae(
        drawn(width, FEATURES),
        drawn(FEATURES),
        drawn(FEATURES, width),
        drawn(width),
        torch.full((FEATURES,), 0.5),
    )


def compare(architecture: str) -> tuple[Comparisons, list[Gradients]]:
    prompts = ["The capital of France is", "The capital of Italy is", "A city of France is"]
    pairs = [("Paris", "Rome"), ("Rome", "Paris")]
    rows = [(prompt, *pair) for prompt in prompts for pair in pairs]
    examples = pd.DataFrame(rows, columns=["prompt", "answer", "other"]).assign(
        id=[str(row) for row in range(len(rows))], relation="none", mode="given"
    )
    examples["text"] = examples["prompt"] + " " + examples["answer"] + "."
    examples["answer_start"] = examples["prompt"].str.len() + 1
    examples["answer_end"] = examples["answer_start"] + examples["answer"].str.len()
    compared = logit_gradients.comparisons(examples, small_models.make_tokenizer(), 64, "x")
    passes = logit_gradients.read(
        small_models.make_model(architecture),
        compared.distinct,
        LAYERS,
        "resid_post",
        batch=8,
        packed=64,
    )
    return compared, list(passes)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_features_error_and_bias_add_up_to_the_linearised_logit_difference(
    architecture: str,
) -> None:
    _, passes = compare(architecture)
    for gradients in passes:
        included = np.ones(len(gradients.text), dtype=bool)
        for position, seed in enumerate(LAYERS):
            entries, parts = attribution.attribute(make_sae(seed), gradients, position, included)
            x, g = gradients.activation[position].double(), gradients.gradient[position].double()
            expected = np.bincount(gradients.text, (x * g).sum(1).numpy())
            found = parts.features + parts.error + parts.bias
            # After the last block x.g is 0, because the final norm ignores the scale of x.
            size = np.abs([parts.features, parts.error, parts.bias]).max()
            rtol = 1e-3 if LAYERS[position] < small_models.LAYERS - 1 else 0
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5 * size)
            assert np.abs(expected).max() > 1e-3 * size or not rtol
            np.testing.assert_allclose(
                np.bincount(gradients.text[entries.row], entries.value, len(expected)),
                parts.features,
            )


def test_the_attribution_of_a_feature_is_the_change_that_its_ablation_makes_to_the_linear_map() -> (
    None
):
    _, (gradients, *_) = compare("llama")
    sae, included = make_sae(1), np.ones(len(gradients.text), dtype=bool)
    entries, _ = attribution.attribute(sae, gradients, 0, included)
    code = sae.encode(gradients.activation[0])
    for entry in range(0, len(entries.row), 7):
        row, feature = int(entries.row[entry]), int(entries.feature[entry])
        removed = code[row, feature] * sae.W_dec[feature]
        assert entries.value[entry] == pytest.approx(
            float(removed @ gradients.gradient[0][row]), rel=1e-4, abs=1e-6
        )
        index = int(gradients.text[row])
        direct = float(removed @ gradients.direct[index]) if row == gradients.last[index] else 0.0
        assert entries.direct[entry] == pytest.approx(direct, rel=1e-4, abs=1e-6)


def test_massive_rows_take_no_part() -> None:
    _, (gradients, *_) = compare("llama")
    gradients.activation[1][2] *= 1000
    included = attribution.included_rows(gradients)
    assert np.flatnonzero(~included).tolist() == [2]
    entries, parts = attribution.attribute(make_sae(1), gradients, 1, included)
    assert 2 not in entries.row
    np.testing.assert_allclose(parts.features + parts.error + parts.bias, parts.total, rtol=1e-3)


def fake(texts: Sequence[int], numbers: Sequence[int]) -> Gradients:
    """Rows of comparisons, for kernels that read no activation."""
    text = np.array(texts)
    last = np.array([np.flatnonzero(text == index)[-1] for index in range(len(numbers))])
    nothing = torch.zeros(len(numbers), 1)
    return Gradients(
        list(numbers), text, last, np.zeros(len(numbers)), [], [], nothing, np.zeros((0, 0))
    )


def random_entries(gradients: Gradients, seed: int) -> Entries:
    generator = np.random.default_rng(seed)
    rows = len(gradients.text)
    row = np.repeat(np.arange(rows), 9)
    feature = np.concatenate([generator.permutation(FEATURES)[:9] for _ in range(rows)])
    at_end = np.isin(row, gradients.last)
    return Entries(
        row, feature, generator.normal(size=len(row)), generator.normal(size=len(row)) * at_end
    )


GRADIENTS = fake([0, 0, 0, 1, 1, 2], [4, 7, 9])
ZEROS = Parts(*(np.zeros(3) for _ in Parts._fields))


def test_layer_metrics_of_a_hand_worked_layer() -> None:
    gradients = fake([0, 0], [0])
    entries = Entries(
        np.array([0, 0, 1]),
        np.array([3, 5, 3]),
        np.array([2.0, -1.0, 1.0]),
        np.array([0.0, 0.0, 0.5]),
    )
    parts = Parts(np.array([2.0]), np.array([0.25]), np.array([1.0]), np.array([3.25]))
    found = {
        name: float(value[0])
        for name, value in attribution.layer_metrics(entries, parts, gradients).items()
    }
    assert found == pytest.approx(
        {
            "sum": 2.0,
            "error": 0.25,
            "for": 3.0,
            "against": 1.0,
            "for_last": 1.0,
            "against_last": 0.0,
            "share": 0.5,
            "share_last": 1.0,
            "balance": 1 / 3,
            "entropy": -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)),
            "top_ten": 1.0,
            "direct": 0.5,
            "direct_share": 1.0,
        }
    )
    assert found.keys() == LAYER_METRICS.keys()


def tracks_of(entries: Sequence[Entries], gradients: Gradients, plan: LinkPlan) -> list[TrackTable]:
    found = candidate_tracks.detected(entries, len(gradients.text), OPTIONS.ranks)
    return candidate_tracks.follow(found, plan, OPTIONS)


def metrics_of(entries: Sequence[Entries], gradients: Gradients, plan: LinkPlan) -> dict[str, Any]:
    return candidate_tracks.track_metrics(tracks_of(entries, gradients, plan), gradients)


def mirrored(found: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """Metrics after an exchange of the candidates, from their kinds."""
    return {
        name: {ODD: -found[name], EVEN: found[name]}.get(kind, found.get(kind))
        for name, kind in kinds.items()
    }


def exchanged(entries: Entries) -> Entries:
    return entries._replace(value=-entries.value, direct=-entries.direct)


def test_an_exchange_of_the_candidates_does_to_each_metric_what_its_kind_says() -> None:
    entries = [random_entries(GRADIENTS, seed) for seed in range(3)]
    turned = [exchanged(each) for each in entries]
    ours, theirs = (
        attribution.layer_metrics(each[0], ZEROS, GRADIENTS) for each in (entries, turned)
    )
    for name, value in mirrored(ours, LAYER_METRICS).items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-12, err_msg=name)
    tracks, turned_tracks = (
        metrics_of(each, GRADIENTS, linked_plan()) for each in (entries, turned)
    )
    for name, value in mirrored(tracks, TRACK_METRICS).items():
        np.testing.assert_allclose(turned_tracks[name], value, atol=1e-6, err_msg=name)
    assert tracks["lead"].any()
    assert tracks.keys() == TRACK_METRICS.keys()


def linked_plan(layers: int = 3) -> LinkPlan:
    """Links between features of the same index, one and two layers ahead."""
    same = Links(
        np.arange(FEATURES + 1),
        np.arange(FEATURES, dtype=np.int32),
        np.ones(FEATURES, dtype=np.float32),
    )
    return LinkPlan(list(range(layers)), [same] * (layers - 1), [same] * (layers - 2))


def unlinked_plan(layers: int = 3) -> LinkPlan:
    return LinkPlan(list(range(layers)), [None] * (layers - 1), [None] * (layers - 2))


def hand_worked() -> list[Entries]:
    """One token, three layers. Feature 1 promotes the first candidate (3, silent, 1), feature 2 the
    second (1, 2, 2), feature 5 the first in the lowest layer alone (1)."""

    def layer(*pairs: tuple[int, float]) -> Entries:
        feature, value = zip(*pairs, strict=True)
        count = len(pairs)
        return Entries(
            np.zeros(count, np.int64), np.array(feature), np.array(value), np.zeros(count)
        )

    return [layer((1, 3.0), (2, -1.0), (5, 1.0)), layer((2, -2.0)), layer((1, 1.0), (2, -2.0))]


def test_tracks_of_candidates_of_a_hand_worked_prompt() -> None:
    found = {
        name: float(value[0])
        for name, value in metrics_of(hand_worked(), fake([0], [0]), linked_plan()).items()
    }
    assert {name: found[name] for name in list(found)[:16]} == pytest.approx(
        {
            "stated_strength": 4.0,
            "stated_linked": 0.8,
            "stated_length": 0.8 * 2 + 0.2 * 1,
            "stated_tracks": np.log(2),
            "stated_strongest": 4.0,
            "stated_first": 0.0,
            "stated_last": 0.8,
            "stated_spread": -(0.8 * np.log(0.8) + 0.2 * np.log(0.2)),
            "other_strength": 5.0,
            "other_linked": 1.0,
            "other_length": 3.0,
            "other_tracks": np.log(2),
            "other_strongest": 5.0,
            "other_first": 0.0,
            "other_last": 1.0,
            "other_spread": 0.0,
        }
    )
    assert found["lead"] == pytest.approx(-1 / 9)
    assert (found["lead_first"], found["lead_last"]) == pytest.approx((3 / 5, -1 / 3))
    assert found["crossings"] == 1
    assert found["coexistence"] == pytest.approx((1 + 0 + 1) / (4 + 2 + 2))


def test_the_strongest_tracks_name_candidate_token_layer_and_feature() -> None:
    tables = tracks_of(hand_worked(), fake([0], [4]), linked_plan())
    found = candidate_tracks.strongest(tables, fake([0], [4]), 8)
    rows = [tuple(row) for row in found.drop(columns="attribution").to_numpy().tolist()]
    # Feature 5 has no link, so it is no track. Feature 1 is silent in the middle layer.
    assert rows == [
        (4, 0, 0, 1, 0, 1),
        (4, 0, 0, 1, 2, 1),
        (4, 1, 0, 1, 0, 2),
        (4, 1, 0, 1, 1, 2),
        (4, 1, 0, 1, 2, 2),
    ]
    assert found["attribution"].tolist() == [3, 1, 1, 2, 2]


def test_of_many_tracks_the_strongest_of_every_comparison_and_candidate_are_kept() -> None:
    entries = [random_entries(GRADIENTS, seed) for seed in range(3)]
    tables = tracks_of(entries, GRADIENTS, linked_plan())
    every, few = (candidate_tracks.strongest(tables, GRADIENTS, most) for most in (1000, 2))
    assert every["position"].between(1, 3).all()
    metrics = candidate_tracks.track_metrics(tables, GRADIENTS)
    for side, name in enumerate(("stated", "other")):
        for index, number in enumerate(GRADIENTS.numbers):
            part = every[(every["side"] == side) & (every["comparison"] == number)]
            sums = part.groupby("track")["attribution"].sum()
            assert sums.sum() == pytest.approx(metrics[f"{name}_strength"][index])
            assert sums.is_monotonic_decreasing
            kept = few[(few["side"] == side) & (few["comparison"] == number)]
            assert kept.equals(part[part["track"] < 2].set_axis(kept.index))
            assert part.groupby("track")["position"].nunique().max() == 1


def test_sparse_and_dense_detections_are_equal() -> None:
    entries = random_entries(GRADIENTS, 5)
    rows = len(GRADIENTS.text)
    for side, sign in enumerate((1, -1)):
        dense = np.zeros((rows, FEATURES), dtype=np.float32)
        favour = sign * entries.value > 0
        dense[entries.row[favour], entries.feature[favour]] = np.abs(entries.value[favour])
        for ranks in (3, 50):
            expected = tracking.detect(dense, ranks)
            found = candidate_tracks.detected([entries], rows, ranks)[side][0]
            np.testing.assert_array_equal(found.feature, expected.feature)
            np.testing.assert_array_equal(found.activation, expected.activation)


def test_without_links_no_track_is_linked_and_the_profile_stays() -> None:
    linked, unlinked = (
        metrics_of(hand_worked(), fake([0], [0]), plan) for plan in (linked_plan(), unlinked_plan())
    )
    assert unlinked["stated_strength"] == unlinked["other_strength"] == unlinked["lead"] == 0
    assert unlinked["stated_length"] == 1
    for name in ("crossings", "coexistence", "candidate_entropy", "lead_first", "lead_last"):
        assert unlinked[name] == linked[name]


def test_random_links_keep_the_number_of_links_and_depend_on_the_seed() -> None:
    entries = [random_entries(GRADIENTS, seed) for seed in range(3)]

    def of(random: Sequence[int] | None) -> dict[str, Any]:
        tables = tracks_of(entries, GRADIENTS, linked_plan())
        if random is not None:
            tables = candidate_tracks.with_random_links(tables, GRADIENTS, OPTIONS, random)
        return candidate_tracks.track_metrics(tables, GRADIENTS)

    np.testing.assert_array_equal(of([1])["stated_strongest"], of([1])["stated_strongest"])
    assert (of([1])["stated_strongest"] != of([2])["stated_strongest"]).any()
    assert (of([1])["stated_strongest"] != of(None)["stated_strongest"]).any()


def test_permuted_candidates_keep_sizes_and_counts_and_depend_on_the_prompt_alone() -> None:
    entries = random_entries(GRADIENTS, 0)
    permuted = attribution.permute_candidates(entries, GRADIENTS, [3])
    np.testing.assert_allclose(np.abs(permuted.value), np.abs(entries.value))
    assert (permuted.value != entries.value).any()
    text = GRADIENTS.text[entries.row]
    for index in range(3):
        assert (permuted.value[text == index] > 0).sum() == (entries.value[text == index] > 0).sum()
    members = np.flatnonzero(text == 1)
    alone = attribution.permute_candidates(
        Entries(
            entries.row[members] - 3,
            entries.feature[members],
            entries.value[members],
            entries.direct[members],
        ),
        fake([0, 0], [7]),
        [3],
    )
    np.testing.assert_array_equal(alone.value, permuted.value[members])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_texts_with_exchanged_answers_get_mirrored_rows(architecture: str) -> None:
    compared, passes = compare(architecture)
    saes = [make_sae(seed) for seed in LAYERS]
    plans = {
        "default": linked_plan(),
        "untracked": unlinked_plan(),
        "shuffled": linked_plan()._replace(order=[2, 0, 1]),
    }
    ids = [str(row) for row in range(len(compared.number))]
    result = candidate_run.measure(
        passes,
        compared,
        ids,
        LAYERS,
        candidate_run.Dictionary(saes, plans),
        candidate_run.Dictionary([make_sae(seed + 50) for seed in LAYERS], plans),
        OPTIONS,
        seed=0,
    )
    assert list(result.controls["id"]) == ids
    values = result.controls.drop(columns=["id", "compared"]).to_numpy()
    np.testing.assert_allclose(values[0::2], -values[1::2])
    assert values.any()
    kinds = candidate_run.metric_kinds(LAYERS)
    for variant, part in result.metrics.groupby("variant"):
        assert list(part["id"]) == ids
        table = {name: part[name].to_numpy() for name in kinds}
        for name, value in mirrored(table, kinds).items():
            np.testing.assert_allclose(
                table[name][1::2], value[0::2], atol=1e-5, err_msg=f"{variant} {name}"
            )
    assert set(result.metrics["variant"]) == set(candidate_run.VARIANTS)
    assert (result.completeness["gap"] < 1e-3).all()
    shown, tokens = result.tracks, result.tokens
    assert set(shown["id"]) == set(tokens["id"]) == set(ids)
    assert set(shown["layer"]) <= set(LAYERS)
    default = result.metrics[result.metrics["variant"] == "default"].set_index("id")
    for ours, theirs in zip(ids[0::2], ids[1::2], strict=True):
        for one, other in (("stated", "other"), ("other", "stated")):
            here, there = (
                shown[(shown["id"] == text) & (shown["candidate"] == name)].drop(
                    columns=["id", "candidate"]
                )
                for text, name in ((ours, one), (theirs, other))
            )
            assert here.reset_index(drop=True).equals(there.reset_index(drop=True))
        part = tokens[tokens["id"] == ours]
        assert part["position"].tolist() == list(range(1, len(part) + 1))
        for name, column in (("stated", "for"), ("other", "against")):
            by_layer = [default.loc[ours, f"layer_{layer:02d}_{column}"] for layer in LAYERS]
            assert part[name].sum() == pytest.approx(np.mean(by_layer), rel=1e-5)
    assert len(result.completeness) == 2 * len(LAYERS)


def test_texts_without_comparisons_get_zeros() -> None:
    none = Comparisons([], np.full(2, -1), np.zeros(2, dtype=np.int64))
    saes = candidate_run.Dictionary([make_sae(1)] * 3, {})
    result = candidate_run.measure([], none, ["a", "b"], LAYERS, saes, saes, OPTIONS, seed=0)
    assert not result.controls["compared"].any()
    assert not result.metrics.drop(columns=["id", "variant"]).to_numpy().any()
    assert result.tracks.empty
    assert result.tokens.empty
