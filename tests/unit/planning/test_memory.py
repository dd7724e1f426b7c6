"""Formulas of memory: figures of known models, and growth with what a job holds."""

from collections.abc import Callable
from typing import Any

import pytest

from ghosttrack.planning import memory
from ghosttrack.planning.configuration import load
from ghosttrack.settings import Settings
from tests.conftest import ROOT


def settings_of(**config: Any) -> Settings:
    (settings,) = load({"model": "gpt2-small", **config}, ROOT / "config").values()
    return settings


def test_the_weights_of_gpt2_are_estimated_within_a_third() -> None:
    # GPT-2 small has 124 million parameters.
    assert memory.model_weights(settings_of()) / 4 == pytest.approx(124e6, rel=0.35)


@pytest.mark.parametrize(
    ("estimate", "larger"),
    [
        (memory.extraction, {"corpus": {"context": 4096}}),
        (memory.splicing, {"corpus": {"context": 4096}}),
        (memory.sweep, {"sweep": {"seeds": list(range(8))}}),
        (
            lambda settings: memory.dictionary(settings, settings.sae.d_sae),
            {"sae": {"d_sae": 65536}},
        ),
        (lambda settings: memory.detector(settings, settings.sae.d_sae), {"sae": {"d_sae": 65536}}),
    ],
)
def test_memory_grows_with_what_a_job_holds(
    estimate: Callable[[Settings], int], larger: dict[str, Any]
) -> None:
    assert 1000 <= estimate(settings_of()) < estimate(settings_of(**larger))


def test_a_wave_of_few_layers_asks_for_less_than_one_of_all() -> None:
    settings = settings_of(corpus={"context": 4096})
    assert memory.extraction(settings, settings.layers[:1]) < memory.extraction(settings)


def test_two_contexts_of_logits_are_in_the_memory_of_splicing() -> None:
    short, long = (memory.splicing(settings_of(corpus={"context": size})) for size in (1024, 2048))
    assert long - short == pytest.approx(3 * 4 * 2 * 1024 * memory.VOCABULARY / 1e6, abs=1)
