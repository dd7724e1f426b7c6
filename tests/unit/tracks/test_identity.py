"""IDF1, HOTA and switches: hand-worked, and planted identities that the tracker must keep."""

import numpy as np
import pytest

from ghosttrack.tracks.identity import score
from ghosttrack.tracks.planted import plant, track_planted
from ghosttrack.tracks.tracking import TrackerOptions


def scored(rows: str) -> tuple[float, ...]:
    """Detections as "identity track layer" triples; "-" means none."""
    table = np.array(
        [[-1 if word == "-" else int(word) for word in row.split()] for row in rows.split(",")]
    )
    return tuple(score(*table.T))


def test_perfect_tracks_score_one() -> None:
    assert scored("0 5 0, 0 5 1, 1 7 0, 1 7 1, 1 7 3") == (1.0, 1.0, 1.0, 0, 1.0)


def test_an_identity_cut_in_two() -> None:
    # Four detections, tracks of three and one. IDF1: 3 of 4. AssA: three times 3/4 and once 1/4.
    assert scored("0 0 0, 0 0 1, 0 0 2, 0 1 3") == pytest.approx(
        (0.75, (2.5 / 4) ** 0.5, 2.5 / 4, 1, 2.0)
    )


def test_two_identities_in_one_track() -> None:
    # The track fits one identity only. Each pair shares 2 of 4.
    assert scored("0 0 0, 0 0 1, 1 0 2, 1 0 3") == pytest.approx((0.5, 0.5**0.5, 0.5, 0, 1.0))


def test_two_identities_that_swap_tracks() -> None:
    # Each pair shares 1 of 3; either match keeps 2 of 4; both identities switch once.
    assert scored("0 0 0, 0 1 1, 1 1 0, 1 0 1") == pytest.approx(
        (0.5, (1 / 3) ** 0.5, 1 / 3, 2, 2.0)
    )


def test_missed_and_false_detections() -> None:
    # 3 true, 3 tracked, 2 in common: IDF1 2*2/6; DetA 2/4; for both AssA = 2/(3+3-2).
    assert scored("0 0 0, 0 0 1, 0 - 2, - 0 3") == pytest.approx(
        (4 / 6, (0.5 * 0.5) ** 0.5, 0.5, 0, 1.0)
    )


def test_the_best_match_of_identities_is_global() -> None:
    # Track 0 shares three detections with identity 0 and two with identity 1, which has no other.
    # Track 1 shares two with identity 0.
    rows = "0 0 0, 0 0 1, 0 0 2, 0 1 3, 0 1 4, 1 0 5, 1 0 6"
    assert scored(rows)[0] == pytest.approx(4 / 7)  # 2 + 2, not 3 alone


def test_a_return_to_an_earlier_track_is_a_switch_too() -> None:
    assert scored("0 0 0, 0 1 1, 0 0 2")[3] == 2


def test_nothing_tracked_scores_zero() -> None:
    assert scored("0 - 0, 0 - 1") == (0.0, 0.0, 0.0, 0, 0.0)


OPTIONS = TrackerOptions(top_k=16, second_association=2, coast=1, activation_weight=0.0)


def test_planted_identities_are_kept_at_cosine_08_and_lost_at_cosine_01() -> None:
    generator = np.random.default_rng(0)
    base = generator.standard_normal((512, 128))
    kept = track_planted(
        plant(base, layers=5, cosine=0.8, replaced=0.1, tokens=200, active=16, seed=1),
        OPTIONS,
        seed=0,
    )
    assert kept.idf1 >= 0.95
    lost = track_planted(
        plant(base, layers=5, cosine=0.1, replaced=0.1, tokens=200, active=16, seed=1),
        OPTIONS,
        seed=0,
    )
    assert lost.idf1 < 0.6


def test_planted_layers_have_the_requested_properties() -> None:
    base = np.random.default_rng(0).standard_normal((400, 64))
    planted = plant(base, layers=3, cosine=0.8, replaced=0.1, tokens=50, active=12, seed=2)
    first, second = planted.decoders[:2]
    position_of = {
        number: position for position, number in enumerate(planted.identities[1].tolist())
    }
    kept_pairs = [
        (position, position_of[number])
        for position, number in enumerate(planted.identities[0].tolist())
        if number in position_of
    ]
    assert len(kept_pairs) == 360
    lower, upper = (np.array(side) for side in zip(*kept_pairs, strict=True))
    assert (first[lower] * second[upper]).sum(1).mean() == pytest.approx(0.8, abs=0.01)
    assert (lower == upper).mean() < 0.05  # permuted
    assert ((planted.codes[0] > 0).sum(1) == 12).all()
    fires = planted.codes[0][:, lower] > 0
    assert (planted.codes[1][:, upper] > 0)[fires].mean() == pytest.approx(0.8, abs=0.05)
