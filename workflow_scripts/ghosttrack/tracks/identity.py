"""Identity metrics of tracks against known identities: IDF1, HOTA and identity switches.

The metrics come from multi-object tracking; a token is a sequence and its layers are the frames. A
detection is an active feature, so the localisation is always exact and HOTA has a single threshold.
A detection that only the truth or only the tracker has counts as missed or false.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.association import assign

Ints = NDArray[np.int64]


class IdentityScores(NamedTuple):
    """Metrics over all detections."""

    # F1 of detections under the best one-to-one match (Ristani et al., arXiv:1609.01775)
    idf1: float
    # Geometric mean of detection and association accuracy (Luiten et al., arXiv:2009.07736)
    hota: float
    association: float  # association accuracy (AssA), a factor of HOTA
    switches: int  # number of times that an identity moves to another track
    fragments: float  # tracks per identity


def score(identity: Ints, track: Ints, time: Ints) -> IdentityScores:
    """Compare tracks with true identities.

    Args:
        identity: (detections,) true identity, unique over all tokens; -1 for a false detection.
        track: (detections,) track of the tracker, unique over all tokens; -1 for a missed
            detection.
        time: (detections,) the layer.
    """
    true, tracked = int((identity >= 0).sum()), int((track >= 0).sum())
    both = (identity >= 0) & (track >= 0)
    true_positives = int(both.sum())
    pairs, members, shared = np.unique(
        np.stack([identity[both], track[both]]), axis=1, return_inverse=True, return_counts=True
    )
    kept = assign(pairs[0], pairs[1], shared.astype(np.float64)).kept
    # For identity i and track t: shared detections over detections of either.
    of_identity = np.bincount(identity[identity >= 0], minlength=1)[pairs[0]]
    of_track = np.bincount(track[track >= 0], minlength=1)[pairs[1]]
    overlap = shared / (of_identity + of_track - shared)
    association = float(overlap[members.reshape(-1)].mean()) if true_positives else 0.0
    detection = true_positives / max(true + tracked - true_positives, 1)
    fragments = len(pairs[0]) / max(len(np.unique(identity[both])), 1)
    return IdentityScores(
        2 * int(shared[kept].sum()) / max(true + tracked, 1),
        float(np.sqrt(detection * association)),
        association,
        _switches(identity[both], track[both], time[both]),
        fragments,
    )


def _switches(identity: Ints, track: Ints, time: Ints) -> int:
    order = np.lexsort((time, identity))
    identity, track = identity[order], track[order]
    return int(((identity[1:] == identity[:-1]) & (track[1:] != track[:-1])).sum())
