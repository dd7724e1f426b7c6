"""Every job of the tiny run holds at most what it asked for, and at least half of it."""

from pathlib import Path

import memory as benchmark
import pytest

from tests.e2e.tiny_runs import MODEL

pytestmark = pytest.mark.e2e


def test_the_peak_of_every_job_is_half_to_all_of_what_it_asked_for(finished: Path) -> None:
    asked = benchmark.asked(MODEL, finished)
    peaks = benchmark.measured(finished / "results" / MODEL)
    assert len(peaks) > 25
    assert set(peaks) <= set(asked)
    outside = {
        rule: f"{peak:.0f} of {asked[rule]:.0f} MB"
        for rule, peak in peaks.items()
        if not 0.5 <= peak / asked[rule] <= 1.0
    }
    assert not outside
