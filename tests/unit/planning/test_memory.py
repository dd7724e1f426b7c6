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


@pytest.mark.parametrize(
    "estimate",
    [memory.extraction, memory.splicing, memory.generation, memory.fetching, memory.model_weights],
)
def test_a_large_vocabulary_takes_memory_wherever_the_model_runs(
    estimate: Callable[[Settings], int],
) -> None:
    sizes = {"n_layers": 12, "d_model": 768}
    small, unknown, large = (
        estimate(settings_of(dimensions={**sizes, "vocab_size": size}))
        for size in (50_257, None, 262_144)
    )
    assert small < unknown < large


def test_training_holds_sixteen_copies_of_an_sae_s_weights() -> None:
    small, large = (
        memory.training(settings_of(sae={"d_sae": size, "batch": 64})) for size in (4096, 65536)
    )
    assert large - small == pytest.approx(16 * 4 * (65536 - 4096) * 768 / 1e6, rel=0.2)


def test_a_sweep_and_a_shared_dictionary_take_more_than_one_training() -> None:
    settings = settings_of(corpus={"tokens": 100_000})
    assert memory.training(settings) < memory.shared_training(settings)
    assert memory.training(settings) < memory.sweep(settings)


def test_rows_that_do_not_fit_are_read_in_windows() -> None:
    few, many, most = (
        memory.training(settings_of(corpus={"tokens": tokens}))
        for tokens in (100_000, 10_000_000, 100_000_000)
    )
    assert few < many == most
