"""The warning about a pretrained autoencoder that does not fit: its conditions and its text."""

import re
from typing import Any

import pytest
import torch
from sae_fakes import planted

from ghosttrack.sae.model import Sae
from ghosttrack.sae.plausibility import warning
from ghosttrack.sae.quality import measure

D_MODEL = 8
GIVEN = {"pretrained": {"source": "layer_02"}}


def identity(scale: float = 1.0) -> Sae:
    """Two features per dimension, one per sign; `scale` 1 reconstructs all rows exactly."""
    both = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    zeros = torch.zeros(2 * D_MODEL)
    return Sae(both.T.contiguous(), zeros, scale * both, torch.zeros(D_MODEL), zeros, metadata={})


@pytest.mark.parametrize(
    ("scale", "metadata", "said"),
    [
        (1.0, GIVEN, None),
        (1.0, {**GIVEN, "l0": 7.0}, None),
        (1.0, {**GIVEN, "k": 20}, None),
        (0.0, {}, None),  # trained here
        (
            0.0,
            GIVEN,
            r"of the variance unexplained \(fvu\); likely causes: .*another model, on another layer",
        ),
        (-1.0, GIVEN, "unexplained"),
        (
            1.0,
            {**GIVEN, "l0": 60.5},
            r"8 features are active per token \(l0\), but its cfg\.json says 60\.5; likely",
        ),
        (1.0, {**GIVEN, "k": 1}, "says 1; likely"),
    ],
)
def test_only_a_pretrained_autoencoder_that_does_not_fit_is_warned_of(
    scale: float, metadata: dict[str, Any], said: str | None
) -> None:
    store = planted(500, D_MODEL, 32, 3.0, 0)[0]
    found = warning(measure(identity(scale), store, 2), metadata)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(said, found)
