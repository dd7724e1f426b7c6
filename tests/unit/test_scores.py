"""The registry of scores: every score that is computed has a family, a label and a meaning of its own."""

import pytest

from ghosttrack import scores as registry
from ghosttrack.detection import (
    candidate_scores,
    classifiers,
    controls,
    detectors,
    seed_runs,
    transfer,
)
from ghosttrack.evaluation import leak_reproduction
from ghosttrack.tracks import candidate_run

FAMILIES = {"detector", "output", "probe", "control", "tracking", "tracking_null"}


def test_every_computed_score_is_registered() -> None:
    names = [
        *detectors.score_names(
            ["default", *registry.NULLS],
            classifiers.NAMES,
            compared=candidate_scores.score_names(candidate_run.VARIANTS),
            null=True,
            remarks=True,
        ),
        *controls.UNTRAINED,
        *controls.AUDITED,
        *controls.GENERATED,
        *seed_runs.SCORE_NAMES,
        *transfer.SCORE_NAMES,
        leak_reproduction.NOISE,
        leak_reproduction.SEEN,
        leak_reproduction.TEXT,
    ]
    assert {registry.get(name).family for name in names} == FAMILIES
    assert set(registry.SCORES) <= set(names)
    assert {registry.get(name).family for name in controls.AUDITED} == {"control"}
    assert {registry.get(name).family for name in controls.UNTRAINED} == {"output"}


def test_labels_are_unique_and_meanings_are_sentences() -> None:
    assert len({score.label for score in registry.SCORES.values()}) == len(registry.SCORES)
    for score in registry.SCORES.values():
        assert score.meaning[0].isupper() or score.meaning[0].isdigit(), score.name
        assert score.meaning.endswith("."), score.name


def test_an_unknown_score_has_no_entry() -> None:
    with pytest.raises(KeyError, match="nothing"):
        registry.get("nothing")
    with pytest.raises(KeyError, match=r"raw_probe\.random"):
        registry.get("raw_probe.random")
