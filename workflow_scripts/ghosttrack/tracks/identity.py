"""How well tracks keep identities, where the true ones are known: IDF1, HOTA and identity switches.

From multi-object tracking, with a token as the film and its layers as the frames. A detection is a feature that
fires, so truth and tracker mean the same detection or not at all: nothing needs to be localised, and HOTA has one
threshold. A detection that only one side has counts as missed or false.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghosttrack.tracks.association import assign

Ints = NDArray[np.int64]


class Scores(NamedTuple):
    """Of all detections together."""

    idf1: float  # Ristani et al. (arXiv 1609.01775): share of detections under the best one-to-one match of identities
    hota: float  # Luiten et al. (arXiv 2009.07736): root of detection times association accuracy
    association: float  # its second factor, AssA
    switches: int  # times an identity goes on under another track than before
    fragments: float  # tracks per identity


def score(identity: Ints, track: Ints, time: Ints) -> Scores:
    """Compare tracks with true identities.

    Args:
        identity: (detections,) true identity, numbered over all tokens; -1: a false detection.
        track: (detections,) the tracker's, numbered over all tokens; -1: missed.
        time: (detections,) the layer.
    """
    true, tracked = int((identity >= 0).sum()), int((track >= 0).sum())
    both = (identity >= 0) & (track >= 0)
    matched = int(both.sum())
    pairs, members, shared = np.unique(
        np.stack([identity[both], track[both]]), axis=1, return_inverse=True, return_counts=True
    )
    kept = assign(pairs[0], pairs[1], shared.astype(np.float64)).kept
    # For a detection of identity i in track t: how many the two share, of all that either has.
    of_identity = np.bincount(identity[identity >= 0], minlength=1)[pairs[0]]
    of_track = np.bincount(track[track >= 0], minlength=1)[pairs[1]]
    overlap = shared / (of_identity + of_track - shared)
    association = float(overlap[members.reshape(-1)].mean()) if matched else 0.0
    detection = matched / max(true + tracked - matched, 1)
    fragments = len(pairs[0]) / max(len(np.unique(identity[both])), 1)
    return Scores(
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
