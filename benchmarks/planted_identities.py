"""Tracking of known identities as noise grows: `python benchmarks/planted_identities.py --help`.

Each layer is a copy of the one before: permuted, with noise up to a mean cosine, and a tenth of its
features replaced. An active feature fires in the next layer with probability .8. The tracker sees
only decoders and codes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from measure import show

from ghosttrack import sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks.planted import plant, track_planted
from ghosttrack.tracks.tracking import TrackerOptions

COLUMNS = ("cosine", "IDF1", "HOTA", "AssA", "switches per 1000", "tracks per identity")


def main() -> None:
    """Plant identities, track them, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sae",
        type=Path,
        help="directory of an SAE whose decoder is copied; default: random directions",
    )
    parser.add_argument(
        "--cosines",
        default="1,.9,.8,.7,.6,.5,.4,.3,.2",
        help="mean similarity of a feature and its copy",
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--replaced", type=float, default=0.1)
    given = parser.parse_args()
    base = (
        sae.load(given.sae).W_dec.numpy()
        if given.sae
        else np.random.default_rng(0).standard_normal((2048, 576))
    )
    options = TrackerOptions.from_settings(TrackingSettings())
    rows: list[list[Any]] = []
    for cosine in map(float, given.cosines.split(",")):
        planted = plant(
            base,
            layers=given.layers,
            cosine=cosine,
            replaced=given.replaced,
            tokens=given.tokens,
            active=given.active,
            seed=0,
        )
        scores = track_planted(planted, options, seed=0)
        detections = sum(int((code > 0).sum()) for code in planted.codes)
        rows.append(
            [
                cosine,
                scores.idf1,
                scores.hota,
                scores.association,
                1000 * scores.switches / detections,
                scores.fragments,
            ]
        )
    show(
        f"{len(base)} planted features, {given.layers} layers, {given.tokens} tokens", COLUMNS, rows
    )


if __name__ == "__main__":
    main()
